"""VizWiz-VQA: the official JSON files and the Hugging Face rows.

Sources: the VizWiz challenge's `vqaEval.py` (`vizwiz_official`), LLaVA's question file (prompt) and
`scripts/convert_vizwiz_for_submission.py`, lmms-eval `tasks/vizwiz_vqa` (scorer `vqa_m4c`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, published
from basic_lite.evaluation.files import Source, main_file, read_list, submission, table_reader, with_pictures
from basic_lite.evaluation.open_answers import normalize, soft_accuracies, soft_score
from basic_lite.evaluation.question import SAME_STYLES, SHORT, Question, question_of
from basic_lite.evaluation.statistics import Score, percent
from basic_lite.evaluation.tsv import listed, tsv_reader

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
SCORERS = ("vizwiz_official", "vqa_m4c")


def _question(row: Row, style: str) -> Question:
    kind = row.get("answer_type")
    given = listed(str(row["answer"])) if "index" in row else row["answers"] or ()
    answers = [answer["answer"] if isinstance(answer, dict) else answer for answer in given]
    return question_of(
        {**row, "answerable": bool(row.get("answerable", kind != "unanswerable"))},
        f"{row['question'].capitalize()}\n{UNANSWERABLE}\n{SHORT}",  # all but the first in lower case
        answers=tuple(answers),
        category="answer_type",
        picture=None,  # each has one question
        fields=("answer_type", "answerable"),
    )


def _json_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, f"VizWiz {source.split}", f"{source.split}.json", f"vizwiz_{source.split}.json")
    rows = [
        {"answers": [], "answerable": True, **row, "id": Path(row["image"]).stem, "file": row["image"]}
        for row in read_list(path, None, ("image", "question"))
    ]
    return with_pictures(source, rows, (source.split, "images"))


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score answers over the human answers; both scorers and the unanswerable questions are reported."""
    result = soft_score(questions, predictions, scorer, ("answer_type",))
    figures = {name: percent(soft_accuracies(questions, predictions, name)) for name in SCORERS}
    unanswerable = {q.id: result.items[q.id] for q in questions if not q.fields["answerable"]}
    if unanswerable:
        figures["unanswerable"] = percent(unanswerable)
    return replace(result, figures=figures)


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the server's JSON list, m4c-normalised; raises ValueError if a question has no prediction."""
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} questions have no prediction (first: {missing[0]}): the VizWiz server wants all."
        )
    return _written(questions, predictions, path)


_written = submission(lambda q, answer: {"image": f"{q.id}.jpg", "answer": normalize(answer, "m4c")})

BENCHMARK = Benchmark(
    name="vizwiz",
    hub="lmms-lab/VizWiz-VQA",
    sizes={"val": (4_319,), "test": (8_000,)},
    rows=(
        table_reader(
            *("question_id", "question", "answers", "category"), key="question_id", answer_type="category"
        ),
        tsv_reader("VizWiz", "VizWiz.tsv", split="val", otherwise=_json_rows),
    ),
    question=_question,
    styles=SAME_STYLES,
    scorers=SCORERS,
    score=score,
    published=published(50.0, 53.6, 47.8, 58.9, basic=52.5, on="test, scored by the server"),
    export=export,
    aliases=("vizwiz-vqa",),
)
