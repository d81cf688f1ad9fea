"""TextVQA: the official JSON with Rosetta's OCR tokens, and the Hugging Face rows.

LLaVA's prompt names the OCR tokens; without them LLaVA-1.5 loses about twelve points. Sources: LLaVA's
question file (prompt), `llava/eval/eval_textvqa.py` and `m4c_evaluator.py`, lmms-eval `tasks/textvqa`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Row, published
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.open_answers import export_answers, soft_score
from basic_lite.evaluation.question import SHORT, Question, question_of
from basic_lite.evaluation.tsv import answers_in, find_tsv, tsv_table

_BEFORE_TOKENS = "Reference OCR token: "
_NEEDS = ("question_id", "question", "image_id")


STYLES = {"llava": True, "llava_no_ocr": False, "lmms": False, "lmms_ocr": True}
"""Style -> whether the prompt names the OCR tokens; lmms-eval's words are LLaVA's."""


def _question(row: Row, style: str) -> Question:
    tokens = f"\n{_BEFORE_TOKENS}{', '.join(row['ocr_tokens'])}" if STYLES[style] else ""
    return question_of(
        {**row, "image_class": (row.get("image_classes") or [""])[0]},
        f"{row['question'].capitalize()}{tokens}\n{SHORT}",  # all letters but the first in lower case
        answers=tuple(answers_in(row)),
        category="image_class",
        picture=row["image_id"],
        fields=("image_class",),
    )


def _file_rows(source: Source) -> list[dict[str, Any]]:
    tsv = find_tsv(source, "TextVQA_VAL.tsv") if source.split == "val" else None
    if tsv is None:
        return _json_rows(source)
    if STYLES[source.style]:
        raise ValueError(
            f"{tsv} holds no OCR tokens: use --prompt-style llava_no_ocr, or TextVQA's own files."
        )
    rows = tsv_table(source, tsv, ("question", "answer"), "TextVQA")
    return [{**row, "id": row["index"], "image_id": row["picture"]} for row in rows]


def _json_rows(source: Source) -> list[dict[str, Any]]:
    split = source.split
    path = files.main_file(source, f"TextVQA {split}", f"TextVQA_0.5.1_{split}.json", f"textvqa_{split}.json")
    rows = files.read_list(path, "data", _NEEDS)
    tokens = _tokens(source, {row["image_id"] for row in rows}) if STYLES[source.style] else {}
    for row in rows:
        row |= {"id": row["question_id"], "file": f"{row['image_id']}.jpg"}
        row["ocr_tokens"] = tokens.get(row["image_id"], [])
    return files.with_pictures(source, rows, ("test_images" if split == "test" else "train_images", "images"))


def _tokens(source: Source, pictures: set[str]) -> dict[str, list[str]]:
    path = files.find_optional(source, "llava_textvqa_val_v051_ocr.jsonl") if source.split == "val" else None
    if path is not None:
        rows = files.read_json_lines(path, ("image", "text"))
        tokens = {str(row["image"]).rpartition(".")[0]: _named(row["text"]) for row in rows}
    else:
        path = files.find(
            source,
            "OCR tokens, which LLaVA's prompt needs (or use --prompt-style llava_no_ocr)",
            f"TextVQA_Rosetta_OCR_v0.2_{source.split}.json",
            "textvqa_ocr.json",
        )
        rows = files.read_list(path, "data", ("image_id", "ocr_tokens"))
        tokens = {row["image_id"]: row["ocr_tokens"] for row in rows}
    absent = sorted(pictures - set(tokens))
    if absent:
        raise ValueError(
            f"{path} lacks the tokens of {len(absent)} pictures (first: {absent[0]}): it is of another split."
        )
    return tokens


def _named(text: str) -> list[str]:
    """Return the tokens that one of LLaVA's prompts names."""
    named = text.rpartition(_BEFORE_TOKENS)[2].partition("\n")[0]
    return named.split(", ") if named else []


def _table_rows(source: Source) -> Iterable[dict[str, Any]]:
    tokens = ("ocr_tokens",) if STYLES[source.style] else ()
    return files.table_reader(*_NEEDS, *tokens, key="question_id", splits={"val": "validation"})(source)


BENCHMARK = Benchmark(
    name="textvqa",
    hub="lmms-lab/textvqa",
    sizes={"val": (5_000,), "test": (5_734,)},
    rows=(_table_rows, _file_rows),
    question=_question,
    styles=STYLES,
    scorers=("vqa_m4c", "vqa_official_on_m4c", "vqa_official", "vqa_lmms"),
    score=partial(soft_score, groupings=("image_class",)),
    published=published(58.2, 61.3, 58.2, 60.2, on="val, with OCR tokens in the prompt"),
    export=export_answers,
)
