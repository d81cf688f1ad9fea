"""Is the difference between two runs more than noise? Answers are paired by question, and by picture."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from basic_lite.evaluation.question import Id
from basic_lite.evaluation.statistics import (
    DRAWS,
    STATISTICS,
    Score,
    cell_group,
    percentile_interval,
    resample,
)


class Category(NamedTuple):
    """One category of a comparison: questions, and the mean share right of either run, in per cent."""

    n: int
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    metric: str  # what the values are
    scorer: str  # the scoring rule of both
    n: int  # questions (for MMBench groups of rotations)
    a: float  # value of run A
    b: float  # value of run B
    interval: tuple[float, float]  # 95 % paired bootstrap interval of `difference`
    gained: tuple[Id, ...]  # questions that B has more right than A
    lost: tuple[Id, ...]  # questions that B has less right than A
    n_clusters: int  # pictures, or questions where each has a picture of its own: what is resampled
    # Exact two-sided p of the sign-flip test by picture; `None` where an answer can be half right
    p_value: float | None
    # False for scores of versions that did not keep which questions share a picture: the interval and the p
    # then take them for independent
    knows_pictures: bool
    categories: Mapping[str, Category]  # name -> what the runs reach in it

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def flipped(self) -> tuple[Id, ...]:
        """Return the questions whose share right changed, lost ones first."""
        return self.lost + self.gained

    @property
    def is_clear(self) -> bool:
        return self.interval[0] > 0 or self.interval[1] < 0


def sign_flip_p(differences: Iterable[int]) -> float:
    """Return the exact two-sided p of a permutation test that swaps the two runs picture by picture.

    If the runs are equally good, each picture's difference (questions gained minus lost) is as likely with
    the other sign: `p = P[|sum of +-d| >= |sum of d|]` over all signs. With one question per picture this is
    McNemar's exact test.
    """
    differences = list(differences)
    sizes = Counter(abs(difference) for difference in differences if difference)
    ways = np.ones(1)  # of the sum of signs, shifted so that the smallest sum stands first
    for size, count in sizes.items():
        heads = range(count + 1)
        logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in heads]
        spread = np.zeros(2 * size * count + 1)
        spread[:: 2 * size] = np.exp(np.array(logs) - count * math.log(2))
        ways = np.convolve(ways, spread)
    reach = sum(size * count for size, count in sizes.items())
    sums = np.arange(-reach, reach + 1)
    return min(1.0, float(ways[np.abs(sums) >= abs(sum(differences))].sum()))


def compare(a: Score, b: Score, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare run A and run B, the one of interest, on the same questions, scored by the same rule.

    Each of the `draws` bootstrap resamples draws the same questions for both runs. Raises ValueError if
    metric, scorer or questions differ, or a run has no value.
    """
    if (a.metric, a.scorer) != (b.metric, b.scorer):
        raise ValueError(
            f"Run A was scored by {a.metric} ({a.scorer}), run B by {b.metric} ({b.scorer}): score both "
            "alike."
        )
    if a.value is None or b.value is None:
        raise ValueError(
            f"A run has no value for {a.metric}: give the scores of the same named judge to both."
        )
    for name, left, right in (("A", a.items, b.items), ("B", b.items, a.items)):
        only = [item for item in left if item not in right]
        if only:
            raise ValueError(
                f"Run {name} has {len(only)} questions that the other lacks (first: {only[0]}): compare runs "
                "of the same benchmark, split and limit."
            )
    # Scores of a version that kept no pictures are compared with one another as they are.
    clusters, after = a.clusters_of(a.items), b.clusters_of(a.items)
    if not len(set(clusters)) == len(set(after)) == len(set(zip(clusters, after, strict=True))):
        raise ValueError(
            "The runs differ in which questions share a picture: one was scored by an older version, or from "
            "another copy of the data. Score both again (eval --step score) on the same data."
        )
    statistic = STATISTICS[a.statistic]
    outcomes_b = b.outcomes
    pairs = [(cell, outcomes_b[unit]) for unit, cell in a.outcomes.items()]
    outcomes, counts = resample(
        pairs, lambda pair: cell_group(pair[0]), draws, seed, a.clusters_of(a.outcomes)
    )
    differences = statistic([pair[1] for pair in outcomes], counts) - statistic(
        [pair[0] for pair in outcomes], counts
    )
    gained = tuple(item for item in a.items if b.items[item] > a.items[item])
    lost = tuple(item for item in a.items if b.items[item] < a.items[item])
    is_gained, is_lost = set(gained), set(lost)
    by_cluster: Counter[object] = Counter()
    for item, cluster in zip(a.items, clusters, strict=True):
        by_cluster[cluster] += (item in is_gained) - (item in is_lost)
    return Comparison(
        metric=a.metric,
        scorer=a.scorer,
        n=len(a.items),
        a=a.value,
        b=b.value,
        interval=percentile_interval(differences),
        gained=gained,
        lost=lost,
        n_clusters=len(by_cluster),
        knows_pictures=a.clusters is not None and b.clusters is not None,
        p_value=sign_flip_p(by_cluster.values()) if a.right_wrong and b.right_wrong else None,
        categories=_by_category(a, b),
    )


def _by_category(a: Score, b: Score) -> dict[str, Category]:
    members: dict[str, list[Id]] = defaultdict(list)
    for item, category in a.categories.items():
        members[category].append(item)

    def share(score: Score, items: list[Id]) -> float:
        return 100 * sum(score.items[item] for item in items) / len(items)

    return {
        category: Category(len(members[category]), share(a, members[category]), share(b, members[category]))
        for category in sorted(members)
    }
