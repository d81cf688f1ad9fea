"""ChartQA: the original JSON files, the Hugging Face rows and VLMEvalKit's TSV, by relaxed accuracy.

Sources: ChartQA (arXiv 2203.10244, end of section 5.1), lmms-eval `tasks/chartqa/utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions
from basic_lite.evaluation.files import Source, find_optional, locate_images, read_list, table_rows
from basic_lite.evaluation.question import SHORT, Question
from basic_lite.evaluation.rules import score_each
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import find_tsv, listed, tsv_table

STYLES = {"llava": SHORT, "lmms": "Answer the question with a single word."}
_TOLERANCE = 0.05
_HALVES = {"human": "test_human.json", "augmented": "test_augmented.json"}


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(text: str, question: Question) -> float:
    """Compare numbers within 5 % of the answer, anything else without case; a zero is no number here."""
    answer = str(question.answer)
    said, true = _number(text), _number(answer)
    if said is not None and true:
        return float(abs(said - true) / abs(true) <= _TOLERANCE)
    return float(text.lower() == answer.lower())


def _question(row: Mapping[str, Any], style: str) -> Question:
    half = "human" if "human" in str(row["half"]) else "augmented"
    return Question(
        id=row["id"],
        text=f"{row['question']}\n{STYLES[style]}",
        image=row["image"],
        max_new_tokens=128,
        answer=str(row["answer"]),
        category=half,
        picture=row.get("picture"),
        fields={"half": half},
    )


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(table_rows(source, None, "test", ("question", "answer", "type"))):
        yield {**row, "id": str(number), "half": row["type"], "answer": listed_first(row["answer"])}


def listed_first(answer: Any) -> str:
    """Return the one answer of a cell, whether it is a list, a list in words, or the answer itself."""
    return str(answer[0]) if isinstance(answer, list) else listed(str(answer))[0]


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    tsv = find_tsv(source, "ChartQA_TEST.tsv")
    if tsv is not None:
        for row in tsv_table(source, tsv, ("question", "answer", "split"), "ChartQA"):
            answer = listed_first(row["answer"])
            yield {**row, "id": row["index"], "half": row["split"], "answer": answer}
        return
    files = {half: find_optional(source, name) for half, name in _HALVES.items()}
    if not any(files.values()):
        raise ValueError(
            f"{source.data} has no ChartQA: looked for ChartQA_TEST.tsv, {', '.join(_HALVES.values())}."
        )
    rows = [
        {**row, "id": f"{half}/{number}", "half": half}
        for half, path in files.items()
        for number, row in enumerate(read_list(path, None, ("imgname", "query", "label")) if path else [])
    ]
    images = locate_images(source, {row["id"]: row["imgname"] for row in rows}, ("png", "test/png", "images"))
    for row in rows:
        yield {
            **row,
            "question": row["query"],
            "answer": row["label"],
            "picture": row["imgname"],
            "image": images[row["id"]],
        }


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score by relaxed accuracy, by the half with human and the one with augmented questions."""
    return score_each(questions, predictions, scorer, relaxed, ("half",), metric="relaxed accuracy")


BENCHMARK = Benchmark(
    name="chartqa",
    hub="lmms-lab/ChartQA",
    split="test",
    sizes={"test": (2_500,)},
    styles=STYLES,
    scorers=("relaxed",),
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
)
