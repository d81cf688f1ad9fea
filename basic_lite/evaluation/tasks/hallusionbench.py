"""HallusionBench: the original JSON, the Hugging Face rows and VLMEvalKit's TSV, yes or no without a judge.

The original asks a GPT whether an answer agrees; read here is VLMEvalKit's yes or no. Sources:
HallusionBench `utils.py` (by way of lmms-eval `tasks/hallusion_bench/utils.py`), VLMEvalKit
`dataset/utils/yorn.py` (`YOrN_Extraction`, `Hallusion_rating`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, compared, score_each
from basic_lite.evaluation.files import Source, main_file, read_list, table_rows, with_pictures
from basic_lite.evaluation.open_answers import without_punctuation
from basic_lite.evaluation.question import SHORT, Question, question_of
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import tsv_reader

STYLES = {"llava": f"\n{SHORT}", "original": "", "lmms": ""}
_NAMES = ("category", "subcategory", "set_id", "figure_id", "question_id")
_NEEDS = (*_NAMES, "question", "gt_answer")


def yes_or_no(text: str) -> str | None:
    """Return yes or no where an answer has one of the two words, `None` where it has neither or both."""
    words = without_punctuation(text.lower()).split()
    said = {"yes", "no"} & set(words)
    return said.pop() if len(said) == 1 else None


def _blind(question: Question) -> bool:
    """Whether a question about a chart, table, map or text is asked without it."""
    return question.fields["category"] == "VS" and question.fields["figure"] == "0"


_agrees = compared(lambda text, question: yes_or_no(text))


def _original(text: str, question: Question) -> float | None:
    """Take an unclear answer for right where there is no picture to know it from."""
    agrees = _agrees(text, question)
    return 1.0 if agrees is None and _blind(question) else agrees


RULES = {"yes_no_vlmevalkit": _agrees, "yes_no_original": _original}


def _question(row: Row, style: str) -> Question:
    if "l2-category" in row:  # VLMEvalKit's table, whose index names set, figure and question
        parts = str(row["index"]).split("_")
        if len(parts) < 6:
            raise ValueError(
                f"HallusionBench's row {row['index']}: the index does not name set, figure and question."
            )
        named = dict(zip(_NAMES[2:], parts[3:6], strict=True))
        row = {**row, **named, "subcategory": row["l2-category"], "gt_answer": row["answer"]}
    truth = {"1": "yes", "0": "no"}.get(str(row["gt_answer"]), str(row["gt_answer"]).lower())
    if truth not in ("yes", "no"):
        raise ValueError(
            f"HallusionBench's question {row['id']} has answer {row['gt_answer']!r}, not 0 or 1."
        )
    group = f"{row['subcategory']}_{row['set_id']}"
    groups = {
        "category": str(row["category"]),
        "subcategory": str(row["subcategory"]),
        "figure": str(row["figure_id"]),
        "by_figure": f"{group}_{row['figure_id']}",
        "by_question": f"{group}_{row['question_id']}",
    }
    return question_of(
        {**row, **groups},
        f"{row['question']}{STYLES[style]}",
        answer=truth,
        category="subcategory",
        picture=f"{row['category']}_{group}",  # the edited picture of a set is no independent draw either
        fields=groups,
    )


def _identity(row: Row) -> str:
    return "_".join(str(row[name]) for name in _NAMES)


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    if source.split != "image":
        raise ValueError(
            "HallusionBench's questions without a picture are read from its HallusionBench.json."
        )
    for row in table_rows(source, None, "image", _NEEDS):
        yield {**row, "id": _identity(row)}


def _json_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, "HallusionBench", "HallusionBench.json", "HallusionBench.tsv")
    rows = [
        {
            **row,
            "id": _identity(row),
            "file": (row["filename"] or "").removeprefix("./").removeprefix("hallusion_bench/") or None,
        }
        for row in read_list(path, None, (*_NEEDS, "filename"))
        if source.split == "all" or row["filename"]
    ]
    return with_pictures(source, rows, ("hallusion_bench", "images", "."))


def _all_right(groups: Mapping[str, Sequence[float]]) -> float:
    return 100 * sum(all(group) for group in groups.values()) / len(groups) if groups else 0.0


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score questions; the figures hold the share of figures, and of questions over all figures, all right.

    `yes_no_vlmevalkit` joins sets of both categories with the same name; `yes_no_original` tells them apart
    and leaves questions without a picture out of the share of figures.
    """
    original = scorer == "yes_no_original"
    each = score_each(questions, predictions, scorer, RULES[scorer], ("category", "subcategory"))
    figures: dict[str, list[float]] = defaultdict(list)
    pairs: dict[str, list[float]] = defaultdict(list)
    for question in questions:
        prefix = f"{question.fields['category']}_" if original else ""
        if not (original and _blind(question)):
            figures[prefix + question.fields["by_figure"]].append(each.items[question.id])
        pairs[prefix + question.fields["by_question"]].append(each.items[question.id])
    values = {"fAcc": _all_right(figures), "qAcc": _all_right(pairs)}
    values["mean_of_aAcc_fAcc_qAcc"] = (float(each.value or 0) + values["fAcc"] + values["qAcc"]) / 3
    return replace(each, metric="aAcc", figures=values)


BENCHMARK = Benchmark(
    name="hallusionbench",
    hub="lmms-lab/HallusionBench",
    sizes={"image": (951,), "all": (1_129,)},
    rows=(
        _table_rows,
        tsv_reader(
            "HallusionBench",
            "HallusionBench.tsv",
            needs=("question", "answer", "category", "l2-category"),
            split="image",
            otherwise=_json_rows,
        ),
    ),
    question=_question,
    styles=STYLES,
    scorers=tuple(RULES),
    score=score,
    aliases=("hallusion-bench",),
)
