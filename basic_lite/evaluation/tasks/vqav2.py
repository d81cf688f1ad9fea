"""VQAv2: the official JSON files, LLaVA's test question files and the Hugging Face rows.

Sources: GT-Vision-Lab/VQA (files, scorer), LLaVA `scripts/convert_vqav2_for_submission.py` (submission),
lmms-eval `tasks/vqav2`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.files import (
    Source,
    find,
    find_optional,
    locate_images,
    main_file,
    read_json,
    read_json_lines,
    require,
    write_text,
)
from basic_lite.evaluation.open_answers import normalize, soft_score
from basic_lite.evaluation.question import SHORT, Question, check_style
from basic_lite.evaluation.statistics import Score

STYLES = {"llava": 128, "lmms": 16}  # one prompt; lmms-eval lets the model write less
SCORERS = ("vqa_official_on_m4c", "vqa_official", "vqa_lmms", "vqa_m4c")
_SPLITS = {
    "val": ("val2014", "validation"),
    "test-dev": ("test-dev2015", "testdev"),
    "test": ("test2015", "test"),
}
_NOTE = (
    "val2014 overlaps with the train2017 pictures of the LLaVA-1.5 instruction mix and is no test-dev "
    "number: compare it only with other val numbers"
)


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the questions of a split, with their human answers where the split has public ones.

    Raises:
        ValueError: If files are missing, damaged or do not belong together, or the style is unknown.
    """
    check_style(style, STYLES, "vqav2")
    rows = files.rows_of(source, _hub_rows, _file_rows, key="question_id")
    return [
        Question(
            id=row["question_id"],
            text=f"{row['question']}\n{SHORT}",
            image=row["image"],
            max_new_tokens=STYLES[style],
            answer=row.get("multiple_choice_answer"),
            answers=tuple(answer["answer"] for answer in row.get("answers") or ()),
            category=row.get("answer_type") or "",
            fields={name: row.get(name) for name in ("answer_type", "question_type", "image_id")},
        )
        for row in rows
    ]


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    needs = ["question_id", "question"]
    return files.rows(source.data, None, _SPLITS[source.split][1], needs, with_images=source.with_images)


def _file_rows(source: Source) -> list[dict[str, Any]]:
    subset = _SPLITS[source.split][0]
    lines = None if source.split == "val" else find_optional(source, f"llava_vqav2_mscoco_{subset}.jsonl")
    if lines:
        asked = [_of_llava(row, f"{lines} line {n}") for n, row in enumerate(read_json_lines(lines), start=1)]
    else:
        patterns = [f"v2_OpenEnded_mscoco_{subset}_questions.json", "vqav2_questions.json"]
        path = main_file(source, f"VQAv2 questions of {source.split}", *patterns)
        content = read_json(path)
        require(content, ["questions"], str(path))
        asked = content["questions"]
        for number, row in enumerate(asked):
            require(row, ("question_id", "question", "image_id"), f"{path} question {number}")
    labels = _annotations(source, subset) if source.split == "val" else {}
    unlabelled = [row["question_id"] for row in asked if labels and row["question_id"] not in labels]
    if unlabelled:
        raise ValueError(
            f"{source.data}: {len(unlabelled)} questions have no annotation (first: {unlabelled[0]}): the "
            "two files do not belong together."
        )
    year = "COCO_val2014" if source.split == "val" else "COCO_test2015"
    names = {row["question_id"]: row.get("file") or f"{year}_{row['image_id']:012d}.jpg" for row in asked}
    images = locate_images(source, names, (year.removeprefix("COCO_"), "images"))
    return [
        {**labels.get(row["question_id"], {}), **row, "image": images[row["question_id"]]} for row in asked
    ]


def _of_llava(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a row of LLaVA's question file as the official file has it."""
    require(row, ("question_id", "image", "text"), where)
    return {
        "question_id": row["question_id"],
        "question": row["text"].removesuffix(f"\n{SHORT}"),
        "file": row["image"],
    }


def _annotations(source: Source, subset: str) -> dict[int, dict[str, Any]]:
    path = find(source, "VQAv2 annotations", f"v2_mscoco_{subset}_annotations.json", "vqav2_annotations.json")
    content = read_json(path)
    require(content, ["annotations"], str(path))
    for number, row in enumerate(content["annotations"]):
        require(
            row, ("question_id", "answers", "answer_type", "question_type"), f"{path} annotation {number}"
        )
    return {row["question_id"]: row for row in content["annotations"]}


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score answers over the human answers, by answer type and question type."""
    return soft_score(questions, predictions, scorer, ("answer_type", "question_type"), (_NOTE,))


def export(questions: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the server's JSON list: all questions of the test file, m4c-normalised, `""` if unanswered."""
    rows = [
        {"question_id": question.id, "answer": normalize(predictions.get(question.id, ""), "m4c")}
        for question in questions
    ]
    return write_text(path, json.dumps(rows, ensure_ascii=False))
