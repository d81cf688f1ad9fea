"""SEED-Bench: the official JSON, LLaVA's question file for the frames of videos, and the Hugging Face rows.

Sources: LLaVA `scripts/convert_seed_for_submission.py`, lmms-eval `tasks/seedbench/utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.choices import LETTER_SCORERS, exact_match, extract_option
from basic_lite.evaluation.files import (
    Source,
    find_optional,
    locate_images,
    main_file,
    read_json,
    read_json_lines,
    require,
    write_text,
)
from basic_lite.evaluation.question import LETTER, Question, check_style
from basic_lite.evaluation.statistics import Score, mean_by, percent

STYLES = {"llava": 128, "lmms": 128}  # the same in both
SCORERS = (*LETTER_SCORERS, "exact_matching")
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_NEEDS = ("question_id", "question", "answer", "data_type", "question_type_id", *_CHOICES)
_TYPES = (
    *("Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location"),
    *("Instances Counting", "Spatial Relation", "Instance Interaction", "Visual Reasoning"),
    *("Text Understanding", "Action Recognition", "Action Prediction", "Procedure Understanding"),
)


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the questions; the splits `image` and `video` are parts of `test`. A video is asked by one frame.

    Raises:
        ValueError: If files are missing or damaged, or the style is unknown.
    """
    check_style(style, STYLES, "seed")
    rows = files.rows_of(source, _hub_rows, _file_rows)
    return [_question(row, style) for row in rows]


def _question(row: Mapping[str, Any], style: str) -> Question:
    choices = {letter: str(row[name]) for letter, name in zip("ABCD", _CHOICES, strict=True)}
    options = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
    kind = int(row["question_type_id"])
    return Question(
        id=row["id"],
        text=f"{row['question']}\n{options}\n{LETTER}",
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=row["answer"],
        choices=choices,
        category=_TYPES[kind - 1] if 1 <= kind <= len(_TYPES) else f"type {kind}",
        fields={"data_type": row["data_type"], "question_id": row["question_id"]},
    )


def _wanted(source: Source, row: Mapping[str, Any]) -> bool:
    return source.split == "test" or row["data_type"] == source.split


def _file_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, "SEED-Bench questions", "SEED-Bench.json", "seed_bench.json")
    content = read_json(path)
    require(content, ["questions"], str(path))
    rows = content["questions"]
    for number, row in enumerate(rows):
        require(row, (*_NEEDS, "data_id"), f"{path} question {number}")
    rows = [{**row, "id": str(row["question_id"])} for row in rows if _wanted(source, row)]
    images = locate_images(source, _picture_names(source, rows), (".", "images"))
    return [{**row, "image": images[row["id"]]} for row in rows]


def _picture_names(source: Source, rows: Sequence[Mapping[str, Any]]) -> dict[int | str, str | None]:
    """Return id -> picture; only LLaVA's file names the frames that were taken from the videos."""
    if not source.with_images:
        return {row["id"]: None for row in rows}
    asked = find_optional(source, "llava-seed-bench.jsonl")
    named = {str(row["question_id"]): row["image"] for row in read_json_lines(asked)} if asked else {}
    names = {
        row["id"]: named.get(row["id"])
        or (f"SEED-Bench-image/{row['data_id']}" if row["data_type"] == "image" else None)
        for row in rows
    }
    nameless = [identity for identity, name in names.items() if name is None]
    if nameless:
        raise ValueError(
            f"{source.data}: {len(nameless)} video questions have no frame (first: {nameless[0]}): put "
            "LLaVA's llava-seed-bench.jsonl there, which names the frames, or use the split image."
        )
    return names


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    for row in files.rows(source.data, None, "test", _NEEDS, with_images=source.with_images):
        if _wanted(source, row):
            image = row["image"]
            yield {**row, "id": str(row["question_id"]), "image": image and replace(image, of_several=True)}


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score letters, by question type and by image or video."""
    items: dict[int | str, float] = {}
    unparsed = 0
    for question in questions:
        text = predictions.get(question.id)
        if text is None:
            items[question.id] = 0.0
        elif scorer == "exact_matching":
            letter = extract_option(text, question.choices, scorer)
            items[question.id] = float(letter == question.answer)
            unparsed += letter is None
        else:
            items[question.id] = float(exact_match(text, str(question.answer), scorer))
            unparsed += not any(exact_match(text, letter, scorer) for letter in question.choices)
    by_id = {question.id: question for question in questions}
    return Score(
        metric="accuracy",
        scorer=scorer,
        value=percent(items),
        items=items,
        categories={question.id: question.category for question in questions},
        right_wrong=True,
        breakdown={
            "question_type": mean_by(items, lambda item: by_id[item].category),
            "data_type": mean_by(items, lambda item: by_id[item].fields["data_type"]),
        },
        unparsed=unparsed,
        missing=len(questions) - len(predictions),
    )


def export(questions: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the JSON lines that the leaderboard reads."""
    rows = (
        {"question_id": question.fields["question_id"], "prediction": predictions.get(question.id, "")}
        for question in questions
    )
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
