"""From measured runs to one table: means over seeds, and how sure each difference to the baseline is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Literal

import numpy as np

from basic_lite.ablation.measures import Measure
from basic_lite.scoring.interval import percentile_interval, resample, student_interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One measure of one arm.

    Attributes:
        arm: its name.
        measure: key of the measure.
        mean: over seeds.
        each: of each seed.
        difference: to the baseline, mean over seeds; `None` for the baseline itself.
        differences: of each seed.
        over_seeds: 95 % interval of the difference for another seed's runs, Student's t of the seeds' paired
            differences; `None` with one seed.
        over_units: 95 % bootstrap interval of the difference for other scenes or questions and these very
            runs, paired by unit and pooled over seeds.
        verdict: `better`, `worse`, or `open` where the interval holds 0; by `interval`.
    """

    arm: str
    measure: str
    mean: float
    each: list[float]
    difference: float | None = None
    differences: list[float] | None = None
    over_seeds: Interval | None = None
    over_units: Interval | None = None
    verdict: Literal["baseline", "better", "worse", "open"] = "baseline"

    @property
    def interval(self) -> Interval | None:
        """The interval that a reader should go by: over seeds, and with one seed over units."""
        return self.over_seeds or self.over_units


@dataclass(frozen=True)
class Table:
    """Everything that a plan found.

    Attributes:
        plan: its name.
        asks: its question.
        baseline: name of the arm that all are compared with.
        seeds: what was run.
        measures: the columns; their values are those of the baseline's first seed.
        cells: arm -> key of a measure -> cell, in the plan's order.
    """

    plan: str
    asks: str
    baseline: str
    seeds: list[int]
    measures: list[Measure]
    cells: dict[str, dict[str, Cell]]

    @property
    def how_sure(self) -> str:
        """Say in a sentence what the intervals are."""
        over = " or ".join(dict.fromkeys(measure.over for measure in self.measures))
        if len(self.seeds) == 1:
            return (
                f"Behind each mean its difference to {self.baseline}, with its 95 % bootstrap interval over "
                f"{over}, paired: one seed, so it says nothing about other seeds."
            )
        return (
            f"Means over {len(self.seeds)} seeds; behind each its difference to {self.baseline}, with its "
            f"95 % interval over seeds (Student's t), paired by seed and within it by {over}."
        )

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        heads = [{k: v for k, v in asdict(m).items() if k not in ("values", "of")} for m in self.measures]
        cells = {arm: {name: asdict(cell) for name, cell in row.items()} for arm, row in self.cells.items()}
        return {
            "plan": self.plan,
            "asks": self.asks,
            "baseline": self.baseline,
            "seeds": self.seeds,
            "measures": heads,
            "arms": cells,
        }


def tabulate(
    plan: str,
    asks: str,
    baseline: str,
    seeds: Sequence[int],
    found: Mapping[str, Sequence[Sequence[Measure]]],
) -> Table:
    """Compare every arm with the baseline.

    Args:
        plan: its name.
        asks: its question.
        baseline: an arm of `found`.
        seeds: in the order of each arm's runs.
        found: arm -> for each seed its measures, the same ones everywhere.
    """
    heads = list(found[baseline][0])
    cells: dict[str, dict[str, Cell]] = {}
    for arm, runs in found.items():
        cells[arm] = {}
        for position, head in enumerate(heads):
            own = [run[position] for run in runs]
            base = [run[position] for run in found[baseline]]
            assert {m.name for m in own + base} == {head.name}, f"the runs of {arm} have other measures"
            cells[arm][head.name] = _cell(arm, head, own, None if arm == baseline else base)
    return Table(plan, asks, baseline, list(seeds), heads, cells)


def _cell(arm: str, head: Measure, own: Sequence[Measure], base: Sequence[Measure] | None) -> Cell:
    each = [measure.mean for measure in own]
    if base is None:
        return Cell(arm, head.name, mean(each), each)
    differences = [one - other.mean for one, other in zip(each, base, strict=True)]
    over_seeds = student_interval(differences) if len(differences) > 1 else None
    over_units = paired_interval(own, base)
    difference, (low, high) = mean(differences), over_seeds or over_units
    verdict = "open"
    if head.better is not None and not low <= 0 <= high:
        verdict = "better" if (difference > 0) == (head.better == "higher") else "worse"
    return Cell(arm, head.name, mean(each), each, difference, differences, over_seeds, over_units, verdict)


def paired_interval(own: Sequence[Measure], base: Sequence[Measure], seed: int = 0) -> Interval:
    """Return the 95 % bootstrap interval of the mean over runs of `own - base`, resampling units in each run.

    Args:
        own: one measure for each seed.
        base: the baseline's, over the same units.
        seed: of the resamples.
    """
    cells = []
    for run, (one, other) in enumerate(zip(own, base, strict=True)):
        of = [1.0] * len(one.values) if one.of is None else one.of
        cells += [(run, *unit) for unit in zip(one.values, other.values, of, strict=True)]
    outcomes, counts = resample(cells, lambda cell: cell[0], seed=seed)
    table = np.asarray(outcomes, dtype=float)
    total = np.zeros(len(counts))
    for run in range(len(own)):
        rows = table[:, 0] == run
        here = counts[:, rows]
        total += here @ (table[rows, 1] - table[rows, 2]) / (here @ table[rows, 3])
    return percentile_interval(total / len(own))
