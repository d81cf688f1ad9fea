"""Means and intervals against the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from basic_lite.evaluation.statistics import student_interval
from basic_lite.experiments.measure import Measure
from basic_lite.experiments.table import paired_interval, tabulate, write_side_by_side


def measure(values, of=None, better="lower", name="loss") -> Measure:
    return Measure(name, "a loss", "nats", better, "scenes", list(values), of)


def test_student_interval_against_the_formula():
    low, high = student_interval([1.0, 3.0, 2.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))


def test_paired_interval_against_a_naive_bootstrap():
    """Units resampled one by one within each run, shares as ratios of sums."""
    random = np.random.default_rng(3)
    own, base = [], []
    for _ in range(2):
        of = random.integers(1, 9, 40).astype(float)
        own.append(measure(random.binomial(of.astype(int), 0.8).astype(float), of.tolist()))
        base.append(measure(random.binomial(of.astype(int), 0.6).astype(float), of.tolist()))
    draws = np.zeros(4000)
    for one, other in zip(own, base, strict=True):
        for draw in range(len(draws)):
            units = random.integers(0, 40, 40)
            of = np.asarray(one.of)[units].sum()
            gap = np.asarray(one.values)[units].sum() - np.asarray(other.values)[units].sum()
            draws[draw] += gap / of / 2
    low, high = paired_interval(own, base)
    assert (low, high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.012)  # of 0.16 wide
    assert own[0].mean == pytest.approx(sum(own[0].values) / sum(own[0].of))


def test_one_seed_goes_by_units_and_several_by_seeds():
    base = [measure([1.0, 2.0, 3.0, 4.0]), measure([2.0, 3.0, 4.0, 5.0]), measure([0.0, 1.0, 2.0, 3.0])]
    variant = [measure([v - gap for v in one.values]) for one, gap in zip(base, (1.0, 3.0, 2.0), strict=True)]
    found = {"none": [[m] for m in base], "both": [[m] for m in variant]}
    one = tabulate("p", "why?", "none", [0], {name: runs[:1] for name, runs in found.items()})
    cell = one.cells["both"]["loss"]
    assert (cell.over_seeds, cell.over_units) == (None, pytest.approx((-1.0, -1.0)))
    assert (cell.difference, cell.verdict) == (-1.0, "better")
    assert "says nothing about other seeds" in one.how_sure
    several = tabulate("p", "why?", "none", [0, 1, 2], found)
    cell = several.cells["both"]["loss"]
    reach = 4.303 / math.sqrt(3)
    assert cell.interval == pytest.approx((-2 - reach, -2 + reach))
    assert (cell.difference, cell.differences, cell.verdict) == (-2.0, [-1.0, -3.0, -2.0], "open")
    assert cell.mean == pytest.approx(sum(m.mean for m in variant) / 3)
    assert several.cells["none"]["loss"].verdict == "baseline"
    assert "over seeds (Student's t)" in several.how_sure


def test_higher_may_be_better_or_neither():
    base, variant = measure([1.0] * 9, better="higher"), measure([2.0] * 9, better="higher")
    table = tabulate("p", "?", "a", [0], {"a": [[base]], "b": [[variant]]})
    assert table.cells["b"]["loss"].verdict == "better"
    neither = [measure(m.values, better=None) for m in (base, variant)]
    table = tabulate("p", "?", "a", [0], {"a": [[neither[0]]], "b": [[neither[1]]]})
    assert table.cells["b"]["loss"].verdict == "open"


@pytest.mark.parametrize(
    ("better", "base", "other", "verdict"),
    [
        ("higher", [1.0, 1.0, 1.0], [2.0, 2.5, 1.5], "better"),
        ("lower", [1.0, 1.0, 1.0], [2.0, 2.5, 1.5], "worse"),
        ("lower", [2.0, 2.0, 2.0], [1.0, 0.5, 1.5], "better"),
        ("higher", [1.0, 1.0, 1.0], [0.5, 3.0, 1.0], "open"),
        (None, [1.0, 1.0, 1.0], [2.0, 2.5, 1.5], "open"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero_and_a_better_side(better, base, other, verdict):
    table = tabulate(
        "p", "?", "a", [0], {"a": [[measure(base, better=better)]], "b": [[measure(other, better=better)]]}
    )
    assert table.cells["b"]["loss"].verdict == verdict


def test_what_is_measured_once_has_no_interval_with_one_seed():
    once = [Measure("s", "seconds", "s", "lower", "", [value]) for value in (3.0, 1.0)]
    cell = tabulate("p", "?", "a", [0], {"a": [[once[0]]], "b": [[once[1]]]}).cells["b"]["s"]
    assert (cell.difference, cell.interval, cell.verdict) == (-2.0, None, "open")


def test_two_variants_side_by_side_with_each_seed(tmp_path):
    values = [(1.0, 2.0), (2.0, 5.0), (3.0, 5.0)]
    measured = {
        name: [[Measure("x", "an x", "%", "higher", "g", [pair[side]], digits=1)] for pair in values]
        for side, name in enumerate(("plain", "BASIC"))
    }
    table = tabulate("p", "?", "plain", [0, 1, 2], measured)
    (pair,) = table.pairs
    assert (pair.base.mean, pair.other.mean, pair.other.difference) == (2.0, 4.0, 2.0)
    # Differences 1, 3, 2: deviation 1, so t(0.975, 2) / sqrt(3).
    assert pair.other.interval == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    write_side_by_side(table, tmp_path / "seeds.md")
    assert (tmp_path / "seeds.md").read_text().splitlines() == [
        "|  | plain | BASIC | BASIC - plain | 95 % interval | each seed |",
        "|---|---|---|---|---|---|",
        "| **g** |  |  |  |  |  |",
        "| an x (%) | 2.0 | 4.0 | +2.0 | -0.5 to +4.5 | +1.0 +3.0 +2.0 |",
    ]
