"""GQA testdev-balanced: the official JSON and the Hugging Face rows with their separate pictures.

Sources: GQA `eval.py` (breakdowns), LLaVA `scripts/convert_gqa_for_eval.py` (submission), lmms-eval
`tasks/gqa`. The parts of the official evaluation that need scene graphs have no data for testdev.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.data import hub
from basic_lite.evaluation import files
from basic_lite.evaluation.choices import GQA_SCORERS, exact_match, gqa_submission
from basic_lite.evaluation.files import Source, locate_images, main_file, read_keyed, write_text
from basic_lite.evaluation.question import SHORT, Question, StoredImage, check_style
from basic_lite.evaluation.statistics import Score, mean_by, percent

STYLES = {"llava": 128, "lmms": 16}  # one prompt; lmms-eval lets the model write less
SCORERS = GQA_SCORERS
_NEEDS = ("question", "imageId", "answer", "isBalanced", "types")


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the balanced questions of testdev.

    Raises:
        ValueError: If files are missing or damaged, or the style is unknown.
    """
    check_style(style, STYLES, "gqa")
    rows = files.rows_of(source, _hub_rows, _file_rows)
    return [
        Question(
            id=row["id"],
            text=f"{row['question']}\n{SHORT}",
            image=row["image"],
            max_new_tokens=STYLES[style],
            answer=row["answer"],
            category=row["types"]["structural"],
            fields={
                "structural": row["types"]["structural"],
                "semantic": row["types"]["semantic"],
                "kind": "open" if row["types"]["structural"] == "query" else "binary",
                "words": str(len(row["question"].split())),
                "steps": str(_steps(row.get("semantic") or [])),
            },
        )
        for row in rows
        if row["isBalanced"]
    ]


def _steps(program: Sequence[Mapping[str, Any]]) -> int:
    """Return the reasoning steps of a question; the last look-up of a name or of existence is none."""
    final = ("exist", "query: name", "choose name")
    steps = (f"{step['operation']}: {step['argument']}" for step in program)
    return sum(not any(name in step for name in final) for step in steps)


def _file_rows(source: Source) -> list[dict[str, Any]]:
    patterns = ("testdev_balanced_questions.json", "gqa_testdev_balanced_questions.json")
    path = main_file(source, "GQA questions", *patterns)
    content = read_keyed(path, _NEEDS)
    names = {identity: f"{row['imageId']}.jpg" for identity, row in content.items()}
    images = locate_images(source, names, ("images", "../images"))
    return [{**row, "id": identity, "image": images[identity]} for identity, row in content.items()]


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    images: dict[str, StoredImage] = {}
    if source.with_images:
        table = hub.table(source.data, "testdev_balanced_images", "testdev")
        images = {name: StoredImage(table, number) for number, name in enumerate(table["id"])}
    for row in files.rows(
        source.data, "testdev_balanced_instructions", "testdev", ("id", *_NEEDS), image=None
    ):
        if images and row["imageId"] not in images:
            raise ValueError(
                f"{source.data}: question {row['id']} has no picture {row['imageId']} in the images."
            )
        yield {**row, "image": images.get(row["imageId"])}


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score by equality with the one answer, by kind, structure, meaning, words and reasoning steps."""
    items = {
        question.id: float(
            question.id in predictions and exact_match(predictions[question.id], str(question.answer), scorer)
        )
        for question in questions
    }
    by_id = {question.id: question for question in questions}
    groupings = ("kind", "structural", "semantic", "words", "steps")
    return Score(
        metric="accuracy",
        scorer=scorer,
        value=percent(items),
        items=items,
        categories={question.id: question.category for question in questions},
        right_wrong=True,
        breakdown={
            name: mean_by(items, lambda item, name=name: by_id[item].fields[name]) for name in groupings
        },
        unparsed=sum(not text.strip() for text in predictions.values()),
        missing=len(questions) - len(predictions),
    )


def export(questions: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the JSON list that GQA's evaluation reads."""
    rows = [
        {"questionId": str(question.id), "prediction": gqa_submission(predictions.get(question.id, ""))}
        for question in questions
    ]
    return write_text(path, json.dumps(rows, ensure_ascii=False))
