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

from basic_lite.evaluation.benchmark import Benchmark, Predictions, published
from basic_lite.evaluation.files import (
    Source,
    find_optional,
    locate_images,
    main_file,
    open_table,
    read_json_lines,
    read_keyed,
    table_rows,
    write_rows,
)
from basic_lite.evaluation.question import SHORT, Question, StoredImage
from basic_lite.evaluation.statistics import Score, by_field, score_of
from basic_lite.evaluation.tsv import find_tsv, tsv_table

STYLES = {"llava": 128, "lmms": 16}  # one prompt; lmms-eval lets the model write less
_LLAVA = "llava_gqa_testdev_balanced.jsonl"
_OFFICIAL = ("testdev_balanced_questions.json", "gqa_testdev_balanced_questions.json")
_NEEDS = ("question", "imageId", "answer", "isBalanced", "types")


def _question(row: Mapping[str, Any], style: str) -> Question | None:
    if not row["isBalanced"]:
        return None
    structural = row["types"]["structural"]
    return Question(
        id=row["id"],
        text=f"{row['question']}\n{SHORT}",
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=row["answer"],
        category=structural,
        picture=row["imageId"],
        fields={
            "structural": structural,
            "semantic": row["types"]["semantic"],
            "kind": structural and ("open" if structural == "query" else "binary"),
            "words": str(len(row["question"].split())),
            "steps": str(_steps(row.get("semantic") or [])),
        },
    )


def _steps(program: Sequence[Mapping[str, Any]]) -> int:
    """Return the reasoning steps of a question; the last look-up of a name or of existence is none."""
    final = ("exist", "query: name", "choose name")
    steps = (f"{step['operation']}: {step['argument']}" for step in program)
    return sum(not any(name in step for name in final) for step in steps)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a file that does not say of what kind a question is."""
    return {"isBalanced": True, "types": {"structural": "", "semantic": ""}, "answer": None, **row}


def _llava_rows(source: Source, path: Path) -> list[dict[str, Any]]:
    """Read LLaVA's questions, which have no answers: they end in a submission."""
    rows = read_json_lines(path, ("question_id", "image", "text"))
    images = locate_images(
        source, {row["question_id"]: row["image"] for row in rows}, ("images", "../images")
    )
    return [
        _plain(
            {
                "id": row["question_id"],
                "question": row["text"].removesuffix(f"\n{SHORT}"),
                "imageId": row["image"].rpartition(".")[0],
                "image": images[row["question_id"]],
            }
        )
        for row in rows
    ]


def _file_rows(source: Source) -> list[dict[str, Any]]:
    tsv = find_tsv(source, "GQA_TestDev_Balanced.tsv")
    if tsv is not None:
        rows = tsv_table(source, tsv, ("question", "answer"), "GQA")
        return [_plain({**row, "id": row["index"], "imageId": row["picture"]}) for row in rows]
    asked = find_optional(source, _LLAVA)
    if asked is not None and Path(source.data) in (asked, source.folder):
        if find_optional(source, *_OFFICIAL) is None:
            return _llava_rows(source, asked)
        source = replace(source, data=source.folder)  # the same questions, with their answers
    path = main_file(source, "GQA questions", *_OFFICIAL)
    content = read_keyed(path, _NEEDS)
    names = {identity: f"{row['imageId']}.jpg" for identity, row in content.items()}
    images = locate_images(source, names, ("images", "../images"))
    return [{**row, "id": identity, "image": images[identity]} for identity, row in content.items()]


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    images: dict[str, StoredImage] = {}
    if source.with_images:
        table = open_table(source, "testdev_balanced_images", "testdev")
        images = {name: StoredImage(table, number) for number, name in enumerate(table["id"])}
    config = "testdev_balanced_instructions"
    for row in table_rows(source, config, "testdev", ("id", *_NEEDS), image=None):
        if images and row["imageId"] not in images:
            raise ValueError(
                f"{source.data}: question {row['id']} has no picture {row['imageId']} in the images."
            )
        yield {**row, "image": images.get(row["imageId"])}


# Equality with the one answer. Sources: LLaVA `scripts/convert_gqa_for_eval.py` followed by GQA's `eval.py`,
# lmms-eval `api/metrics.py` (`exact_match` with `ignore_case`, `ignore_punctuation`), VLMEvalKit
# `dataset/utils/vqa_eval.py` (`accuracy`).

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def submitted(text: str) -> str:
    """Return an answer as LLaVA hands it to GQA's evaluation: without final dots, in lower case."""
    return text.rstrip(".").lower()


def _lmms(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


EQUAL: dict[str, Callable[[str, str], bool]] = {
    "gqa_llava": lambda prediction, answer: submitted(prediction) == answer,
    "gqa_lmms": lambda prediction, answer: _lmms(prediction) == _lmms(answer),
    "gqa_vlmevalkit": lambda prediction, answer: prediction.strip().lower() == answer.strip().lower(),
}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score by equality with the one answer, by kind, structure, meaning, words and reasoning steps."""
    equal = EQUAL[scorer]
    items = {
        question.id: float(
            question.id in predictions and equal(predictions[question.id], str(question.answer))
        )
        for question in questions
    }
    groupings = by_field("kind", "structural", "semantic", "words", "steps")
    return score_of(questions, predictions, items, scorer=scorer, groupings=groupings, right_wrong=True)


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the JSON list that GQA's evaluation reads."""
    rows = (
        {"questionId": str(question.id), "prediction": submitted(predictions.get(question.id, ""))}
        for question in questions
    )
    return write_rows(path, rows)


BENCHMARK = Benchmark(
    name="gqa",
    hub="lmms-lab/GQA",
    split="testdev",
    sizes={"testdev": (12_578,)},
    styles=STYLES,
    scorers=tuple(EQUAL),
    published=published(62.0, 63.3, 63.0, 63.3, basic=63.5),
    measured_on="testdev balanced",
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
    export=export,
)
