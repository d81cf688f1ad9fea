"""Scores and how sure they are: bootstrap intervals over pictures, from counts.

Answers about one picture are no independent draws (GQA asks 32 questions about each), so pictures are
resampled, each with all its questions (the cluster bootstrap; Davison and Hinkley, Bootstrap Methods and
their Application, section 3.8). A resample is a multinomial draw over the distinct pictures, never a copy. An
outcome (`Cell`) is a number, or a tuple that begins with its group; groups are resampled separately, because
the benchmarks fix their sizes.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from basic_lite.evaluation.question import Id, Question
from basic_lite.files import write_text

Cell = float | tuple[Any, ...]
Statistic = Callable[[Sequence[Any], np.ndarray], np.ndarray]
"""`(K outcomes, (draws, K) counts) -> (draws,)` values."""

DRAWS = 10_000
CONFIDENCE = 0.95
_MOST_NUMBERS = 60_000_000  # random numbers for one interval: some seconds; 1,000 draws are made in any case

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""97.5 % quantiles of Student's t for 1 to 20 degrees of freedom; beyond, the normal's serves."""


def resample(
    cells: Sequence[Hashable],  # one outcome per unit
    group: Callable[[Any], Hashable],  # the group of an outcome
    draws: int = DRAWS,  # how many resamples; fewer, but at least 1,000, where very many clusters differ
    seed: int = 0,  # of the random numbers
    # What each unit belongs to, such as its picture; `None` where each stands alone
    clusters: Sequence[Hashable] | None = None,
) -> tuple[list[Any], np.ndarray]:
    """Draw bootstrap resamples of clusters, those of different groups separately.

    Returns:
        The K distinct outcomes and `(draws, K)` counts; a row's sum varies where clusters differ in size.
    """
    outcomes = list(dict.fromkeys(cells))
    position = {outcome: number for number, outcome in enumerate(outcomes)}
    members: dict[Hashable, list[int]] = defaultdict(list)
    for unit, cell in enumerate(cells):
        members[unit if clusters is None else clusters[unit]].append(position[cell])
    # Clusters with the same outcomes are one kind: 214,354 lone VQAv2 answers have five.
    kinds = Counter(tuple(sorted(positions)) for positions in members.values())
    strata: dict[Hashable, list[tuple[int, ...]]] = defaultdict(list)
    for kind in kinds:
        strata[frozenset(group(outcomes[number]) for number in kind)].append(kind)
    draws = min(draws, max(1_000, _MOST_NUMBERS // max(len(kinds), 1)))
    counts = np.zeros((draws, len(outcomes)), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for stratum in strata.values():
        observed = np.array([kinds[kind] for kind in stratum])
        content = np.zeros((len(stratum), len(outcomes)))  # float: numpy multiplies these by BLAS, exactly
        for row, kind in enumerate(stratum):
            np.add.at(content[row], list(kind), 1)
        for start in range(0, draws, 500):  # 20,000 kinds of pictures in all draws at once would take a GiB
            size = min(500, draws - start)
            drawn = generator.multinomial(observed.sum(), observed / observed.sum(), size=size)
            counts[start : start + size] += (drawn @ content).astype(np.int64)
    return outcomes, counts


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the central 95 % of resampled values."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def cell_group(cell: Cell) -> Hashable:
    """Return the group of an outcome: its first entry, or none for a plain number."""
    return cell[0] if isinstance(cell, tuple) else None


def bootstrap_interval(
    cells: Sequence[Cell],
    statistic: Statistic,
    draws: int = DRAWS,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic over units; arguments as of `resample`."""
    outcomes, counts = resample(cells, cell_group, draws, seed, clusters)
    return percentile_interval(statistic(outcomes, counts))


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean of at least two values, by Student's t."""
    freedom = len(values) - 1
    quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96
    middle, reach = mean(values), quantile * stdev(values) / math.sqrt(len(values))
    return middle - reach, middle + reach


def _shares(right: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Divide; 0 where there is nothing to divide by."""
    return np.divide(right, of, out=np.zeros_like(right, dtype=float), where=of > 0)


def mean_of(cells: Sequence[float], counts: np.ndarray) -> np.ndarray:
    return counts @ np.asarray(cells, dtype=float) / counts.sum(axis=1)


def _columns_of(cells: Sequence[tuple[Any, ...]]) -> dict[str, list[int]]:
    """Return group -> positions of its outcomes, in order of name."""
    columns = defaultdict(list)
    for position, cell in enumerate(cells):
        columns[cell[0]].append(position)
    return dict(sorted(columns.items()))


def pooled_f1(cells: Sequence[tuple[str, bool, bool]], counts: np.ndarray) -> np.ndarray:
    """Return 100 x F1 of "yes", 2TP / (2TP + FP + FN), over `(category, answered yes, is yes)`."""
    _, said, true = (np.array(column) for column in zip(*cells, strict=True))
    hits = counts @ (said & true)
    return 100 * _shares(2.0 * hits, 2 * hits + counts @ (said ^ true))


def mean_f1(cells: Sequence[tuple[str, bool, bool]], counts: np.ndarray) -> np.ndarray:
    """Return the mean of the categories' F1 (POPE as LLaVA reports it)."""
    groups = _columns_of(cells).values()
    return np.mean([pooled_f1([cells[c] for c in columns], counts[:, columns]) for columns in groups], axis=0)


def pair_points(cells: Sequence[tuple[str, int, int]], counts: np.ndarray) -> np.ndarray:
    """Return the sum over categories of MME's points, from one `(category, right, asked)` per picture.

    A category gives 100 x the share of right answers plus 100 x the share of pictures with all answers right.
    """
    total = np.zeros(len(counts))
    for columns in _columns_of(cells).values():
        _, right, asked = (np.array(column) for column in zip(*(cells[c] for c in columns), strict=True))
        here = counts[:, columns]
        total += 100 * _shares((here @ right).astype(float), here @ asked)
        total += 100 * _shares((here @ (right == asked)).astype(float), here.sum(axis=1))
    return total


def weighted_groups(cells: Sequence[tuple[str, float, float]], counts: np.ndarray) -> np.ndarray:
    """Return the weighted mean of the means of the groups that are there, from `(group, weight, value)`s."""
    total, weights = np.zeros(len(counts)), 0.0
    for columns in _columns_of(cells).values():
        weight = cells[columns[0]][1]
        total += weight * mean_of([cells[c][2] for c in columns], counts[:, columns])
        weights += weight
    return total / weights


def ratio_of_means(cells: Sequence[tuple[str, float, float]], counts: np.ndarray) -> np.ndarray:
    """Return 100 x the mean grade of a model / that of its reference, from `(group, reference, model)`."""
    reference, model = (np.array([cell[place] for cell in cells], dtype=float) for place in (1, 2))
    return 100 * _shares(counts @ model, counts @ reference)


STATISTICS: dict[str, Statistic] = {
    "mean": mean_of,
    "pooled_f1": pooled_f1,
    "mean_f1": mean_f1,
    "pair_points": pair_points,
    "weighted_groups": weighted_groups,
    "ratio_of_means": ratio_of_means,
}


@dataclass(frozen=True)
class Score:
    """The outcome of scoring one benchmark."""

    metric: str  # what `value` is, in words
    scorer: str  # name of the scoring rule
    # The number to publish, in per cent (MME: points); `None` where only a judge can give it
    value: float | None
    items: Mapping[Id, float]  # question (for MMBench a group of rotations) -> share right in [0, 1]
    # Question -> category, for the paired comparison
    categories: Mapping[Id, str] = field(default_factory=dict)
    # Question -> picture, where several questions are about one; `None` in scores of versions that did not
    # keep it
    clusters: Mapping[Id, Id] | None = field(default_factory=dict)
    # Unit -> outcome, where the value is no mean of `items`
    cells: Mapping[Id, Cell] = field(default_factory=dict)
    statistic: str = "mean"  # name in `STATISTICS` of what makes the value from the outcomes
    right_wrong: bool = False  # whether each item is right or wrong, with nothing between
    # Name of a grouping -> group -> value
    breakdown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)  # other numbers, by name
    unparsed: int = 0  # answers from which the rule read nothing
    missing: int = 0  # questions without a prediction; they count as wrong
    notes: tuple[str, ...] = ()  # what a reader of the number must know

    @property
    def outcomes(self) -> Mapping[Id, Cell]:
        """Return unit -> outcome, on the scale of `value`."""
        return self.cells or {item: 100.0 * share for item, share in self.items.items()}

    def clusters_of(self, units: Iterable[Id]) -> list[tuple[str, Id]]:
        """Return what each unit is resampled with: its picture, or itself."""
        pictures = self.clusters or {}
        return [("picture", pictures[unit]) if unit in pictures else ("unit", unit) for unit in units]

    @property
    def n_clusters(self) -> int:
        return len(set(self.clusters_of(self.outcomes)))

    def interval(self) -> tuple[float, float] | None:
        cells = self.outcomes
        if self.value is None or not cells:
            return None
        statistic = STATISTICS[self.statistic]
        return bootstrap_interval(list(cells.values()), statistic, clusters=self.clusters_of(cells))


def score_of(
    questions: Sequence[Question],
    predictions: Mapping[Id, str],
    items: Mapping[Id, float],
    *,
    scorer: str,
    metric: str = "accuracy",
    groupings: Iterable[str] = (),
    **more: Any,
) -> Score:
    """Make the score of a benchmark whose units are its questions.

    `items` has the share right of the questions that count; `groupings` are the entries of `Question.fields`
    to break the value down by; `more` are other attributes of `Score`, in place of what is worked out here.
    """
    counted = {question.id: question for question in questions if question.id in items}
    made: dict[str, Any] = {
        "value": percent(items),
        "categories": {item: counted[item].category for item in items},
        "clusters": {item: q.picture for item, q in counted.items() if q.picture is not None},
        "breakdown": {
            name: mean_by(items, lambda item, name=name: counted[item].fields.get(name)) for name in groupings
        },
        "unparsed": sum(not text.strip() for text in predictions.values()),
        "missing": len(questions) - len(predictions),
    }
    return Score(metric=metric, scorer=scorer, items=items, **(made | more))


def value_of(cells: Iterable[Cell], statistic: str) -> float:
    """Return a statistic over units as they are; 0 for none."""
    cells = list(cells)
    if not cells:
        return 0.0
    return float(STATISTICS[statistic](cells, np.ones((1, len(cells)), dtype=np.int64))[0])


def mean_by(items: Mapping[Id, float], group: Callable[[Id], str | None]) -> dict[str, float]:
    """Return 100 x the mean of items by group, in order of name; items without a group are left out."""
    groups: dict[str, list[float]] = defaultdict(list)
    for item, share in items.items():
        name = group(item)
        if name:
            groups[name].append(share)
    return {name: 100 * sum(groups[name]) / len(groups[name]) for name in sorted(groups)}


def percent(items: Mapping[Id, float]) -> float:
    """Return 100 x the mean of items; 0 for none."""
    return 100 * sum(items.values()) / len(items) if items else 0.0


def save_score(score: Score, path: str | Path) -> None:
    """Write a score with its items, so that a comparison needs no annotations."""
    content = asdict(score)
    for name in ("items", "categories", "clusters", "cells"):  # pairs keep the difference between 7 and "7"
        content[name] = None if content[name] is None else list(content[name].items())
    write_text(Path(path), json.dumps(content, ensure_ascii=False))


def load_score(path: str | Path) -> Score:
    """Read what `save_score` wrote; raises ValueError if the file is missing or no score."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        for name in ("items", "categories"):
            content[name] = dict(content[name])
        content["clusters"] = None if content.get("clusters") is None else dict(content["clusters"])
        content["cells"] = {
            unit: tuple(cell) if isinstance(cell, list) else cell for unit, cell in content["cells"]
        }
        return Score(**{**content, "notes": tuple(content["notes"])})
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: score the predictions of this run first.") from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no score: score the predictions of this run again.") from None
