"""ScienceQA: the official JSON files, LLaVA's question file and the Hugging Face rows.

The published number is the accuracy over the questions with a picture. Sources: LLaVA
`llava/eval/model_vqa_science.py`, `eval_science_qa.py`, `scripts/convert_sqa_to_llava_base_prompt.py`;
lmms-eval `tasks/scienceqa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, by_letter, published, score_each
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import LETTER, Question, question_of
from basic_lite.evaluation.statistics import Score, percent, score_of
from basic_lite.evaluation.tsv import OPTIONS, choices_in, find_tsv, tsv_table

_NEEDS = ("question", "choices", "answer", "hint")
_GROUPS = ("subject", "topic", "grade", "task")


def _lines(row: Row) -> str:
    """Return context (if there is any), question and lettered options, one a line."""
    return "\n".join([_stem(row), *(f"{letter}. {text}" for letter, text in choices_in(row).items())])


def _stem(row: Row) -> str:
    return (f"Context: {row['hint']}\n" if row["hint"] else "") + row["question"]


def _script_lines(row: Row) -> str:
    """Return what LLaVA's conversion script writes for CQM: options on one line, "N/A" without context."""
    options = " ".join(f"({letter}) {text}" for letter, text in choices_in(row).items())
    text = f"Context: {row['hint'].strip() or 'N/A'}\nQuestion: {row['question']}\nOptions: {options}"
    return text.replace("  ", " ").strip()


STYLES: dict[str, tuple[Callable[[Row], str], int]] = {
    "llava": (_lines, 1024),
    "llava_script": (_script_lines, 1024),
    "lmms": (_lines, 16),  # the same words; lmms-eval lets the model write less
}


def _question(row: Row, style: str) -> Question:
    """Make a question; LLaVA's own question file, where it lies beside the problems, has the last word."""
    render, max_new_tokens = STYLES[style]
    return question_of(
        row,
        f"{(row.get('llava') if style == 'llava' else None) or render(row)}\n{LETTER}",
        stem=_stem(row),
        max_new_tokens=max_new_tokens,
        answer=OPTIONS[row["answer"]],
        choices=choices_in(row),
        category="subject",
        picture=None,
        fields=("has_image", *_GROUPS),
    )


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Read the official files, or VLMEvalKit's table of the questions with a picture."""
    split = source.split.removesuffix("-img")
    tsv = find_tsv(source, f"ScienceQA_{split.upper()}.tsv")
    if tsv is None:
        yield from _json_rows(source, split)
        return
    if source.split == split:
        raise ValueError(f"{tsv} holds the questions with a picture: use --split {split}-img.")
    for row in tsv_table(source, tsv, ("question", "A", "B", "answer"), "ScienceQA"):
        answer = OPTIONS.index(str(row["answer"]))
        more = {"answer": answer, "hint": row.get("hint") or "", "has_image": True}
        yield {**row, **more, "id": row["index"]}


def _json_rows(source: Source, split: str) -> list[dict[str, Any]]:
    problems_path = files.main_file(source, "ScienceQA problems", "problems.json", "sqa_problems.json")
    splits_path = files.find(source, "ScienceQA splits", "pid_splits.json", "sqa_pid_splits.json")
    problems, splits = files.read_json(problems_path), files.read_json(splits_path)
    files.require(splits, [split], str(splits_path))
    absent = [identity for identity in splits[split] if identity not in problems]
    if absent:
        raise ValueError(
            f"{problems_path} lacks {len(absent)} problems of split {split} (first: {absent[0]})."
        )
    texts = _llava_texts(source) if split == "test" else {}
    rows = []
    for identity in splits[split]:
        row = problems[identity]
        files.require(row, (*_NEEDS, "image"), f"{problems_path} problem {identity}")
        if row["image"] or source.split == split:
            file = f"{identity}/{row['image']}" if row["image"] else None
            asked = {"id": identity, "has_image": bool(row["image"]), "llava": texts.get(identity)}
            rows.append({**row, **asked, "file": file})
    return files.with_pictures(source, rows, (f"images/{split}", split, "images"))


def _llava_texts(source: Source) -> dict[str, str]:
    """Return id -> question as LLaVA's file words it, without the image token."""
    path = files.find_optional(source, "llava_test_CQM-A.json", "llava_sqa_questions.json")
    if path is None:
        return {}
    content = files.read_list(path, None, ("id", "conversations"))
    return {row["id"]: row["conversations"][0]["value"].replace("<image>", "").strip() for row in content}


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    with_picture = source.split.endswith("-img")
    config = "ScienceQA-IMG" if with_picture else "ScienceQA-FULL"
    split = {"val": "validation"}.get(source.split.removesuffix("-img"), "test")
    # Rows carry no id, so the row number stands for it. Which rows have a picture decides which ones count,
    # also where only answers are scored (a data set without configurations holds both kinds).
    for number, row in enumerate(files.table_rows(replace(source, with_images=True), config, split, _NEEDS)):
        has_image = row["image"] is not None
        if has_image or not with_picture:
            image = row["image"] if source.with_images else None
            yield {**row, "id": str(number), "has_image": has_image, "image": image}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score letters; the value is over the questions with a picture, unless there are none."""
    each = score_each(questions, predictions, scorer, by_letter(scorer))
    right = each.items
    with_picture = {q.id: right[q.id] for q in questions if q.fields["has_image"]}
    return score_of(
        questions,
        predictions,
        with_picture or right,
        metric="accuracy, questions with a picture" if with_picture else "accuracy",
        scorer=scorer,
        right_wrong=True,
        groupings=_GROUPS,
        figures={"accuracy_all": percent(right), "n_all": len(right), "n_with_picture": len(with_picture)},
        unparsed=each.unparsed,
    )


BENCHMARK = Benchmark(
    name="scienceqa",
    hub="lmms-lab/ScienceQA",
    sizes={"test-img": (2_017,), "test": (4_241,), "val-img": (2_097,), "val": (4_241,)},
    rows=(_table_rows, _file_rows),
    question=_question,
    styles=STYLES,
    scorers=("llava_sqa", "lmms_sqa", "exact_matching"),
    score=score,
    published=published(66.8, 71.6, 68.4, 71.2, basic=70.6, on="test, questions with a picture"),
    aliases=("sqa", "scienceqa-img"),
)
