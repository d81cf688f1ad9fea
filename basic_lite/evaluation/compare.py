"""Is the difference between two runs more than noise? Answers are paired by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from basic_lite.evaluation.statistics import (
    DRAWS,
    STATISTICS,
    Id,
    Score,
    cell_group,
    percentile_interval,
    resample,
)


@dataclass(frozen=True)
class CategoryDifference:
    """One category of a comparison: questions, and the mean share right of either run, in per cent."""

    n: int
    a: float
    b: float

    @property
    def difference(self) -> float:
        """Return B minus A."""
        return self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """Run B against run A on the same questions.

    Attributes:
        metric: What the values are.
        scorer: The scoring rule of both.
        n: Questions (for MMBench groups of rotations).
        a: Value of run A.
        b: Value of run B.
        interval: 95 % paired bootstrap interval of `difference`.
        gained: Questions that B has more right than A.
        lost: Questions that B has less right than A.
        mcnemar_p: Exact two-sided p of McNemar's test; `None` where an answer can be half right.
        categories: Category -> its difference.
    """

    metric: str
    scorer: str
    n: int
    a: float
    b: float
    interval: tuple[float, float]
    gained: tuple[Id, ...]
    lost: tuple[Id, ...]
    mcnemar_p: float | None
    categories: Mapping[str, CategoryDifference]

    @property
    def difference(self) -> float:
        """Return B minus A."""
        return self.b - self.a

    @property
    def flipped(self) -> tuple[Id, ...]:
        """Return the questions whose share right changed, lost ones first."""
        return self.lost + self.gained

    @property
    def is_clear(self) -> bool:
        """Return whether the interval leaves out a difference of 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided exact p that flips fall as unevenly as `gained` to `lost` by chance.

    `p = min(1, 2 P[X <= min(gained, lost)])`, `X ~ Binomial(gained + lost, 1/2)`; 1 without flips.
    """
    flips = gained + lost
    ways = tail = 1  # to choose none of the flips; whole numbers, as 2**flips is beyond a float
    for k in range(min(gained, lost)):
        ways = ways * (flips - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**flips)


def compare(a: Score, b: Score, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare two runs on the same questions, scored by the same rule.

    Args:
        a: The run to compare with.
        b: The run of interest.
        draws: Bootstrap resamples; each draws the same questions for both runs.
        seed: Of the resamples.

    Raises:
        ValueError: If metric, scorer or questions differ, or a run has no value.
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
    statistic = STATISTICS[a.statistic]
    after = b.outcomes
    pairs = [(cell, after[unit]) for unit, cell in a.outcomes.items()]
    outcomes, counts = resample(pairs, lambda pair: cell_group(pair[0]), draws, seed)
    differences = statistic([pair[1] for pair in outcomes], counts) - statistic(
        [pair[0] for pair in outcomes], counts
    )
    gained = tuple(item for item in a.items if b.items[item] > a.items[item])
    lost = tuple(item for item in a.items if b.items[item] < a.items[item])
    return Comparison(
        metric=a.metric,
        scorer=a.scorer,
        n=len(a.items),
        a=a.value,
        b=b.value,
        interval=percentile_interval(differences),
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_exact(len(gained), len(lost)) if a.right_wrong and b.right_wrong else None,
        categories=_by_category(a, b),
    )


def _by_category(a: Score, b: Score) -> dict[str, CategoryDifference]:
    members: dict[str, list[Id]] = defaultdict(list)
    for item, category in a.categories.items():
        members[category].append(item)

    def share(score: Score, items: list[Id]) -> float:
        return 100 * sum(score.items[item] for item in items) / len(items)

    return {
        category: CategoryDifference(
            len(members[category]), share(a, members[category]), share(b, members[category])
        )
        for category in sorted(members)
    }
