"""POPE: LLaVA's question file with the label files, the label files alone, and the Hugging Face rows.

Sources: LLaVA `llava/eval/eval_pope.py`, lmms-eval `tasks/pope/utils.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, published
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import SAME_STYLES, SHORT, Question, question_of
from basic_lite.evaluation.statistics import Score, score_of, value_of
from basic_lite.evaluation.tsv import find_tsv, tsv_table

_KINDS = ("random", "popular", "adversarial")


def _question(row: Row, style: str) -> Question:
    if row["label"] not in ("yes", "no"):
        raise ValueError(f"The label of POPE's question {row['id']} is {row['label']!r}, neither yes nor no.")
    text = f"{row['question']}\n{SHORT}"
    return question_of(row, text, answer=row["label"], category="category")


def _wanted(source: Source, category: str) -> bool:
    return source.split in ("test", category)


def _label_files(source: Source, prefix: str) -> dict[str, list[dict[str, Any]]]:
    """Return category -> its labelled rows, from JSON lines, or a JSON list, in files named .json."""
    pattern = f"{prefix}_pope_*.json"
    data = Path(source.data)
    if data.is_file() and data.match(pattern):
        paths = [data]
    else:
        paths = sorted({*source.folder.glob(pattern), *source.folder.glob(f"*/{pattern}")})
    if not paths:
        raise ValueError(f"{source.data} has no POPE labels: looked for {pattern}, POPE.tsv.")
    labels = {}
    for path in paths:
        # COCO's files hold JSON lines; those of GQA and A-OKVQA one list, and "seem" in their names.
        as_list = files.read_text(path).lstrip().startswith("[")
        needs = ("question_id", "image", "text", "label")
        rows = files.read_list(path, None, needs) if as_list else files.read_json_lines(path, needs)
        labels[path.stem.removeprefix(f"{prefix}_pope_").removeprefix("seem_")] = rows
    return {category: rows for category, rows in labels.items() if _wanted(source, category)}


def _tsv_rows(source: Source, path: Path) -> Iterator[dict[str, Any]]:
    """Read VLMEvalKit's table, in which a question of several categories stands once."""
    for row in tsv_table(source, path, ("question", "answer", "category"), "POPE"):
        for category in str(row["category"]).split(","):
            if _wanted(source, category.strip()):
                yield {
                    **row,
                    "id": f"{category.strip()}/{row['index']}",
                    "category": category.strip(),
                    "label": str(row["answer"]).lower().strip(),
                    "question": str(row["question"]).replace(" Please answer yes or no.", "").strip(),
                }


def _file_rows(source: Source, prefix: str) -> list[dict[str, Any]]:
    tsv = find_tsv(source, "POPE.tsv") if prefix == "coco" else None
    if tsv is not None:
        return list(_tsv_rows(source, tsv))
    labels = _label_files(source, prefix)
    asked = files.find_optional(source, "llava_pope_test.jsonl", "pope_questions.jsonl")
    if asked is None or source.folder != Path(source.data) != asked:  # one label file was named
        rows = [
            {**row, "id": f"{category}/{row['question_id']}", "category": category, "question": row["text"]}
            for category, labelled in labels.items()
            for row in labelled
        ]
    else:
        rows = _paired_by_position(asked, labels)
    rows = [{**row, "file": row["image"]} for row in rows]
    return files.with_pictures(source, rows, ("val2014", "images", f"{prefix}_images"))


def _thing(question: str) -> str:
    """Return what a question is about; releases differ in the article and once wrote "imange"."""
    asked = re.fullmatch(r"Is there an? (.+) in the \w+\?", question.strip())
    return asked[1] if asked else question.strip()


def _paired_by_position(asked: Path, labels: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Give LLaVA's n-th question of a category the n-th label, as its script does, and check both match."""
    categories: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in files.read_json_lines(asked, ("question_id", "image", "text", "category")):
        categories[row["category"]].append(row)
    rows = []
    for category, questions in categories.items():
        labelled = labels.get(category, [])
        if len(labelled) != len(questions):
            raise ValueError(
                f"{asked} has {len(questions)} questions of {category}, the labels {len(labelled)}: they are "
                "paired by position, so the files must belong together."
            )
        for row, label in zip(questions, labelled, strict=True):
            question = row["text"].removesuffix(f"\n{SHORT}")
            if row["image"] != label["image"] or _thing(question) != _thing(label["text"]):
                raise ValueError(
                    f"{asked}: question {row['question_id']} of {category} is not the one at its place in "
                    "the labels."
                )
            rows.append({**row, "id": row["question_id"], "label": label["label"], "question": question})
    return rows


def _all_splits(source: Source, needs: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Read the split test, or the three of the folder `Full`, which hold the same rows."""
    try:
        yield from files.table_rows(source, None, "test", needs)
        return
    except ValueError:
        if not any(Path(source.data).glob(f"**/{_KINDS[0]}-*.parquet")):
            raise
    for split in _KINDS:
        yield from files.table_rows(source, None, split, needs)


def _table_rows(source: Source, prefix: str) -> Iterator[dict[str, Any]]:
    if prefix != "coco":
        raise ValueError(f"POPE's data sets hold COCO's questions: give --data with {prefix}_pope_*.json.")
    for row in _all_splits(source, ("question_id", "question", "answer", "category")):
        if _wanted(source, row["category"]):
            yield {
                **row,
                "id": f"{row['category']}/{row['question_id']}",
                "question": row["question"].strip(),
                "picture": row.get("image_source"),
                "label": row["answer"].lower().strip(),
            }


def yes_or_no(text: str, scorer: str) -> str:
    """Return `"yes"`, `"no"` or, for lmms-eval alone, `"other"`.

    LLaVA looks for a word of denial in the first sentence; whatever has none is a yes, an empty answer too.
    """
    if scorer == "pope_llava":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"
    lowered = text.lower().strip()
    return lowered if lowered in ("yes", "no") else "other"


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score F1 of "yes": the mean over categories (LLaVA), or over all rows together (lmms-eval).

    A missing prediction counts as the wrong answer, not as the yes that LLaVA reads from an empty one.
    """
    wrong = {"yes": "no", "no": "yes"}
    said = {
        q.id: yes_or_no(predictions[q.id], scorer) if q.id in predictions else wrong[str(q.answer)]
        for q in questions
    }
    cells = {q.id: (q.category, said[q.id] == "yes", q.answer == "yes") for q in questions}
    items = {question.id: float(said[question.id] == question.answer) for question in questions}
    statistic = "mean_f1" if scorer == "pope_llava" else "pooled_f1"
    breakdown: dict[str, dict[str, float]] = defaultdict(dict)
    for name in sorted({question.category for question in questions}):
        here = [cell for cell in cells.values() if cell[0] == name]
        said_yes, is_yes = sum(yes for _, yes, _ in here), sum(true for _, _, true in here)
        hits = sum(yes and true for _, yes, true in here)
        breakdown["f1"][name] = value_of(here, "pooled_f1")
        breakdown["accuracy"][name] = 100 * sum(yes == true for _, yes, true in here) / len(here)
        breakdown["precision"][name] = 100 * hits / max(said_yes, 1)
        breakdown["recall"][name] = 100 * hits / max(is_yes, 1)
        breakdown["yes_ratio"][name] = 100 * said_yes / len(here)
    return score_of(
        questions,
        predictions,
        items,
        metric="mean F1 of the categories" if scorer == "pope_llava" else "F1 over all questions",
        scorer=scorer,
        value=value_of(cells.values(), statistic),
        cells=cells,
        statistic=statistic,
        right_wrong=True,
        breakdown=dict(breakdown),
        unparsed=sum(answer == "other" for answer in said.values()),
    )


_SIZES = {"test": (9_000, 8_910), **dict.fromkeys(_KINDS, (3_000,)), "random": (3_000, 2_910)}


def _benchmark(prefix: str, **more: Any) -> Benchmark:
    return Benchmark(
        hub="lmms-lab/POPE",
        sizes=_SIZES,
        rows=(partial(_table_rows, prefix=prefix), partial(_file_rows, prefix=prefix)),
        question=_question,
        styles=SAME_STYLES,
        scorers=("pope_llava", "pope_lmms"),
        score=score,
        **more,
    )


_COCO = published(85.9, 85.9, 86.4, 86.7, on="mean F1 of the three categories")
BENCHMARKS = (
    _benchmark("coco", name="pope", published=_COCO, of_size=dict.fromkeys((9_000, 8_910), _COCO)),
    _benchmark("gqa", name="pope-gqa"),
    _benchmark("aokvqa", name="pope-aokvqa"),
)
