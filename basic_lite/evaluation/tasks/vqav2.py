"""VQAv2: the official JSON files, LLaVA's test question files and the Hugging Face rows.

Sources: GT-Vision-Lab/VQA (files, scorer), LLaVA `scripts/convert_vqav2_for_submission.py` (submission),
lmms-eval `tasks/vqav2`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Row, published
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.open_answers import export_answers, soft_score
from basic_lite.evaluation.question import SHORT, TOKEN_LIMITS, Id, Question, question_of

_SUBSETS = {"val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}
_NEEDS = ("question_id", "question", "image_id")
_NOTE = (
    "val2014 overlaps with the train2017 pictures of the LLaVA-1.5 instruction mix and is no test-dev "
    "number: compare it only with other val numbers"
)


def _question(row: Row, style: str) -> Question:
    return question_of(
        row,
        f"{row['question']}\n{SHORT}",
        max_new_tokens=TOKEN_LIMITS[style],
        answer=row.get("multiple_choice_answer"),
        answers=tuple(answer["answer"] for answer in row.get("answers") or ()),
        category="answer_type",
        picture=row["image_id"],
        fields=("answer_type", "question_type"),
    )


def _asked(source: Source, split: str) -> list[dict[str, Any]]:
    """Return the questions of a split, from LLaVA's question file or the official one."""
    subset = _SUBSETS[split]
    lines = None if split == "val" else files.find_optional(source, f"llava_vqav2_mscoco_{subset}.jsonl")
    if lines is None:
        patterns = (f"v2_OpenEnded_mscoco_{subset}_questions.json", "vqav2_questions.json")
        what = f"VQAv2 questions of {split}"
        look = files.main_file if split == source.split else files.find
        return files.read_list(look(source, what, *patterns), "questions", _NEEDS)
    return [
        {
            "question_id": row["question_id"],
            "question": row["text"].removesuffix(f"\n{SHORT}"),
            "image_id": int(Path(row["image"]).stem.rpartition("_")[2]),
            "file": row["image"],
        }
        for row in files.read_json_lines(lines, ("question_id", "image", "text"))
    ]


def _file_rows(source: Source) -> list[dict[str, Any]]:
    asked = _asked(source, source.split)
    labels = _annotations(source) if source.split == "val" else {}
    unlabelled = [row["question_id"] for row in asked if labels and row["question_id"] not in labels]
    if unlabelled:
        raise ValueError(
            f"{source.data}: {len(unlabelled)} questions have no annotation (first: {unlabelled[0]}): the "
            "two files do not belong together."
        )
    year = "COCO_val2014" if source.split == "val" else "COCO_test2015"
    rows = [
        {"file": f"{year}_{row['image_id']:012d}.jpg", **labels.get(row["question_id"], {}), **row}
        | {"id": row["question_id"]}
        for row in asked
    ]
    return files.with_pictures(source, rows, (year.removeprefix("COCO_"), "images"))


def _all_asked(source: Source) -> list[Id] | None:
    """Return the ids of the whole test set: the server refuses a file with test-dev's questions alone."""
    if source.split != "test-dev":
        return None
    if files.is_table(source):
        return [
            row["question_id"] for row in files.table_rows(source, None, "test", ("question_id",), image=None)
        ]
    try:
        return [row["question_id"] for row in _asked(source, "test")]
    except ValueError as error:
        raise ValueError(
            f"{error} The server takes answers for all of test2015 only, so the submission of test-dev needs "
            "that list of questions; --step generate answers without it."
        ) from None


def _annotations(source: Source) -> dict[int, dict[str, Any]]:
    path = files.find(
        source, "VQAv2 annotations", "v2_mscoco_val2014_annotations.json", "vqav2_annotations.json"
    )
    needs = ("question_id", "answers", "answer_type", "question_type")
    return {row["question_id"]: row for row in files.read_list(path, "annotations", needs)}


BENCHMARK = Benchmark(
    name="vqav2",
    hub="lmms-lab/VQAv2",
    sizes={"val": (214_354,), "test-dev": (107_394,), "test": (447_793,)},
    rows=(
        files.table_reader(*_NEEDS, key="question_id", splits={"val": "validation", "test-dev": "testdev"}),
        _file_rows,
    ),
    question=_question,
    styles=TOKEN_LIMITS,
    scorers=("vqa_official_on_m4c", "vqa_official", "vqa_lmms", "vqa_m4c"),
    score=partial(soft_score, groupings=("answer_type", "question_type"), notes=(_NOTE,)),
    published=published(78.5, 80.0, 79.1, 80.0, basic=79.2, on="test-dev, scored by the server"),
    export=export_answers,
    all_asked=_all_asked,
)
