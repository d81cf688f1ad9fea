"""MMStar: the Hugging Face rows and the published TSV.

Sources: MMStar `eval/` by way of lmms-eval `tasks/mmstar/utils.py` (rule), VLMEvalKit (the TSV).
"""

from __future__ import annotations

from basic_lite.evaluation.benchmark import Benchmark, Row, Rule, by_letter, scored_by
from basic_lite.evaluation.files import table_reader
from basic_lite.evaluation.question import LETTER, Question, options_prompt, question_of
from basic_lite.evaluation.tsv import choices_in, tsv_reader

STYLES = {"llava": LETTER, "lmms": LETTER.removesuffix(".")}
_PLACES = (("", 0), ("(", 1), ("option ", 7), ("the answer is ", 14))


def starts_with(text: str, question: Question) -> float:
    """Return MMStar's own verdict: the letter, in any case, at one of four places from the beginning."""
    said, letter = text.lower().strip().replace("\n", " "), str(question.answer).lower().strip()
    return float(any(said.startswith(before) and said[at : at + 1] == letter for before, at in _PLACES))


RULES: dict[str, Rule] = {"mmstar": starts_with, "exact_matching": by_letter("exact_matching")}


def _question(row: Row, style: str) -> Question:
    choices = choices_in(row)  # of the TSV; the rows of the hub have the options in the question
    asked = str(row["question"]).strip()
    groups = {"category": str(row["category"]), "l2_category": str(row["l2_category"])}
    return question_of(
        {**row, **groups},
        options_prompt(asked, choices) if choices else f"{asked}\n{STYLES[style]}",
        stem=asked if choices else "",
        answer=str(row["answer"]).strip(),
        choices=choices or dict.fromkeys("ABCD", ""),
        category="category",
        fields=groups,
    )


_NEEDS = ("question", "answer", "category", "l2_category")

BENCHMARK = Benchmark(
    name="mmstar",
    hub="Lin-Chen/MMStar",
    sizes={"val": (1_500,)},
    rows=(
        table_reader("index", *_NEEDS, key="index"),
        tsv_reader("MMStar", "MMStar.tsv", "MMStar*.tsv", needs=_NEEDS),
    ),
    question=_question,
    styles=STYLES,
    scorers=tuple(RULES),
    score=scored_by(RULES, "category", "l2_category"),
)
