"""A sweep says where BASIC is ahead, level by level, in words that follow the intervals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from embedded import needs_parts

from basic_lite.experiments import report
from basic_lite.experiments.curves import Point, all_savings, curves_of, savings, sentences
from basic_lite.experiments.measure import Measure
from basic_lite.experiments.plans import PLANS, at_level
from basic_lite.experiments.sweeps import sweep_of, table_rows, write_markdown


def loss(mean: float, seed: int) -> Measure:
    values = [mean + 0.1 * ((7 * unit + seed) % 5 - 2) for unit in range(30)]
    return Measure("caption_loss", "caption loss", "nats", "lower", "scenes", values)


@pytest.fixture
def sweep():
    """BASIC is ahead at the first level, behind at the second, level at the last, in every seed."""
    gains = {"1/4": -0.3, "1/2": 0.2, "1": 0.0}
    measured = {}
    for place, (level, gain) in enumerate(gains.items()):
        for variant, shift in (("plain", 0.0), ("BASIC", gain)):
            wobble = (-0.01, 0.0, 0.01) if shift or variant == "BASIC" else (0.0, 0.0, 0.0)
            measured[at_level(variant, level)] = [
                [loss(2.0 - 0.5 * place + shift + wobble[seed], seed)] for seed in range(3)
            ]
    return sweep_of(PLANS["data"], [0, 1, 2], measured, {"1": 2400, "1/4": 600, "1/2": 1200})


def test_levels_ascend_and_the_sentence_follows_the_verdicts(sweep):
    assert [level.name for level in sweep.levels] == ["1/4", "1/2", "1"]
    assert [level.pair("caption_loss").other.verdict for level in sweep.levels] == ["better", "worse", "open"]
    (said,) = sweep.sentences
    assert said.startswith(
        "Caption loss (nats): BASIC is ahead of plain at 600, behind plain at 1,200, within noise "
        "of plain at 2,400 (samples seen in stage 1). Its best difference is -0.300 (-0.3"
    )
    assert said.endswith(", at 600.")


def test_table_json_and_page_have_every_level_and_seed(sweep, tmp_path):
    heads, rows = table_rows(sweep)
    assert heads[0] == "samples seen in stage 1"
    assert [row[0] for row in rows] == ["600", "1,200", "2,400"]
    assert rows[0][1:3] == ["2.000", "1.700"]
    levels = json.loads(json.dumps(sweep.as_dict(), allow_nan=False))["levels"]
    assert [len(level["variants"]["BASIC"]["caption_loss"]["each"]) for level in levels] == [3, 3, 3]
    said = ["Ahead at 600.", "Behind at the end."]
    report.write_sweep(sweep, {}, said, tmp_path / "data.html", "basic-lite ablate data")
    page = (tmp_path / "data.html").read_text()
    assert page.count("<svg") == 1
    assert all(f">{sentence}</p>" in page for sentence in said)
    write_markdown(sweep, said, tmp_path / "data.md", "basic-lite ablate data")
    text = (tmp_path / "data.md").read_text()
    assert "| 600 | 2.000 | 1.700 | -0.300" in text
    assert text.startswith("Ahead at 600.\nBehind at the end.\n")
    along = {"plain": curves_of(runs(0.0)), "BASIC": curves_of(runs(-0.2))}
    report.write_sweep(sweep, along, said, tmp_path / "both.html", "basic-lite ablate data")
    page = (tmp_path / "both.html").read_text()
    assert page.count("<svg") == 2
    assert "instead of" in page


def runs(shift: float, units: int = 30) -> list[list[Point]]:
    def point(step: int, seed: int) -> Point:
        whole = loss(3.0 / step + shift, seed)
        return Point(step, 16 * step, 0.1, [replace(whole, values=whole.values[:units])])

    return [[point(step, seed) for step in (1, 2, 4, 8)] for seed in range(2)]


def test_curves_of_other_samples_are_drawn_and_not_paired():
    """As where an ablation's folder goes on with a version that measures fewer scenes."""
    few = {"plain": curves_of(runs(0.0)), "BASIC": curves_of(runs(-0.2, units=20))}
    assert all_savings(few, "plain") == {"BASIC": {}}
    assert sentences(few, "plain") == []
    assert report.curve_plot(few, "plain").startswith("<svg")


def test_curves_are_drawn_with_and_without_a_goal_that_is_reached():
    curves = {"plain": curves_of(runs(0.0)), "BASIC": curves_of(runs(-0.2)), "other": curves_of(runs(0.5))}
    base = curves["plain"]["caption_loss"]
    for variant, reached in (("BASIC", True), ("other", False)):
        (*_, last) = savings(variant, curves[variant]["caption_loss"], base)
        assert (last.samples < float("inf")) is reached
        assert ("instead of" in report.curve_plot(curves, "plain", last)) is reached


@needs_parts
def test_the_amount_of_own_data_needs_one_batch_for_all(tmp_path):
    from command import run

    refused = run("ablate", "data", "--data", "captions.json", "--dry-run", cwd=tmp_path, expect=2).stderr
    assert "plan data needs --max-steps N" in refused
    said = run("ablate", "data", "--variants", "1/2;1", "--dry-run", cwd=tmp_path).stdout
    assert [line.split(", seed")[0] for line in said.splitlines() if line.startswith("to do")] == [
        "to do: basic=False epochs=1.0 global_batch=16",
        "to do: epochs=1.0 global_batch=16",
        "to do: basic=False",
        "to do: default",
    ]
