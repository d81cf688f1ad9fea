"""SEED-Bench: the official JSON, LLaVA's question file for the frames of videos, and the Hugging Face rows.

Sources: LLaVA `scripts/convert_seed_for_submission.py`, lmms-eval `tasks/seedbench/utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Row, Rule, by_letter, compared, published, scored_by
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import SAME_STYLES, Question, options_prompt, question_of
from basic_lite.evaluation.tsv import find_tsv, tsv_table


def _option(text: str, question: Question) -> str | None:
    return text if text in question.choices else None


RULES: dict[str, Rule] = {
    "exact": compared(_option),  # LLaVA `convert_seed_for_submission.py`
    "first_character": compared(  # lmms-eval
        lambda text, question: _option(text.strip()[:1].upper(), question)
    ),
    "exact_matching": by_letter("exact_matching"),
}
ALL = 19_242
"""Questions that LLaVA-1.5's 58.6 was measured on. The 17,990 of the Hugging Face rows have fewer videos."""

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_NEEDS = ("question_id", "question", "answer", "data_type", "question_type_id", *_CHOICES)
_TYPES = (
    *("Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location"),
    *("Instances Counting", "Spatial Relation", "Instance Interaction", "Visual Reasoning"),
    *("Text Understanding", "Action Recognition", "Action Prediction", "Procedure Understanding"),
)


def _question(row: Row, style: str) -> Question:
    choices = {letter: str(row[name]) for letter, name in zip("ABCD", _CHOICES, strict=True)}
    kind = int(row["question_type_id"])
    name = _TYPES[kind - 1] if 1 <= kind <= len(_TYPES) else f"type {kind}"
    return question_of(
        {**row, "question_type": name},
        options_prompt(row["question"], choices),
        stem=row["question"],
        answer=row["answer"],
        choices=choices,
        category="question_type",
        picture=row.get("data_id"),
        fields=("data_type", "question_type", "question_id"),
    )


def _wanted(source: Source, row: Row) -> bool:
    return source.split == "test" or row["data_type"] == source.split


def _json_rows(source: Source) -> list[dict[str, Any]]:
    path = files.main_file(source, "SEED-Bench questions", "SEED-Bench.json", "seed_bench.json")
    rows = files.read_list(path, "questions", (*_NEEDS, "data_id"))
    rows = [{**row, "id": str(row["question_id"])} for row in rows if _wanted(source, row)]
    names = _picture_names(source, rows)
    return files.with_pictures(source, [{**row, "file": names[row["id"]]} for row in rows], (".", "images"))


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Read the official files, or VLMEvalKit's table, which holds the questions about images alone."""
    tsv = find_tsv(source, "SEEDBench_IMG.tsv")
    if tsv is None:
        yield from _json_rows(source)
        return
    if source.split != "image":
        raise ValueError(f"{tsv} holds the questions about images: use --split image.")
    types = {kind.lower(): number for number, kind in enumerate(_TYPES, start=1)}
    needs = ("question", *"ABCD", "answer", "category")
    for row in tsv_table(source, tsv, needs, "SEED-Bench"):
        kind = str(row["category"]).replace("_", " ").lower()
        yield {
            **row,
            **{name: row[letter] for name, letter in zip(_CHOICES, "ABCD", strict=True)},
            "id": row["index"],
            "question_id": row["index"],
            "data_id": row["picture"],
            "data_type": "image",
            "question_type_id": types.get(kind, 0),
        }


def _picture_names(source: Source, rows: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Return id -> picture; only LLaVA's file names the frames that were taken from the videos."""
    if not source.with_images:
        return {row["id"]: None for row in rows}
    asked = files.find_optional(source, "llava-seed-bench.jsonl")
    named = {str(row["question_id"]): row["image"] for row in files.read_json_lines(asked)} if asked else {}
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
    for row in files.table_rows(source, None, "test", _NEEDS):
        if _wanted(source, row):
            yield {**row, "id": str(row["question_id"])}


_LLAVA = published(58.6, 61.6, 60.1, 61.3, on="all 19,242 questions, images and videos")

BENCHMARK = Benchmark(
    name="seed",
    hub="lmms-lab/SEED-Bench",
    sizes={"test": (17_990, ALL), "image": (14_233,), "video": (3_757, 5_009)},
    rows=(_table_rows, _file_rows),
    question=_question,
    styles=SAME_STYLES,
    scorers=tuple(RULES),
    score=scored_by(RULES, "question_type", "data_type"),
    published=_LLAVA,
    of_size={ALL: _LLAVA, 14_233: ({"LLaVA-1.5-7B": 66.1}, "the 14,233 questions about images")},
    export=files.submission(
        lambda q, answer: {"question_id": q.fields["question_id"], "prediction": answer}, lines=True
    ),
    submission="submission.jsonl",
    aliases=("seed-bench",),
)
