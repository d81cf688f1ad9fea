"""GQA testdev-balanced: the official JSON and the Hugging Face rows with their separate pictures.

Sources: GQA `eval.py` (breakdowns), LLaVA `scripts/convert_gqa_for_eval.py` (submission), lmms-eval
`tasks/gqa`. The parts of the official evaluation that need scene graphs have no data for testdev.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Row, Rule, published, scored_by
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import SHORT, TOKEN_LIMITS, Question, StoredImage, question_of
from basic_lite.evaluation.tsv import tsv_reader

_LLAVA = "llava_gqa_testdev_balanced.jsonl"
_OFFICIAL = ("testdev_balanced_questions.json", "gqa_testdev_balanced_questions.json")
_FOLDERS = ("images", "../images")
_NEEDS = ("question", "imageId", "answer", "isBalanced", "types")


def _question(row: Row, style: str) -> Question | None:
    if not row.get("isBalanced", True):
        return None
    kinds = row.get("types") or {"structural": "", "semantic": ""}  # of a file that does not say
    structural = kinds["structural"]
    groups = {
        "structural": structural,
        "semantic": kinds["semantic"],
        "kind": structural and ("open" if structural == "query" else "binary"),
        "words": str(len(row["question"].split())),
        "steps": str(_steps(row.get("semantic") or [])),
    }
    return question_of(
        {**row, **groups},
        f"{row['question']}\n{SHORT}",
        max_new_tokens=TOKEN_LIMITS[style],
        answer=row.get("answer"),
        category="structural",
        picture=row.get("imageId", row.get("picture")),
        fields=groups,
    )


def _steps(program: Sequence[Mapping[str, Any]]) -> int:
    """Return the reasoning steps of a question; the last look-up of a name or of existence is none."""
    final = ("exist", "query: name", "choose name")
    steps = (f"{step['operation']}: {step['argument']}" for step in program)
    return sum(not any(name in step for name in final) for step in steps)


def _json_rows(source: Source) -> list[dict[str, Any]]:
    asked = files.find_optional(source, _LLAVA)
    if asked is not None and Path(source.data) in (asked, source.folder):
        if files.find_optional(source, *_OFFICIAL) is None:  # no answers: they end in a submission
            rows = [
                {
                    "id": row["question_id"],
                    "question": row["text"].removesuffix(f"\n{SHORT}"),
                    "imageId": row["image"].rpartition(".")[0],
                    "file": row["image"],
                }
                for row in files.read_json_lines(asked, ("question_id", "image", "text"))
            ]
            return files.with_pictures(source, rows, _FOLDERS)
        source = replace(source, data=source.folder)  # the same questions, with their answers
    content = files.read_keyed(files.main_file(source, "GQA questions", *_OFFICIAL), _NEEDS)
    rows = [{**row, "id": name, "file": f"{row['imageId']}.jpg"} for name, row in content.items()]
    return files.with_pictures(source, rows, _FOLDERS)


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    images: dict[str, StoredImage] = {}
    if source.with_images:
        table = files.open_table(source, "testdev_balanced_images", "testdev")
        images = {name: StoredImage(table, number) for number, name in enumerate(table["id"])}
    config = "testdev_balanced_instructions"
    for row in files.table_rows(source, config, "testdev", ("id", *_NEEDS), image=None):
        if images and row["imageId"] not in images:
            raise ValueError(
                f"{source.data}: question {row['id']} has no picture {row['imageId']} in the images."
            )
        yield {**row, "image": images.get(row["imageId"])}


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def submitted(text: str) -> str:
    """Return an answer as LLaVA hands it to GQA's evaluation: without final dots, in lower case."""
    return text.rstrip(".").lower()


def _lmms(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


def _equal(read_answer: Callable[[str], str], read_truth: Callable[[str], str]) -> Rule:
    """Return the rule of equality; an empty answer says nothing."""
    return lambda text, question: (
        float(read_answer(text) == read_truth(str(question.answer))) if text.strip() else None
    )


RULES = {
    "gqa_llava": _equal(submitted, str),
    "gqa_lmms": _equal(_lmms, _lmms),
    "gqa_vlmevalkit": _equal(lambda text: text.strip().lower(), lambda text: text.strip().lower()),
}
"""Equality with the one answer. Sources: LLaVA `scripts/convert_gqa_for_eval.py` followed by GQA's `eval.py`,
lmms-eval `api/metrics.py` (`exact_match` with `ignore_case`, `ignore_punctuation`), VLMEvalKit
`dataset/utils/vqa_eval.py` (`accuracy`)."""


BENCHMARK = Benchmark(
    name="gqa",
    hub="lmms-lab/GQA",
    sizes={"testdev": (12_578,)},
    rows=(
        _table_rows,
        tsv_reader("GQA", "GQA_TestDev_Balanced.tsv", otherwise=_json_rows),
    ),
    question=_question,
    styles=TOKEN_LIMITS,
    scorers=tuple(RULES),
    score=scored_by(RULES, "kind", "structural", "semantic", "words", "steps"),
    published=published(62.0, 63.3, 63.0, 63.3, basic=63.5, on="testdev balanced"),
    export=files.submission(lambda q, text: {"questionId": str(q.id), "prediction": submitted(text)}),
)
