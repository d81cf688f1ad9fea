"""AI2D's test questions about diagrams: the Hugging Face rows and VLMEvalKit's TSV.

AI2D has no generative scorer of its own; the rules are those that harnesses use. Sources: lmms-eval
`tasks/ai2d/utils.py` (prompt), VLMEvalKit `utils/matching_util.py` (rule).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions
from basic_lite.evaluation.files import Source, main_file, table_rows
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.rules import by_letter, options_prompt, score_each
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import choices_in, tsv_table

STYLES = {"llava": 128}
SCORERS = ("exact_matching", "lmms_static")


def _question(row: Mapping[str, Any], style: str) -> Question:
    return Question(
        id=row["id"],
        text=options_prompt(str(row["question"]), row["choices"]),
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=row["answer"],
        choices=row["choices"],
        category=str(row.get("category") or ""),
        picture=row.get("picture"),
        fields={"category": row.get("category")},
    )


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(table_rows(source, None, "test", ("question", "options", "answer"))):
        choices = dict(zip("ABCDEFGHI", map(str, row["options"]), strict=False))
        yield {**row, "id": str(number), "choices": choices, "answer": "ABCDEFGHI"[int(row["answer"])]}


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    path = main_file(source, "AI2D TSV", "AI2D_TEST.tsv", "AI2D*.tsv")
    for row in tsv_table(source, path, ("question", "A", "B", "answer"), "AI2D"):
        yield {**row, "id": row["index"], "choices": choices_in(row)}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score letters."""
    return score_each(questions, predictions, scorer, by_letter(scorer), ("category",))


BENCHMARK = Benchmark(
    name="ai2d",
    hub="lmms-lab/ai2d",
    split="test",
    sizes={"test": (3_088,)},
    styles=STYLES,
    scorers=SCORERS,
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
)
