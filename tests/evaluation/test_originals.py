"""Every scorer beside the original one, on answers that the originals were run on.

Their verdicts are stored; where `BASIC_LITE_ORACLES` names the checkouts, the originals are run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from evaluation.original_scorers import (
    ANSWERS,
    ORIGINALS,
    VALUES,
    gqa_rows,
    grades,
    hallusion_index,
    mmbench_rows,
    table,
    value,
    verdicts,
)

from basic_lite.evaluation.benchmark import Rule, by_letter
from basic_lite.evaluation.open_answers import vqa_accuracy
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.tasks import (
    chartqa,
    cvbench,
    docvqa,
    gqa,
    hallusionbench,
    llavabench,
    mmbench,
    mme,
    mmmu,
    mmstar,
    mmvp,
    ocrbench,
    pope,
    realworldqa,
    seed,
)

STORED = json.loads((Path(__file__).parents[1] / "fixtures" / "original_verdicts.json").read_text("utf-8"))
OPTIONS = {"A": "red", "B": "dark blue", "C": "green", "D": "no"}


def by_rule(rule: Rule, *more: str, choices: Any = OPTIONS, **fields: Any) -> Callable[[str, Any], float]:
    """Return the share that a rule gives; what it cannot read is wrong."""

    def ours(text: str, truth: str) -> float:
        row = Question(1, "?", None, 1, answer=truth, answers=(truth, *more), choices=choices, fields=fields)
        return rule(text, row) or 0.0

    return ours


def soft(scorer: str) -> Callable[[str, Any], float]:
    return lambda text, humans: vqa_accuracy(text, humans, scorer)


def pair(text: str, truth: None) -> list[float]:
    try:
        return list(llavabench.read_pair(text)) if len(llavabench.read_pair(text)) == 2 else [-1, -1]
    except ValueError:
        return [-1, -1]


OURS: dict[str, Callable[[str, Any], Any]] = {
    "vqa_official": soft("vqa_official"),
    "vqa_lmms": soft("vqa_lmms"),
    "vqa_m4c": soft("vqa_m4c"),
    "vizwiz_lmms": soft("vqa_m4c"),
    "vizwiz_official": soft("vizwiz_official"),
    "gqa_official": by_rule(gqa.RULES["gqa_llava"]),
    **{name: by_rule(gqa.RULES[name]) for name in ("gqa_llava", "gqa_lmms", "gqa_vlmevalkit")},
    **{name: by_rule(by_letter(name)) for name in ("llava_sqa", "lmms_sqa", "exact_matching", "lmms_static")},
    "pope_llava": lambda text, truth: pope.yes_or_no(text, "pope_llava") == truth,
    "pope_lmms": lambda text, truth: pope.yes_or_no(text, "pope_lmms") == truth,
    "mme_official": by_rule(mme.RULES["mme_official"]),
    "mme_lmms": by_rule(mme.RULES["mme_lmms"]),
    "seed_exact": by_rule(seed.RULES["exact"]),
    "seed_lmms": by_rule(seed.RULES["first_character"]),
    "mmstar": by_rule(mmstar.starts_with),
    "mmmu_choice": by_rule(mmmu.right),
    "mmmu_choice_lmms": by_rule(mmmu.RULES["mmmu_lmms"]),
    "mmmu_open": by_rule(mmmu.right, choices={}),
    "realworldqa_letter": by_rule(realworldqa.RULES["realworldqa_lmms"]),
    "realworldqa_word": by_rule(realworldqa.RULES["realworldqa_lmms"]),
    "hallusionbench": by_rule(hallusionbench.RULES["yes_no_vlmevalkit"]),
    "cv_bench": by_rule(cvbench.RULES["cv_bench"]),
    "mmvp": by_rule(mmvp.RULES["mmvp"]),
    "chartqa": by_rule(chartqa.relaxed),
    "ocrbench": by_rule(ocrbench.RULES["ocrbench_lmms"], "green", formula=False),
    "ocrbench_formula": by_rule(ocrbench.RULES["ocrbench_lmms"], formula=True),
    "ocrbench_official": by_rule(ocrbench.holds, "green", formula=False),
    "ocrbench_official_formula": by_rule(ocrbench.holds, "green", formula=True),
    "anls": by_rule(docvqa.anls, "green"),
    "llava_bench": pair,
}


def pope_value(rows: list[dict[str, Any]]) -> list[float]:
    asked = [Question(r["number"], "?", None, 1, answer=r["answer"], category=str(r["group"])) for r in rows]
    return [pope.score(asked, given_in(rows), "pope_llava").value]


def mme_value(rows: list[dict[str, Any]]) -> list[float]:
    names = ("existence", "color", "OCR")
    asked = [
        Question(n, "?", None, 1, answer=row["answer"], category=names[n // 40], picture=n // 2)
        for n, row in enumerate(rows)
    ]
    return [mme.score(asked, given_in(rows), "mme_lmms").value]


def gqa_value(rows: list[dict[str, Any]]) -> list[float]:
    asked = [
        gqa.BENCHMARK.question({**row, "id": int(name), "image": None}, "llava")
        for name, row in gqa_rows(rows).items()
    ]
    score = gqa.BENCHMARK.score(asked, given_in(rows), "gqa_llava")
    parts = [("kind", "binary"), ("kind", "open"), ("structural", "query"), ("semantic", "rel")]
    parts += [("steps", "1"), ("words", "4")]
    return [score.value, *(score.breakdown[by][name] for by, name in parts)]


def hallusionbench_value(rows: list[dict[str, Any]], scorer: str = "yes_no_vlmevalkit") -> list[float]:
    asked = []
    for row in rows:
        index = hallusion_index(row)
        cells = {
            "question": "?",
            "answer": row["answer"],
            "category": index.split("_")[1],
            "l2-category": "map",
        }
        asked.append(
            hallusionbench.BENCHMARK.question(
                {**cells, "index": index, "id": row["number"], "image": None}, "llava"
            )
        )
    score = hallusionbench.score(asked, given_in(rows), scorer)
    return [score.value, score.figures["fAcc"], score.figures["qAcc"]]


def mmbench_value(rows: list[dict[str, Any]]) -> list[float]:
    lines = mmbench_rows(rows)
    given = {line["index"]: line["prediction"] for line in lines}
    return [mmbench.circular_accuracy(lines, given, "lmms_static").value]


def cv_bench_value(rows: list[dict[str, Any]]) -> list[float]:
    sources = ("ADE20K", "COCO", "Omni3D")
    asked = [
        Question(
            row["number"],
            *("?", None, 1),
            answer=row["answer"],
            choices=OPTIONS,
            fields={"source": sources[row["group"]], "task": "t"},
        )
        for row in rows
    ]
    return [cvbench.score(asked, given_in(rows), "cv_bench").value]


def llava_bench_value(rows: list[dict[str, Any]]) -> list[float]:
    asked = [Question(row["number"], "?", None, 1) for row in rows]
    given = {str(row["number"]): [tuple(grades(row))] for row in rows}
    score = llavabench.graded(asked, {}, given, "m")
    return [score.value, score.figures["reference"], score.figures["model"]]


def given_in(rows: list[dict[str, Any]]) -> dict[int, str]:
    return {row["number"]: row["given"] for row in rows}


OUR_VALUES = {
    **{"pope": pope_value, "mme": mme_value, "gqa": gqa_value, "hallusionbench": hallusionbench_value},
    "hallusionbench_original": partial(hallusionbench_value, scorer="yes_no_original"),
    **{"mmbench": mmbench_value, "cv_bench": cv_bench_value, "llava_bench": llava_bench_value},
}


@pytest.mark.parametrize("name", VALUES)
def test_every_value_equals_its_originals_on_120_rows(name):
    rounding = {"llava_bench": 0.051, "gqa": 0.0051}.get(name, 1e-9)  # of what the original prints
    assert OUR_VALUES[name](table(name)) == pytest.approx(STORED["values"][name], abs=rounding)
    if "BASIC_LITE_ORACLES" in os.environ:
        assert value(name) == pytest.approx(STORED["values"][name])


def equal_to_ours(name: str, answers: list[str], references: list[Any], given: list[list[Any]]) -> None:
    for text, row in zip(answers, given, strict=True):
        for truth, verdict in zip(references, row, strict=True):
            assert OURS[name](text, truth) == pytest.approx(verdict, abs=1e-9), (text, truth)


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_scorer_equals_its_original_on_the_stored_rows(name):
    stored = STORED["originals"][name]
    answers = STORED["answers"][stored["answers"]]
    assert len(answers) >= 100
    assert len({json.dumps(verdict) for row in stored["verdicts"] for verdict in row}) > 1
    equal_to_ours(name, answers, stored["references"], stored["verdicts"])


@pytest.mark.skipif("BASIC_LITE_ORACLES" not in os.environ, reason="BASIC_LITE_ORACLES names no checkouts")
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_still_say_what_is_stored(name):
    try:
        now = verdicts(name)
    except FileNotFoundError as error:
        pytest.skip(f"no {error}")
    _, answers, references, _ = ORIGINALS[name]
    equal_to_ours(name, answers, references, now)
    if answers == STORED["answers"][STORED["originals"][name]["answers"]]:
        assert json.loads(json.dumps(now)) == STORED["originals"][name]["verdicts"]


def test_every_stored_answer_is_one_that_the_originals_are_run_on():
    assert STORED["answers"] == ANSWERS
    assert list(STORED["originals"]) == list(ORIGINALS)
