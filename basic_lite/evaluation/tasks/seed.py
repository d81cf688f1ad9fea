"""SEED-Bench: the official JSON, LLaVA's question file for the frames of videos, and the Hugging Face rows.

Sources: LLaVA `scripts/convert_seed_for_submission.py`, lmms-eval `tasks/seedbench/utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, published
from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.files import (
    Source,
    find_optional,
    locate_images,
    main_file,
    read_json_lines,
    read_list,
    table_rows,
)
from basic_lite.evaluation.question import LETTER, Id, Question
from basic_lite.evaluation.statistics import Score, by_field, score_of
from basic_lite.evaluation.tsv import find_tsv, tsv_table
from basic_lite.files import write_text

STYLES = {"llava": 128, "lmms": 128}  # the same in both
EQUAL: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda prediction, letter: prediction == letter,  # LLaVA `convert_seed_for_submission.py`
    "first_character": lambda prediction, letter: prediction.strip()[:1] == letter,  # lmms-eval
}
SCORERS = (*EQUAL, "exact_matching")
ALL = 19_242
"""Questions that LLaVA-1.5's 58.6 was measured on. The 17,990 of the Hugging Face rows have fewer videos."""

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_NEEDS = ("question_id", "question", "answer", "data_type", "question_type_id", *_CHOICES)
_TYPES = (
    *("Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location"),
    *("Instances Counting", "Spatial Relation", "Instance Interaction", "Visual Reasoning"),
    *("Text Understanding", "Action Recognition", "Action Prediction", "Procedure Understanding"),
)


def _question(row: Mapping[str, Any], style: str) -> Question:
    choices = {letter: str(row[name]) for letter, name in zip("ABCD", _CHOICES, strict=True)}
    options = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
    kind = int(row["question_type_id"])
    name = _TYPES[kind - 1] if 1 <= kind <= len(_TYPES) else f"type {kind}"
    return Question(
        id=row["id"],
        text=f"{row['question']}\n{options}\n{LETTER}",
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=row["answer"],
        choices=choices,
        category=name,
        picture=row.get("data_id"),
        fields={"data_type": row["data_type"], "question_type": name, "question_id": row["question_id"]},
    )


def _wanted(source: Source, row: Mapping[str, Any]) -> bool:
    return source.split == "test" or row["data_type"] == source.split


def _tsv_rows(source: Source, path: Path) -> Iterator[dict[str, Any]]:
    """Read VLMEvalKit's table, which holds the questions about images alone."""
    if source.split != "image":
        raise ValueError(f"{path} holds the questions about images: use --split image.")
    for row in tsv_table(source, path, ("question", "A", "B", "C", "D", "answer", "category"), "SEED-Bench"):
        name = str(row["category"]).replace("_", " ").lower()
        kinds = [number for number, kind in enumerate(_TYPES, start=1) if kind.lower() == name]
        yield {
            **row,
            **{choice: row[letter] for choice, letter in zip(_CHOICES, "ABCD", strict=True)},
            "id": row["index"],
            "question_id": row["index"],
            "data_id": row["picture"],
            "data_type": "image",
            "question_type_id": kinds[0] if kinds else 0,
        }


def _file_rows(source: Source) -> list[dict[str, Any]]:
    tsv = find_tsv(source, "SEEDBench_IMG.tsv")
    if tsv is not None:
        return list(_tsv_rows(source, tsv))
    path = main_file(source, "SEED-Bench questions", "SEED-Bench.json", "seed_bench.json")
    rows = read_list(path, "questions", (*_NEEDS, "data_id"))
    rows = [{**row, "id": str(row["question_id"])} for row in rows if _wanted(source, row)]
    images = locate_images(source, _picture_names(source, rows), (".", "images"))
    return [{**row, "image": images[row["id"]]} for row in rows]


def _picture_names(source: Source, rows: Sequence[Mapping[str, Any]]) -> dict[Id, str | None]:
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


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    for row in table_rows(source, None, "test", _NEEDS):
        if _wanted(source, row):
            image = row["image"]
            yield {**row, "id": str(row["question_id"]), "image": image and replace(image, of_several=True)}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score letters, by question type and by image or video."""
    items: dict[Id, float] = {}
    unparsed = 0
    for question in questions:
        text = predictions.get(question.id)
        if text is None:
            items[question.id] = 0.0
            continue
        if scorer in EQUAL:
            letter = next((letter for letter in question.choices if EQUAL[scorer](text, letter)), None)
        else:
            letter = extract_option(text, question.choices, scorer)
        items[question.id] = float(letter == question.answer)
        unparsed += letter is None
    return score_of(
        questions,
        predictions,
        items,
        scorer=scorer,
        right_wrong=True,
        groupings=by_field("question_type", "data_type"),
        unparsed=unparsed,
    )


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the JSON lines that the leaderboard reads."""
    rows = (
        {"question_id": question.fields["question_id"], "prediction": predictions.get(question.id, "")}
        for question in questions
    )
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


BENCHMARK = Benchmark(
    name="seed",
    hub="lmms-lab/SEED-Bench",
    split="test",
    sizes={"test": (17_990, ALL), "image": (14_233,), "video": (3_757, 5_009)},
    styles=STYLES,
    scorers=SCORERS,
    published=published(58.6, 61.6, 60.1, 61.3),
    measured_on="all 19,242 questions, images and videos",
    of_size={
        ALL: (published(58.6, 61.6, 60.1, 61.3), "all 19,242 questions, images and videos"),
        14_233: ({"LLaVA-1.5-7B": 66.1}, "the 14,233 questions about images"),
    },
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
    export=export,
    submission="submission.jsonl",
    aliases=("seed-bench",),
)
