"""VizWiz-VQA: the official JSON files and the Hugging Face rows.

Sources: the VizWiz challenge's evaluation (`vizwiz_official`), LLaVA
`scripts/convert_vizwiz_for_submission.py`, lmms-eval `tasks/vizwiz_vqa` (scorer `vqa_m4c`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, published
from basic_lite.evaluation.files import Source, locate_images, main_file, read_list, table_rows, write_rows
from basic_lite.evaluation.open_answers import normalize, soft_accuracies, soft_score
from basic_lite.evaluation.question import SHORT, Question
from basic_lite.evaluation.statistics import Score, percent

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
# lmms-eval's `capitalize` puts all further letters of the question in lower case.
STYLES = {"llava": lambda question: question, "lmms": str.capitalize}
SCORERS = ("vizwiz_official", "vqa_m4c")
MAX_NEW_TOKENS = 128


def _question(row: Mapping[str, Any], style: str) -> Question:
    return Question(
        id=row["id"],
        text=f"{STYLES[style](row['question'])}\n{UNANSWERABLE}\n{SHORT}",
        image=row["image"],
        max_new_tokens=MAX_NEW_TOKENS,
        answers=tuple(row["answers"]),
        category=row["answer_type"] or "",
        fields={"answer_type": row["answer_type"], "answerable": row["answerable"]},
    )


def _file_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, f"VizWiz {source.split}", f"{source.split}.json", f"vizwiz_{source.split}.json")
    rows = read_list(path, None, ("image", "question"))
    images = locate_images(source, {row["image"]: row["image"] for row in rows}, (source.split, "images"))
    return [
        {
            "id": Path(row["image"]).stem,  # each picture has one question
            "question": row["question"],
            "image": images[row["image"]],
            "answers": [answer["answer"] for answer in row.get("answers", ())],
            "answer_type": row.get("answer_type"),
            "answerable": bool(row.get("answerable", True)),
        }
        for row in rows
    ]


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    for row in table_rows(source, None, source.split, ("question_id", "question", "answers", "category")):
        yield {
            "id": row["question_id"],
            "question": row["question"],
            "image": row["image"],
            "answers": row["answers"] or [],
            "answer_type": row["category"],
            "answerable": row["category"] != "unanswerable",
        }


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score answers over the human answers; both scorers and the unanswerable questions are reported."""
    result = soft_score(questions, predictions, scorer, ("answer_type",))
    figures = {name: percent(soft_accuracies(questions, predictions, name)) for name in SCORERS}
    unanswerable = {q.id: result.items[q.id] for q in questions if not q.fields["answerable"]}
    if unanswerable:
        figures["unanswerable"] = percent(unanswerable)
    return replace(result, figures=figures)


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the server's JSON list: every picture, m4c-normalised.

    Raises:
        ValueError: If a question has no prediction.
    """
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} questions have no prediction (first: {missing[0]}): the VizWiz server wants all."
        )
    rows = (
        {"image": f"{question.id}.jpg", "answer": normalize(predictions[question.id], "m4c")}
        for question in questions
    )
    return write_rows(path, rows)


BENCHMARK = Benchmark(
    name="vizwiz",
    hub="lmms-lab/VizWiz-VQA",
    split="val",
    sizes={"val": (4_319,), "test": (8_000,)},
    styles=STYLES,
    scorers=SCORERS,
    published=published(50.0, 53.6, 47.8, 58.9, basic=52.5),
    measured_on="test, scored by the server",
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
    export=export,
    aliases=("vizwiz-vqa",),
)
