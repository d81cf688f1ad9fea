"""TextVQA: the official JSON with Rosetta's OCR tokens, and the Hugging Face rows.

LLaVA's prompt names the OCR tokens; without them LLaVA-1.5 loses about twelve points. Sources: LLaVA
`llava/eval/eval_textvqa.py` and `m4c_evaluator.py`, lmms-eval `tasks/textvqa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, published
from basic_lite.evaluation.files import (
    Source,
    find,
    find_optional,
    locate_images,
    main_file,
    read_json_lines,
    read_list,
    table_rows,
)
from basic_lite.evaluation.open_answers import export_answers, soft_score
from basic_lite.evaluation.question import SHORT, Question
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import find_tsv, listed, tsv_table

SCORERS = ("vqa_m4c", "vqa_official_on_m4c", "vqa_official", "vqa_lmms")
_BEFORE_TOKENS = "Reference OCR token: "
_NEEDS = ("question_id", "question", "image_id")


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _with_tokens(question: str, row: Mapping[str, Any]) -> str:
    return f"{question}\n{_BEFORE_TOKENS}{', '.join(row['ocr_tokens'])}\n{SHORT}"


STYLES: dict[str, tuple[Callable[[Mapping[str, Any]], str], bool]] = {
    "llava": (lambda row: _with_tokens(_first_upper(row["question"]), row), True),
    "llava_no_ocr": (lambda row: f"{_first_upper(row['question'])}\n{SHORT}", False),
    # lmms-eval's `capitalize` puts all further letters in lower case.
    "lmms": (lambda row: f"{row['question'].capitalize()}\n{SHORT}", False),
    "lmms_ocr": (lambda row: _with_tokens(row["question"].capitalize(), row), True),
}
"""Style -> its words, and whether they need the OCR tokens."""

MAX_NEW_TOKENS = 128


def _question(row: Mapping[str, Any], style: str) -> Question:
    image_class = (row.get("image_classes") or [""])[0]
    return Question(
        id=row["question_id"],
        text=STYLES[style][0](row),
        image=row["image"],
        max_new_tokens=MAX_NEW_TOKENS,
        answers=tuple(row.get("answers") or ()),
        category=image_class,
        picture=row["image_id"],
        fields={"image_class": image_class},
    )


def _tsv_rows(source: Source, path: Path) -> list[dict[str, Any]]:
    """Read VLMEvalKit's table, which has no OCR tokens.

    Raises:
        ValueError: If the prompt needs them.
    """
    if STYLES[source.style][1]:
        raise ValueError(
            f"{path} holds no OCR tokens: use --prompt-style llava_no_ocr, or TextVQA's own files."
        )
    return [
        {
            **row,
            "question_id": row["index"],
            "image_id": row["picture"],
            "answers": listed(str(row["answer"])),
        }
        for row in tsv_table(source, path, ("question", "answer"), "TextVQA")
    ]


def _file_rows(source: Source) -> list[dict[str, Any]]:
    tsv = find_tsv(source, "TextVQA_VAL.tsv") if source.split == "val" else None
    if tsv is not None:
        return _tsv_rows(source, tsv)
    split = source.split
    path = main_file(source, f"TextVQA {split}", f"TextVQA_0.5.1_{split}.json", f"textvqa_{split}.json")
    rows = read_list(path, "data", _NEEDS)
    tokens = _tokens(source, {row["image_id"] for row in rows}) if STYLES[source.style][1] else {}
    names = {row["question_id"]: f"{row['image_id']}.jpg" for row in rows}
    images = locate_images(source, names, ("test_images" if split == "test" else "train_images", "images"))
    return [
        {**row, "image": images[row["question_id"]], "ocr_tokens": tokens.get(row["image_id"], [])}
        for row in rows
    ]


def _tokens(source: Source, pictures: set[str]) -> dict[str, list[str]]:
    """Return picture -> OCR tokens."""
    asked = find_optional(source, "llava_textvqa_val_v051_ocr.jsonl") if source.split == "val" else None
    if asked is not None:
        rows = read_json_lines(asked, ("image", "text"))
        tokens = {str(row["image"]).rpartition(".")[0]: _named(row["text"]) for row in rows}
        _check_tokens(asked, tokens, pictures)
        return tokens
    path = find(
        source,
        "OCR tokens, which LLaVA's prompt needs (or use --prompt-style llava_no_ocr)",
        f"TextVQA_Rosetta_OCR_v0.2_{source.split}.json",
        "textvqa_ocr.json",
    )
    tokens = {
        row["image_id"]: row["ocr_tokens"] for row in read_list(path, "data", ("image_id", "ocr_tokens"))
    }
    _check_tokens(path, tokens, pictures)
    return tokens


def _named(text: str) -> list[str]:
    """Return the tokens that one of LLaVA's prompts names."""
    named = text.rpartition(_BEFORE_TOKENS)[2].partition("\n")[0]
    return named.split(", ") if named else []


def _check_tokens(path: Path, tokens: Mapping[str, list[str]], pictures: set[str]) -> None:
    absent = sorted(pictures - set(tokens))
    if absent:
        raise ValueError(
            f"{path} lacks the tokens of {len(absent)} pictures (first: {absent[0]}): it is of another split."
        )


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    split = {"val": "validation"}.get(source.split, source.split)
    tokens = ("ocr_tokens",) if STYLES[source.style][1] else ()
    return table_rows(source, None, split, (*_NEEDS, *tokens))


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score answers over the human answers, by class of the picture."""
    return soft_score(questions, predictions, scorer, ("image_class",))


BENCHMARK = Benchmark(
    name="textvqa",
    hub="lmms-lab/textvqa",
    split="val",
    sizes={"val": (5_000,), "test": (5_734,)},
    styles=STYLES,
    scorers=SCORERS,
    published=published(58.2, 61.3, 58.2, 60.2),
    measured_on="val, with OCR tokens in the prompt",
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
    export=export_answers,
    key="question_id",
)
