"""VizWiz-VQA: the official JSON files and the Hugging Face rows.

Sources: the VizWiz challenge's evaluation (`vizwiz_official`), LLaVA
`scripts/convert_vizwiz_for_submission.py`, lmms-eval `tasks/vizwiz_vqa` (scorer `vqa_m4c`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.files import Source, locate_images, main_file, read_json, require, write_text
from basic_lite.evaluation.open_answers import normalize, soft_accuracies, soft_score
from basic_lite.evaluation.question import SHORT, UNANSWERABLE, Question, check_style
from basic_lite.evaluation.statistics import Score, percent

# lmms-eval's `capitalize` puts all further letters of the question in lower case.
STYLES = {"llava": lambda question: question, "lmms": str.capitalize}
SCORERS = ("vizwiz_official", "vqa_m4c")
MAX_NEW_TOKENS = 128


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the questions of a split; the id is the picture's name without its ending.

    Raises:
        ValueError: If files are missing or damaged, or the style is unknown.
    """
    check_style(style, STYLES, "vizwiz")
    rows = files.rows_of(source, _hub_rows, _file_rows)
    return [
        Question(
            id=row["id"],
            text=f"{STYLES[style](row['question'])}\n{UNANSWERABLE}\n{SHORT}",
            image=row["image"],
            max_new_tokens=MAX_NEW_TOKENS,
            answers=tuple(row["answers"]),
            category=row["answer_type"] or "",
            fields={"answer_type": row["answer_type"], "answerable": row["answerable"]},
        )
        for row in rows
    ]


def _file_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, f"VizWiz {source.split}", f"{source.split}.json", f"vizwiz_{source.split}.json")
    rows = read_json(path)
    for number, row in enumerate(rows):
        require(row, ("image", "question"), f"{path} question {number}")
    images = locate_images(source, {row["image"]: row["image"] for row in rows}, (source.split, "images"))
    return [
        {
            "id": Path(row["image"]).stem,
            "question": row["question"],
            "image": images[row["image"]],
            "answers": [answer["answer"] for answer in row.get("answers", ())],
            "answer_type": row.get("answer_type"),
            "answerable": bool(row.get("answerable", True)),
        }
        for row in rows
    ]


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    needs = ("question_id", "question", "answers", "category")
    for row in files.rows(source.data, None, source.split, needs, with_images=source.with_images):
        yield {
            "id": row["question_id"],
            "question": row["question"],
            "image": row["image"],
            "answers": row["answers"] or [],
            "answer_type": row["category"],
            "answerable": row["category"] != "unanswerable",
        }


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score answers over the human answers; both scorers and the unanswerable questions are reported."""
    result = soft_score(questions, predictions, scorer, ("answer_type",))
    figures = {name: percent(soft_accuracies(questions, predictions, name)) for name in SCORERS}
    unanswerable = {q.id: result.items[q.id] for q in questions if not q.fields["answerable"]}
    if unanswerable:
        figures["unanswerable"] = percent(unanswerable)
    return replace(result, figures=figures)


def export(questions: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the server's JSON list: every picture, m4c-normalised.

    Raises:
        ValueError: If a question has no prediction.
    """
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} questions have no prediction (first: {missing[0]}): the VizWiz server wants all."
        )
    rows = [
        {"image": f"{question.id}.jpg", "answer": normalize(predictions[question.id], "m4c")}
        for question in questions
    ]
    return write_text(path, json.dumps(rows, ensure_ascii=False))
