"""OCRBench: the original JSON, the Hugging Face rows and VLMEvalKit's TSV; 1,000 questions, a point for each.

Sources: MultimodalOCR `OCRBench/example.py`, lmms-eval `tasks/ocrbench/utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions
from basic_lite.evaluation.files import Source, locate_images, main_file, read_list, table_rows
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.rules import Rule, score_each
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import find_tsv, listed, tsv_table

STYLES = {"llava": 128}
_FORMULAS = ("HME100k", "Handwritten Mathematical Expression Recognition")


def _holds(text: str, question: Question, *, lowered: bool) -> float:
    """Return whether an answer occurs in the text; of formulas without space and with their case."""
    if question.fields["formula"]:
        said = (text.lower() if lowered else text).strip().replace("\n", " ").replace(" ", "")
        true = [answer.strip().replace("\n", " ").replace(" ", "") for answer in question.answers]
    else:
        said = text.lower().strip().replace("\n", " ")
        true = [answer.lower().strip().replace("\n", " ") for answer in question.answers]
    return float(any(answer in said for answer in true))


RULES: dict[str, Rule] = {
    "ocrbench": lambda text, question: _holds(text, question, lowered=False),
    # lmms-eval puts a formula in lower case, but not the answer it looks for.
    "ocrbench_lmms": lambda text, question: _holds(text, question, lowered=True),
}


def _question(row: Mapping[str, Any], style: str) -> Question:
    kind = str(row["kind"])
    return Question(
        id=row["id"],
        text=str(row["question"]).strip(),
        image=row["image"],
        max_new_tokens=STYLES[style],
        answers=tuple(map(str, row["answers"])),
        category=kind,
        picture=row.get("picture"),
        fields={"kind": kind, "formula": kind in _FORMULAS or row.get("dataset") in _FORMULAS},
    )


def _answers(answer: Any) -> list[str]:
    return answer if isinstance(answer, list) else [str(answer)]


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    needs = ("dataset", "question", "question_type", "answer")
    for number, row in enumerate(table_rows(source, None, "test", needs)):
        answers = _answers(row["answer"])
        yield {**row, "id": str(number), "kind": row["question_type"], "answers": answers}


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    tsv = find_tsv(source, "OCRBench.tsv")
    if tsv is not None:
        for row in tsv_table(source, tsv, ("question", "answer", "category"), "OCRBench"):
            answers = listed(str(row["answer"]))
            yield {**row, "id": row["index"], "kind": row["category"], "answers": answers}
        return
    path = main_file(source, "OCRBench questions", "OCRBench.json", "FullTest.json", "OCRBench.tsv")
    rows = read_list(path, None, ("image_path", "question", "answers", "type"))
    files = {str(number): row["image_path"] for number, row in enumerate(rows)}
    images = locate_images(source, files, ("OCRBench_Images", "images"))
    for number, row in enumerate(rows):
        yield {
            **row,
            "id": str(number),
            "kind": row["type"],
            "dataset": row.get("dataset_name"),
            "answers": _answers(row["answers"]),
            "picture": row["image_path"],
            "image": images[str(number)],
        }


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score by whether an answer occurs; the figures hold the points that are usually reported."""
    made = score_each(questions, predictions, scorer, RULES[scorer], ("kind",))
    made_points: dict[str, Any] = {"points": int(sum(made.items.values())), "of": len(questions)}
    return score_each(questions, predictions, scorer, RULES[scorer], ("kind",), figures=made_points)


BENCHMARK = Benchmark(
    name="ocrbench",
    hub="echo840/OCRBench",
    split="test",
    sizes={"test": (1_000,)},
    styles=STYLES,
    scorers=tuple(RULES),
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
)
