"""A sweep: plain against BASIC at every level of one setting, and where BASIC helped, in two sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from basic_lite.experiments.measure import Measure
from basic_lite.experiments.plans import DEMO_VARIANTS, Plan, at_level
from basic_lite.experiments.table import (
    DifferenceTable,
    Pair,
    change,
    number,
    pairs,
    tabulate,
    write_rows,
)
from basic_lite.files import read_manifest

AXES: dict[str, str] = {
    "data": "samples seen in stage 1",
    "rate": "learning rate",
    "patches": "patches per picture",
}
"""What the levels of each sweep are, in words."""


def place_of(plan: str, run: Path) -> float:
    """Return where a level of a sweep lies on its axis, from a run's manifest."""
    manifest = read_manifest(run / "stage1")
    if plan == "patches":
        return manifest["tokens_per_image"]
    training = manifest["training"]
    return (
        training["learning_rate"] if plan == "rate" else float(manifest["steps"] * training["global_batch"])
    )


@dataclass(frozen=True)
class Level:
    """One level of a sweep.

    Attributes:
        name: in the plan.
        place: where it lies on the axis.
        table: plain and BASIC at it.
    """

    name: str
    place: float
    table: DifferenceTable

    @property
    def label(self) -> str:
        """Its place, for people."""
        return f"{self.place:,.0f}" if self.place >= 1 else f"{self.place:g}"

    def pair(self, measure: str) -> Pair:
        """Return plain and BASIC by one measure."""
        return next(pair for pair in pairs(self.table) if pair.measure.name == measure)


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep.

    Attributes:
        plan: its name.
        asks: its question.
        levels: ascending.
    """

    plan: str
    asks: str
    levels: list[Level]

    @property
    def axis(self) -> str:
        """What the levels are."""
        return AXES[self.plan]

    @property
    def measures(self) -> list[Measure]:
        """The measures that every level has."""
        shared = [{m.name for m in level.table.measures} for level in self.levels]
        return [m for m in self.levels[-1].table.measures if m.name in set.intersection(*shared)]

    @property
    def sentences(self) -> list[str]:
        """Say where BASIC helped, a sentence or two for each measure that has a better side.

        The cosine to the target is left out: BASIC is trained on it.
        """
        return [
            self._said(m) for m in self.measures if m.better is not None and not m.name.startswith("cosine")
        ]

    def _said(self, measure: Measure) -> str:
        by_verdict = {verdict: [] for verdict in ("better", "worse", "open")}
        for level in self.levels:
            by_verdict[level.pair(measure.name).other.verdict].append(level)
        words = {
            "better": "BASIC is ahead of plain at",
            "worse": "behind it at",
            "open": "within noise of it at",
        }
        parts = [
            f"{words[verdict]} {_listed([level.label for level in levels])}"
            for verdict, levels in by_verdict.items()
            if levels
        ]
        if not by_verdict["better"]:
            parts[0] = f"BASIC is {parts[0]}"
        sign = 1 if measure.better == "higher" else -1
        best = max(self.levels, key=lambda level: sign * (level.pair(measure.name).other.difference or 0.0))
        text = change(best.pair(measure.name).other, best.pair(measure.name).measure)
        return (
            f"{measure.heading[0].upper()}{measure.heading[1:]}: {', '.join(parts)} ({self.axis}). "
            f"BASIC's best difference is {text}, at {best.label}."
        )

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON, every seed's figure included."""
        levels = [
            {"level": level.name, "place": level.place, **level.table.as_dict()} for level in self.levels
        ]
        return {"plan": self.plan, "asks": self.asks, "axis": self.axis, "levels": levels}


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def sweep_of(
    plan: Plan,
    seeds: Sequence[int],
    measured: Mapping[str, Sequence[Sequence[Measure]]],
    places: Mapping[str, float],
) -> Sweep:
    """Compare plain and BASIC at every level.

    Args:
        plan: the sweep's.
        seeds: in the order of each variant's runs.
        measured: variant -> for each seed its measures.
        places: level -> where it lies on the axis.
    """
    levels = [
        Level(
            level,
            place,
            tabulate(
                plan.name,
                plan.asks,
                plan.baseline,
                seeds,
                {variant: measured[at_level(variant, level)] for variant in DEMO_VARIANTS},
            ),
        )
        for level, place in places.items()
    ]
    return Sweep(plan.name, plan.asks, sorted(levels, key=lambda level: level.place))


def table_rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return heads, and for each level plain, BASIC and the difference by every measure."""
    heads = [sweep.axis]
    for measure in sweep.measures:
        heads += [f"{measure.heading}: plain", "BASIC", "difference"]
    rows = []
    for level in sweep.levels:
        cells = [level.label]
        for measure in sweep.measures:
            pair = level.pair(measure.name)
            cells += [number(cell.mean, measure) for cell in (pair.base, pair.other)]
            cells.append(change(pair.other, measure))
        rows.append(cells)
    return heads, rows


def for_terminal(sweep: Sweep) -> Table:
    """Return a row for each level."""
    heads, rows = table_rows(sweep)
    seeds = sweep.levels[0].table.seeds
    title = f"{sweep.plan}: {sweep.asks} {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    made = Table(*heads, title=title, title_justify="left")
    for column in made.columns:
        column.justify = "right"
    for row in rows:
        made.add_row(*row)
    return made


def write_markdown(sweep: Sweep, path: Path, command: str) -> None:
    """Write sentences and table for a README."""
    heads, rows = table_rows(sweep)
    write_rows(
        path,
        heads,
        rows,
        before=[*sweep.sentences, ""],
        after=["", sweep.levels[0].table.how_sure, f"`{command}`"],
    )
