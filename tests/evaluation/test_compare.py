"""Two runs on the same questions."""

import json
from itertools import product
from math import comb

import numpy as np
import pytest
from evaluation.picture_runs import false_alarms

from basic_lite.evaluation.compare import compare, sign_flip_p
from basic_lite.evaluation.statistics import Score, load_score, percent, save_score, value_of


def run(items, categories=None, right_wrong=True, **more):
    categories = categories or dict.fromkeys(items, "all")
    return Score("accuracy", "exact", percent(items), items, categories, right_wrong=right_wrong, **more)


def test_mcnemar_equals_the_binomial_test():
    # gained 3, lost 9: twice P[X <= 3] of 12 fair coins
    def mcnemar(gained, lost):
        return sign_flip_p([1] * gained + [-1] * lost + [0] * 7)

    assert mcnemar(3, 9) == pytest.approx(2 * sum(comb(12, k) for k in range(4)) / 2**12)
    assert mcnemar(5, 5) == pytest.approx(1.0)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == mcnemar(10, 0) == pytest.approx(2 / 1024)
    assert 0 < mcnemar(2000, 2400) < 1e-8  # counts beyond what a float's 2**n holds


def test_gained_lost_and_categories():
    a = run({1: 1.0, 2: 0.0, 3: 1.0, 4: 0.0}, {1: "x", 2: "x", 3: "y", 4: "y"})
    b = run({1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}, {1: "x", 2: "x", 3: "y", 4: "y"})
    result = compare(a, b)
    assert (result.a, result.b, result.difference) == (50.0, 75.0, 25.0)
    assert (result.lost, result.gained) == ((1,), (2, 4))
    assert result.flipped == (1, 2, 4)
    assert result.p_value == pytest.approx(1.0)
    assert {name: tuple(c) for name, c in result.categories.items()} == {
        "x": (2, 50.0, 50.0),
        "y": (2, 50.0, 100.0),
    }


def test_the_interval_pairs_the_runs():
    generator = np.random.default_rng(0)
    first = {i: float(generator.random() < 0.6) for i in range(1000)}
    better = {i: 1.0 if i < 40 else share for i, share in first.items()}
    result = compare(run(first), run(better))
    # Differences are 0 or 1 here: the interval is that of a share, far narrower than of two separate runs.
    gains = np.array([better[i] - first[i] for i in first])
    half = 1.96 * 100 * gains.std() / np.sqrt(1000)
    assert result.interval == pytest.approx((result.difference - half, result.difference + half), abs=0.2)
    assert result.is_clear
    assert not compare(run(first), run(first)).is_clear
    assert compare(run(first), run(first)).interval == (0.0, 0.0)


def test_a_soft_metric_has_no_mcnemar():
    assert compare(run({1: 0.3}, right_wrong=False), run({1: 0.6}, right_wrong=False)).p_value is None


def test_units_that_are_no_questions_are_paired_too():
    def mme(right):
        cells = {f"p{i}": ("count", count, 2) for i, count in enumerate(right)}
        items = {f"p{i}/{k}": float(k <= count) for i, count in enumerate(right) for k in (1, 2)}
        value = value_of(cells.values(), "pair_points")
        return Score("points", "s", value, items, cells=cells, statistic="pair_points", right_wrong=True)

    result = compare(mme([2, 1, 0]), mme([2, 2, 0]))
    assert result.difference == pytest.approx(100 / 6 + 100 / 3)
    assert result.interval[0] == 0.0
    assert result.gained == ("p1/2",)


def test_categories_keep_their_sizes_in_the_resamples():
    def mme(count, ocr):
        cells = {"p": ("count", count, 2), "q": ("OCR", ocr, 2)}
        value = value_of(cells.values(), "pair_points")
        return Score(
            "points", "s", value, {"p": count / 2, "q": ocr / 2}, cells=cells, statistic="pair_points"
        )

    result = compare(mme(0, 1), mme(2, 1))  # one picture a category: every resample is the sample
    assert result.interval == (result.difference, result.difference) == (200.0, 200.0)


def test_runs_that_do_not_fit_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"Run A has 1 questions that the other lacks \(first: 2\)"):
        compare(run({1: 1.0, 2: 1.0}), run({1: 1.0}))
    with pytest.raises(ValueError, match=r"Run B has 1 questions that the other lacks \(first: 2\)"):
        compare(run({1: 1.0}), run({1: 1.0, 2: 1.0}))
    other = Score("accuracy", "lmms", 0.0, {1: 0.0})
    with pytest.raises(ValueError, match=r"run B by accuracy \(lmms\): score both alike"):
        compare(run({1: 1.0}), other)
    unjudged = Score("accuracy", "exact", None, {})
    with pytest.raises(ValueError, match="has no value"):
        compare(run({1: 1.0}), unjudged)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GQA testdev", "POPE"])
def test_equally_good_runs_are_called_different_as_rarely_as_promised(name):
    """At nominal 5 %; 150 seeded pairs put the share within 1.8 points (standard error) of the true one.

    `picture_runs.py` in this folder runs the full simulation.
    """
    interval, p = false_alarms(name, liking=0.6, pairs=150, draws=1000)
    assert interval <= 0.06
    assert p <= 0.06
    interval, p = false_alarms(name, liking=0.6, pairs=40, draws=1000, by_picture=False)
    assert interval > 0.1  # questions taken for independent: the simulation does show it
    assert p > 0.1


def test_the_sign_flip_test_equals_all_signs_written_out():
    differences = [3, -1, 0, 2, 2, -4, 1]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((-1, 1), repeat=7)
    ]
    expected = sum(abs(total) >= abs(sum(differences)) for total in sums) / len(sums)
    assert sign_flip_p(differences) == pytest.approx(expected)


def test_the_interval_of_clusters_equals_resampling_copies_of_pictures():
    generator = np.random.default_rng(5)
    picture = np.repeat(np.arange(60), generator.integers(1, 9, 60))
    first, second = (
        (generator.normal(size=60)[picture] + generator.normal(size=len(picture)) > 0) for _ in "ab"
    )
    clusters = {number: int(of) for number, of in enumerate(picture)}
    runs = [run({i: float(x) for i, x in enumerate(right)}, clusters=clusters) for right in (first, second)]
    differences = second.astype(float) - first
    totals, sizes = np.bincount(picture, differences), np.bincount(picture)
    drawn = generator.integers(0, 60, size=(10_000, 60))
    copies = 100 * totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    assert compare(*runs).interval == pytest.approx(np.percentile(copies, [2.5, 97.5]), abs=0.6)
    assert compare(*runs).n_clusters == 60


def test_scores_that_group_questions_differently_are_not_compared(tmp_path):
    items = {1: 1.0, 2: 0.0, 3: 1.0}
    by_picture = run(items, clusters={1: "x", 2: "x", 3: "y"})
    assert compare(by_picture, run(items, clusters={1: 7, 2: 7, 3: 8})).knows_pictures  # names do not matter
    for other in ({}, {1: "x", 2: "y", 3: "y"}, None):
        with pytest.raises(ValueError, match="differ in which questions share a picture"):
            compare(by_picture, run(items, clusters=other))
    # A score.json of a version that kept no pictures.
    save_score(run(items), tmp_path / "score.json")
    content = json.loads((tmp_path / "score.json").read_text())
    del content["clusters"]
    (tmp_path / "score.json").write_text(json.dumps(content))
    old = load_score(tmp_path / "score.json")
    assert not compare(old, old).knows_pictures
    save_score(by_picture, tmp_path / "score.json")
    assert load_score(tmp_path / "score.json") == by_picture
