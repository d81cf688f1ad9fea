"""RealWorldQA: the Hugging Face rows, whose questions end in their own request, and VLMEvalKit's TSV.

Source: lmms-eval `tasks/realworldqa/utils.py` (`realworldqa_process_results`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions
from basic_lite.evaluation.files import Source, main_file, table_rows
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.rules import options_prompt, score_each
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import choices_in, tsv_table

STYLES = {"llava": 128}


def equal(text: str, question: Question) -> float:
    """Compare without case, outer space and final dots."""
    return float(text.lower().strip().rstrip(".") == str(question.answer).lower().strip())


def _question(row: Mapping[str, Any], style: str) -> Question:
    choices, asked = choices_in(row), str(row["question"]).strip()
    return Question(
        id=row["id"],
        text=options_prompt(asked, choices) if choices else asked,
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=str(row["answer"]),
        choices=choices,
        category="choice" if str(row["answer"]).strip().upper() in "ABCD" else "short answer",
        picture=row.get("picture"),
    )


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(table_rows(source, None, "test", ("question", "answer"))):
        yield {**row, "id": str(number)}


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    path = main_file(source, "RealWorldQA TSV", "RealWorldQA.tsv")
    for row in tsv_table(source, path, ("question", "answer"), "RealWorldQA"):
        yield {**row, "id": row["index"]}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score by equality."""
    return score_each(questions, predictions, scorer, equal)


BENCHMARK = Benchmark(
    name="realworldqa",
    hub="lmms-lab/RealWorldQA",
    split="test",
    sizes={"test": (765,)},
    styles=STYLES,
    scorers=("realworldqa",),
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
)
