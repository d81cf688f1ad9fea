"""TextVQA: the official JSON with Rosetta's OCR tokens, and the Hugging Face rows.

LLaVA's prompt names the OCR tokens; without them LLaVA-1.5 loses about twelve points. Sources: LLaVA
`llava/eval/eval_textvqa.py` and `m4c_evaluator.py`, lmms-eval `tasks/textvqa`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.files import Source, find, locate_images, main_file, read_json, require, write_text
from basic_lite.evaluation.open_answers import normalize, soft_score
from basic_lite.evaluation.question import SHORT, Question, check_style
from basic_lite.evaluation.statistics import Score

SCORERS = ("vqa_m4c", "vqa_official_on_m4c", "vqa_official", "vqa_lmms")
_NEEDS = ("question_id", "question", "image_id")


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _with_tokens(question: str, row: Mapping[str, Any]) -> str:
    return f"{question}\nReference OCR token: {', '.join(row['ocr_tokens'])}\n{SHORT}"


STYLES: dict[str, tuple[Callable[[Mapping[str, Any]], str], bool]] = {
    "llava": (lambda row: _with_tokens(_first_upper(row["question"]), row), True),
    "llava_no_ocr": (lambda row: f"{_first_upper(row['question'])}\n{SHORT}", False),
    # lmms-eval's `capitalize` puts all further letters in lower case.
    "lmms": (lambda row: f"{row['question'].capitalize()}\n{SHORT}", False),
    "lmms_ocr": (lambda row: _with_tokens(row["question"].capitalize(), row), True),
}
"""Style -> its words, and whether they need the OCR tokens."""

MAX_NEW_TOKENS = 128


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the questions of a split; questions are told apart by question id, as pictures come twice.

    Raises:
        ValueError: If files are missing or damaged, or the style is unknown.
    """
    check_style(style, STYLES, "textvqa")
    render, with_tokens = STYLES[style]
    rows = files.rows_of(source, _hub_rows, partial(_file_rows, with_tokens=with_tokens), key="question_id")
    return [
        Question(
            id=row["question_id"],
            text=render(row),
            image=row["image"],
            max_new_tokens=MAX_NEW_TOKENS,
            answers=tuple(row.get("answers") or ()),
            category=(row.get("image_classes") or [""])[0],
            fields={"image_id": row["image_id"], "image_class": (row.get("image_classes") or [""])[0]},
        )
        for row in rows
    ]


def _file_rows(source: Source, with_tokens: bool) -> list[dict[str, Any]]:
    split = source.split
    path = main_file(source, f"TextVQA {split}", f"TextVQA_0.5.1_{split}.json", f"textvqa_{split}.json")
    content = read_json(path)
    require(content, ["data"], str(path))
    rows = content["data"]
    for number, row in enumerate(rows):
        require(row, _NEEDS, f"{path} question {number}")
    tokens = _tokens(source, {row["image_id"] for row in rows}) if with_tokens else {}
    names = {row["question_id"]: f"{row['image_id']}.jpg" for row in rows}
    images = locate_images(source, names, ("test_images" if split == "test" else "train_images", "images"))
    return [
        {**row, "image": images[row["question_id"]], "ocr_tokens": tokens.get(row["image_id"], [])}
        for row in rows
    ]


def _tokens(source: Source, pictures: set[str]) -> dict[str, list[str]]:
    """Return picture -> OCR tokens."""
    path = find(
        source,
        "OCR tokens, which LLaVA's prompt needs (or use --prompt-style llava_no_ocr)",
        f"TextVQA_Rosetta_OCR_v0.2_{source.split}.json",
        "textvqa_ocr.json",
    )
    content = read_json(path)
    require(content, ["data"], str(path))
    for number, row in enumerate(content["data"]):
        require(row, ("image_id", "ocr_tokens"), f"{path} picture {number}")
    tokens = {row["image_id"]: row["ocr_tokens"] for row in content["data"]}
    absent = sorted(pictures - set(tokens))
    if absent:
        raise ValueError(
            f"{path} lacks the tokens of {len(absent)} pictures (first: {absent[0]}): it is of another split."
        )
    return tokens


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    split = {"val": "validation"}.get(source.split, source.split)
    return files.rows(source.data, None, split, (*_NEEDS, "ocr_tokens"), with_images=source.with_images)


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score answers over the human answers, by class of the picture."""
    return soft_score(questions, predictions, scorer, ("image_class",))


def export(questions: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the JSON list that the challenge's server reads."""
    rows = [
        {"question_id": question.id, "answer": normalize(predictions.get(question.id, ""), "m4c")}
        for question in questions
    ]
    return write_text(path, json.dumps(rows, ensure_ascii=False))
