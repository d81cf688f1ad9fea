"""LLaVA-1.5's own questions, answers and grades (its `eval.zip`): what it asked, and the values it published.

Skipped where `BASIC_LITE_ORACLES` names no folder with `eval` and `POPE`; see `original_scorers`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluation.original_scorers import ROOT

from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.judge import read_grades
from basic_lite.evaluation.open_answers import normalize
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.table import BENCHMARKS, load

pytestmark = pytest.mark.skipif("BASIC_LITE_ORACLES" not in os.environ, reason="no checkouts are named")
SHORT = "\nAnswer the question using a single word or phrase."


def lines(name: str) -> list[dict[str, Any]]:
    path = ROOT / "eval" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "file", "rows", "more"),
    [
        ("gqa", "gqa/llava_gqa_testdev_balanced.jsonl", 12_578, {}),
        ("textvqa", "textvqa/llava_textvqa_val_v051_ocr.jsonl", 5_000, {"image_id": 1}),
        ("vizwiz", "vizwiz/llava_test.jsonl", 8_000, {"answers": []}),
        ("mme", "MME/llava_mme.jsonl", 2_374, {"answer": "Yes"}),
        ("mmvet", "mm-vet/llava-mm-vet.jsonl", 218, {"capability": "ocr", "answer": "1"}),
    ],
)
def test_every_question_is_asked_in_llavas_words(name, file, rows, more):
    asked = lines(file)
    assert len(asked) == rows
    for row in asked:
        question = row["text"].removesuffix(SHORT)
        question = question.removesuffix(
            "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
        )
        question, _, tokens = question.partition("\nReference OCR token: ")
        read = {"question": question, "ocr_tokens": [tokens], "id": 1, "image": None, **more}
        if name == "mme":
            read["question"] += "  Please answer yes or no."
        made = BENCHMARKS[name].question(read, "llava")
        assert made is not None
        assert made.text == row["text"]


def test_pope_asks_llavas_questions_and_gives_its_value(tmp_path):
    answers = lines("pope/answers/llava-v1.5-13b.jsonl")
    alone = load("pope", ROOT / "POPE/output/coco", with_images=False)  # its categories in another order
    assert sorted(question.text for question in alone) == sorted(row["prompt"] for row in answers)
    shutil.copytree(ROOT / "POPE/output/coco", tmp_path / "coco")
    shutil.copy(ROOT / "eval/pope/llava_pope_test.jsonl", tmp_path)
    questions = load("pope", tmp_path, with_images=False)
    given = {row["question_id"]: row["text"] for row in answers}
    assert BENCHMARKS["pope"].score(questions, given, "pope_llava").value == pytest.approx(85.9, abs=0.05)


def test_scienceqa_reads_llavas_letters_and_gives_its_value():
    path = ROOT / "eval/scienceqa/answers/llava-v1.5-13b_output.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    right: dict[bool, list[bool]] = {True: [], False: []}
    content = json.loads(path.read_text("utf-8"))
    for row in (row for kind in ("correct", "incorrect") for row in content[kind]):
        options = dict.fromkeys(re.findall(r"^([A-E])\. ", row["question"], re.MULTILINE), "")
        letter = extract_option(row["pred"], options, "llava_sqa")
        # LLaVA reads a letter that the question does not have, which is as wrong as none.
        known = row["parsed_ans"] if row["parsed_ans"] in options else None
        assert letter == known, row
        right[row["is_multimodal"]].append(letter == row["ground_truth"])
    assert (len(right[True]), len(right[True] + right[False])) == (2_017, 4_241)
    assert 100 * sum(right[True]) / 2_017 == pytest.approx(71.6, abs=0.05)


def test_the_submission_of_vizwiz_is_llavas():
    answers = lines("vizwiz/answers/llava-v1.5-13b.jsonl")
    sent = json.loads((ROOT / "eval/vizwiz/answers_upload/llava-v1.5-13b.json").read_text("utf-8"))
    assert [normalize(row["text"], "m4c") for row in answers] == [row["answer"] for row in sent]
    assert len(sent) == 8_000


@pytest.mark.parametrize(("model", "mmvet", "bench"), [("7b", 31.1, 65.4), ("13b", 36.3, 72.5)])
def test_stored_grades_give_the_published_values(model, mmvet, bench):
    folder = ROOT / "eval/llava-bench-in-the-wild/reviews"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    asked = [Question(f"v1_{n}", "?", None, 1, fields={"capability": ["rec"]}) for n in range(218)]
    file = ROOT / f"eval/mm-vet/results/llava-v1.5-{model}_gpt-4-grade-3runs.json"
    assert graded("mmvet", asked, file) == pytest.approx(mmvet, abs=0.05)
    asked = [Question(n, "?", None, 1) for n in range(60)]
    files = (folder / f"llava-v1.5-{model}-eval{n}.jsonl" for n in (1, 2, 3))
    # Published is a mean of three reviews of each answer, cut off after one digit.
    assert sum(graded("llava-bench", asked, file) for file in files) / 3 == pytest.approx(
        bench + 0.05, abs=0.05
    )


def graded(name: str, asked: list[Question], file: Path) -> float:
    grading = BENCHMARKS[name].grading
    assert grading is not None
    value = grading.score(asked, {}, read_grades(file, asked, grading), "gpt-4").value
    assert value is not None
    return value
