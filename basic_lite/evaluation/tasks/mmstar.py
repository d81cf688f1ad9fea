"""MMStar: the Hugging Face rows and the published TSV.

Sources: MMStar `eval/` by way of lmms-eval `tasks/mmstar/utils.py` (rule), VLMEvalKit (the TSV).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions
from basic_lite.evaluation.files import Source, main_file, table_rows
from basic_lite.evaluation.question import LETTER, Question
from basic_lite.evaluation.rules import Rule, by_letter, options_prompt, score_each
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import choices_in, tsv_table

STYLES = {"llava": 128}
_PLACES = (("", 0), ("(", 1), ("option ", 7), ("the answer is ", 14))


def starts_with(text: str, question: Question) -> float:
    """Return MMStar's own verdict: the letter, in any case, at one of four places from the beginning."""
    said, letter = text.lower().strip().replace("\n", " "), str(question.answer).lower().strip()
    return float(any(said.startswith(before) and said[at : at + 1] == letter for before, at in _PLACES))


RULES: dict[str, Rule] = {"mmstar": starts_with, "exact_matching": by_letter("exact_matching")}


def _question(row: Mapping[str, Any], style: str) -> Question:
    choices = choices_in(row)  # of the TSV; the rows of the hub have the options in the question
    asked = str(row["question"]).strip()
    return Question(
        id=row["id"],
        text=options_prompt(asked, choices) if choices else f"{asked}\n{LETTER}",
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=str(row["answer"]).strip(),
        choices=choices or dict.fromkeys("ABCD", ""),
        category=str(row["category"]),
        picture=row.get("picture"),
        fields={"category": str(row["category"]), "l2_category": str(row["l2_category"])},
    )


_NEEDS = ("question", "answer", "category", "l2_category")


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    for row in table_rows(source, None, "val", ("index", *_NEEDS)):
        yield {**row, "id": row["index"]}


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    path = main_file(source, "MMStar TSV", "MMStar.tsv", "MMStar*.tsv")
    for row in tsv_table(source, path, _NEEDS, "MMStar"):
        yield {**row, "id": row["index"]}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score letters, by category."""
    return score_each(questions, predictions, scorer, RULES[scorer], ("category", "l2_category"))


BENCHMARK = Benchmark(
    name="mmstar",
    hub="Lin-Chen/MMStar",
    split="val",
    sizes={"val": (1_500,)},
    styles=STYLES,
    scorers=tuple(RULES),
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
)
