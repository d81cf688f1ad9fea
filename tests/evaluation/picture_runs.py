"""Simulated pairs of equally good runs, many questions a picture: how often is noise called a difference?

    python tests/evaluation/picture_runs.py [PAIRS]    1,000 pairs a line take half an hour

Pictures are what is drawn: each has a difficulty that both runs share, and each run its own liking for it. A
question adds noise that both share and noise of either run. Neither run is better; whatever leaves 0 out of
the interval, or gives p < 0.05, is a false alarm.
"""

from __future__ import annotations

import sys

import numpy as np

from basic_lite.evaluation.compare import compare
from basic_lite.evaluation.statistics import Score, percent, value_of

BENCHMARKS = {  # name -> pictures, questions about each
    "GQA testdev": (398, 31.6),
    "POPE": (500, 18),
    "one question a picture": (1164, 1),
}


def answers(pictures: int, per: float, liking: float, generator: np.random.Generator) -> tuple:
    """Return picture of each question, and whether run A and run B answer it rightly.

    Args:
        pictures: How many.
        per: Mean number of questions about a picture; a fraction makes the numbers vary, as in GQA.
        liking: Spread of a run's own liking for pictures, in logits.
        generator: Of the random numbers.
    """
    varies = per != int(per)
    sizes = 1 + generator.poisson(per - 1, pictures) if varies else np.full(pictures, int(per))
    picture = np.repeat(np.arange(pictures), sizes)
    difficulty = generator.normal(0.8, 0.8, pictures)
    shared = generator.logistic(size=len(picture))
    runs = []
    for _ in range(2):
        own = difficulty + generator.normal(0, liking, pictures)
        runs.append(own[picture] + shared + 0.5 * generator.logistic(size=len(picture)) > 0)
    return picture, *runs


def score(right: np.ndarray, picture: np.ndarray | None, pope: bool) -> Score:
    """Return the score of a run, by picture, or by question where `picture` is `None`."""
    items = {number: float(value) for number, value in enumerate(right)}
    clusters = {} if picture is None else {number: int(of) for number, of in enumerate(picture)}
    if not pope:
        return Score("accuracy", "x", percent(items), items, clusters=clusters, right_wrong=True)
    kinds = ("adversarial", "popular", "random")  # half of the questions of each are "yes"
    cells = {
        number: (kinds[number % 3], bool(value) == (number % 2 == 0), number % 2 == 0)
        for number, value in enumerate(right)
    }
    value = value_of(cells.values(), "mean_f1")
    more = {"cells": cells, "statistic": "mean_f1", "right_wrong": True}
    return Score("mean F1", "x", value, items, clusters=clusters, **more)


def false_alarms(name: str, liking: float, pairs: int, draws: int, by_picture: bool = True) -> tuple:
    """Return the shares of pairs whose interval leaves out 0, and whose p is below 0.05."""
    pictures, per = BENCHMARKS[name]
    generator = np.random.default_rng(0)
    clear = small = 0
    for _ in range(pairs):
        picture, a, b = answers(pictures, per, liking, generator)
        if not by_picture:
            picture = None
        scores = (score(right, picture, name == "POPE") for right in (a, b))
        result = compare(*scores, draws=draws)
        assert result.p_value is not None
        clear += result.is_clear
        small += result.p_value < 0.05
    return clear / pairs, small / pairs


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    print(f"{'':24} {'liking':>6}   interval  p < 0.05   by question: interval  p < 0.05")
    for name in BENCHMARKS:
        for liking in (0.0, 0.3, 0.6):
            ours = false_alarms(name, liking, count, 1_000)
            naive = false_alarms(name, liking, count // 10, 1_000, by_picture=False)
            shares = [f"{100 * share:.1f} %" for share in (*ours, *naive)]
            print(
                f"{name:24} {liking:6.1f} {shares[0]:>10} {shares[1]:>9} {shares[2]:>23} {shares[3]:>9}",
                flush=True,
            )
