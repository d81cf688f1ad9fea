"""OCRBench: the original JSON, the Hugging Face rows and VLMEvalKit's TSV; 1,000 questions, a point for each.

Sources: MultimodalOCR `OCRBench/example.py` (rule) and `OCRBench/scripts/LLaVA1_5.py` (prompt), lmms-eval
`tasks/ocrbench/utils.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, Rule, score_each
from basic_lite.evaluation.files import Source, main_file, read_list, table_reader, with_pictures
from basic_lite.evaluation.question import SHORT, Question, question_of
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import listed, tsv_reader

STYLES = {"llava": f"\n{SHORT}", "lmms": ""}
_NEEDS = ("question", "answer", "category")  # columns of VLMEvalKit's table
_FORMULAS = ("HME100k", "Handwritten Mathematical Expression Recognition")
_HALF_WIDTH = {0xFEE0 + code: code for code in range(0x21, 0x7F)} | {0x3000: 0x20}


def holds(text: str, question: Question) -> float:
    """Return whether an answer occurs in the text; of formulas without space and with their case."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if question.fields["formula"] else text.lower()

    return float(any(plain(answer) in plain(text) for answer in question.answers))


def _holds_folded(text: str, question: Question) -> float:
    """Fold full-width letters first, except in formulas, as lmms-eval does by now."""
    if question.fields["formula"]:
        return holds(text, question)
    folded = tuple(answer.translate(_HALF_WIDTH) for answer in question.answers)
    return holds(text.translate(_HALF_WIDTH), replace(question, answers=folded))


RULES: dict[str, Rule] = {"ocrbench": holds, "ocrbench_lmms": _holds_folded}


def _question(row: Row, style: str) -> Question:
    kind, answer = str(row["kind"]), row["answer"]
    if not isinstance(answer, list):
        answer = listed(str(answer)) if "index" in row else [answer]
    formula = kind in _FORMULAS or row.get("dataset") in _FORMULAS
    return question_of(
        {**row, "kind": kind, "formula": formula},
        str(row["question"]).strip() + STYLES[style],
        answers=tuple(map(str, answer)),
        category="kind",
        fields=("kind", "formula"),
    )


def _json_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, "OCRBench questions", "OCRBench.json", "FullTest.json", "OCRBench.tsv")
    rows = []
    for number, row in enumerate(read_list(path, None, ("image_path", "question", "answers", "type"))):
        asked = {"id": str(number), "kind": row["type"], "dataset": row.get("dataset_name")}
        rows.append({**row, **asked, "answer": row["answers"], "file": row["image_path"]})
    return with_pictures(source, rows, ("OCRBench_Images", "images"))


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score by whether an answer occurs; the figures hold the points that are usually reported."""
    each = score_each(questions, predictions, scorer, RULES[scorer], ("kind",))
    return replace(each, figures={"points": int(sum(each.items.values())), "of": len(questions)})


BENCHMARK = Benchmark(
    name="ocrbench",
    hub="echo840/OCRBench",
    sizes={"test": (1_000,)},
    rows=(
        table_reader("dataset", "question", "question_type", "answer", kind="question_type"),
        tsv_reader("OCRBench", "OCRBench.tsv", needs=_NEEDS, otherwise=_json_rows, kind="category"),
    ),
    question=_question,
    styles=STYLES,
    scorers=tuple(RULES),
    score=score,
)
