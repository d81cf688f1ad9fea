"""ChartQA: the original JSON files, the Hugging Face rows and VLMEvalKit's TSV, by relaxed accuracy.

Sources: ChartQA (arXiv 2203.10244, end of section 5.1), lmms-eval `tasks/chartqa/utils.py`.
"""

from __future__ import annotations

from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Row, scored_by
from basic_lite.evaluation.files import Source, find_optional, read_list, table_reader, with_pictures
from basic_lite.evaluation.question import SHORT, Question, question_of
from basic_lite.evaluation.tsv import listed, tsv_reader

STYLES = {"llava": SHORT, "lmms": "Answer the question with a single word."}
_NEEDS = ("question", "answer", "split")  # columns of VLMEvalKit's table
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


def _first(answer: Any) -> str:
    """Return the one answer of a cell, whether it is a list, a list in words, or the answer itself."""
    return str(answer[0]) if isinstance(answer, list) else listed(str(answer))[0]


def _question(row: Row, style: str) -> Question:
    half = "human" if "human" in str(row["half"]) else "augmented"
    asked = {**row, "half": half}
    text = f"{row['question']}\n{STYLES[style]}"
    return question_of(asked, text, answer=_first(row["answer"]), category="half", fields=("half",))


def _json_rows(source: Source) -> list[dict[str, Any]]:
    files = {half: find_optional(source, name) for half, name in _HALVES.items()}
    if not any(files.values()):
        raise ValueError(
            f"{source.data} has no ChartQA: looked for ChartQA_TEST.tsv, {', '.join(_HALVES.values())}."
        )
    rows = []
    for half, path in files.items():
        for number, row in enumerate(read_list(path, None, ("imgname", "query", "label")) if path else []):
            asked = {"id": f"{half}/{number}", "half": half, "question": row["query"]}
            rows.append({**asked, "answer": [row["label"]], "file": row["imgname"]})
    return with_pictures(source, rows, ("png", "test/png", "images"))


BENCHMARK = Benchmark(
    name="chartqa",
    hub="lmms-lab/ChartQA",
    sizes={"test": (2_500,)},
    rows=(
        table_reader("question", "answer", "type", half="type"),
        tsv_reader("ChartQA", "ChartQA_TEST.tsv", needs=_NEEDS, otherwise=_json_rows, half="split"),
    ),
    question=_question,
    styles=STYLES,
    scorers=("relaxed",),
    score=scored_by({"relaxed": relaxed}, "half", metric="relaxed accuracy"),
)
