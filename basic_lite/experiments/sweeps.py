"""A sweep: plain against BASIC at every level of one setting, and where BASIC helped, in two sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from basic_lite.data.world.scenes import COLOURS
from basic_lite.experiments.measure import Measure
from basic_lite.experiments.plans import DEMO_VARIANTS, NAMED, SQUEEZED, Options, Plan, at_level
from basic_lite.experiments.table import (
    DifferenceTable,
    Pair,
    change,
    coloured,
    number,
    rich_table,
    tabulate,
    write_rows,
)
from basic_lite.files import read_manifest


def place_of(plan: str, run: Path, options: Options) -> float:
    """Return where a level of a sweep lies on its axis.

    It is read from the manifest of `run`, one of the level's; for the plans `world` and `space` from
    `options`, those of the level's variants, as it is no option of a run.
    """
    if plan == "world":
        return float(options.get(NAMED, len(COLOURS)))
    if plan == "space":
        return options.get(SQUEEZED, 1.0)
    manifest = read_manifest(run / "stage1")
    if plan == "patches":
        return manifest["tokens_per_image"]
    training = manifest["training"]
    if plan == "rate":
        return training["learning_rate"]
    return float(manifest["steps"] * training["global_batch"])


@dataclass(frozen=True)
class Level:
    name: str  # in the plan
    place: float  # where it lies on the axis
    table: DifferenceTable  # plain and BASIC at it

    @property
    def label(self) -> str:
        return f"{self.place:,.0f}" if self.place >= 1 else f"{self.place:g}"

    def pair(self, measure: str) -> Pair:
        return next(pair for pair in self.table.pairs if pair.measure.name == measure)


@dataclass(frozen=True)
class Sweep:
    plan: Plan
    levels: list[Level]  # ascending by place

    @property
    def how_sure(self) -> str:
        """What the intervals are, in a sentence; the same at every level."""
        return self.levels[0].table.how_sure

    @property
    def measures(self) -> list[Measure]:
        """The measures that every level has."""
        shared = [{m.name for m in level.table.measures} for level in self.levels]
        return [m for m in self.levels[-1].table.measures if m.name in set.intersection(*shared)]

    @property
    def judged(self) -> list[Measure]:
        """The measures that have a better side; not the cosine to the target, on which BASIC is trained."""
        return [m for m in self.measures if m.better is not None and m.name.split("_stage")[0] != "cosine"]

    @property
    def sentences(self) -> list[str]:
        """Describe where BASIC helped, two sentences for each measure that has a better side."""
        return [self._said(measure) for measure in self.judged]

    def _said(self, measure: Measure) -> str:
        cells = {level.label: level.pair(measure.name).other for level in self.levels}
        words = {
            "better": "ahead of plain at",
            "worse": "behind plain at",
            "open": "within noise of plain at",
        }
        parts = [
            f"{what} {_listed([label for label, cell in cells.items() if cell.verdict == verdict])}"
            for verdict, what in words.items()
            if verdict in {cell.verdict for cell in cells.values()}
        ]
        sign = 1 if measure.better == "higher" else -1
        best = max(cells, key=lambda label: sign * (cells[label].difference or 0.0))
        return (
            f"{measure.heading[0].upper()}{measure.heading[1:]}: BASIC is {', '.join(parts)} "
            f"({self.plan.axis}). Its best difference is {change(cells[best], measure)}, at {best}."
        )

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON, every seed's figure included."""
        levels = [
            {"level": level.name, "place": level.place, **level.table.as_dict()} for level in self.levels
        ]
        plan = self.plan
        return {"plan": plan.name, "asks": plan.asks, "axis": plan.axis, "levels": levels}


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def sweep_of(
    plan: Plan,
    seeds: Sequence[int],
    measured: Mapping[str, Sequence[Sequence[Measure]]],
    places: Mapping[str, float],
) -> Sweep:
    """Compare plain and BASIC at every level.

    `measured` is variant -> for each of `seeds` its measures, `places` level -> where it lies on the axis.
    """
    levels = []
    for level, place in places.items():
        pair = {variant: measured[at_level(variant, level)] for variant in DEMO_VARIANTS}
        levels.append(Level(level, place, tabulate(plan.name, plan.asks, plan.baseline, seeds, pair)))
    return Sweep(plan, sorted(levels, key=lambda level: level.place))


def table_rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return heads, and for each level plain, BASIC and the difference by every measure."""
    heads = [sweep.plan.axis]
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
    """Return a row for each level: plain, BASIC and the difference by each measure that has a better side."""
    rows = []
    for level in sweep.levels:
        cells: list[str | Text] = [level.label]
        for measure in sweep.judged:
            pair = level.pair(measure.name)
            means = f"{number(pair.base.mean, measure)}, {number(pair.other.mean, measure)}"
            cells.append(Text.assemble(means, "\n", coloured(change(pair.other, measure), pair.other)))
        rows.append(cells)
    heads = [sweep.plan.axis, *(f"{measure.heading}\nplain, BASIC" for measure in sweep.judged)]
    return rich_table(sweep.levels[0].table.title, heads, rows)


def write_markdown(sweep: Sweep, said: Sequence[str], path: Path, command: str) -> None:
    write_rows(path, *table_rows(sweep), before=[*said, ""], after=["", sweep.how_sure, f"`{command}`"])
