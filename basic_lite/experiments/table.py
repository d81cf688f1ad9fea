"""From measured runs to one table: means over seeds, and how sure each difference to the baseline is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from basic_lite.evaluation.statistics import percentile_interval, resample, student_interval
from basic_lite.experiments.measure import Measure
from basic_lite.files import complete

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One measure of one variant."""

    variant: str  # its name
    measure: str  # key of the measure
    mean: float  # over seeds
    each: list[float]  # of each seed
    difference: float | None = None  # to the baseline, mean over seeds; `None` for the baseline itself
    differences: list[float] | None = None  # of each seed
    # 95 % interval of the difference for another seed's runs, Student's t of the seeds' paired differences;
    # `None` with one seed
    over_seeds: Interval | None = None
    # 95 % bootstrap interval of the difference for other scenes or questions and these very runs, paired by
    # unit and pooled over seeds
    over_units: Interval | None = None
    # By `interval`; `open` where it holds 0 or neither side is better
    verdict: Literal["baseline", "better", "worse", "open"] = "baseline"

    @property
    def interval(self) -> Interval | None:
        """The interval that a reader should go by: over seeds, and with one seed over units."""
        return self.over_seeds or self.over_units


@dataclass(frozen=True)
class DifferenceTable:
    """The results of a plan: every variant against the baseline."""

    plan: str  # its name
    asks: str  # the question of the plan
    baseline: str  # the variant that all are compared with
    seeds: list[int]  # what was run
    measures: list[Measure]  # the columns; their values are those of the baseline's first seed
    cells: dict[str, dict[str, Cell]]  # variant -> key of a measure -> cell, in the plan's order

    @property
    def title(self) -> str:
        """Plan, question and number of seeds, for a terminal."""
        return f"{self.plan}: {self.asks} {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"

    @property
    def pairs(self) -> list[Pair]:
        """The measures of a table of two variants, one after the other."""
        base, other = self.cells.values()
        return [Pair(measure, base[measure.name], other[measure.name]) for measure in self.measures]

    @property
    def how_sure(self) -> str:
        """Describe in a sentence what the intervals are."""
        over = " or ".join(dict.fromkeys(measure.over for measure in self.measures))
        if len(self.seeds) == 1:
            return (
                f"Each mean is followed by its difference to {self.baseline}, with the 95 % bootstrap "
                f"interval over {over}, paired: one seed, so it says nothing about other seeds."
            )
        return (
            f"Means over {len(self.seeds)} seeds, each followed by its difference to {self.baseline}, with "
            f"the 95 % interval over seeds (Student's t), paired by seed and within it by {over}."
        )

    def as_dict(self) -> dict[str, object]:
        heads = [{k: v for k, v in asdict(m).items() if k not in ("values", "of")} for m in self.measures]
        cells = {name: {key: asdict(cell) for key, cell in row.items()} for name, row in self.cells.items()}
        own = {name: getattr(self, name) for name in ("plan", "asks", "baseline", "seeds")}
        return {**own, "measures": heads, "variants": cells}


def tabulate(
    plan: str,
    asks: str,
    baseline: str,
    seeds: Sequence[int],
    measured: Mapping[str, Sequence[Sequence[Measure]]],
) -> DifferenceTable:
    """Compare every variant with the baseline, which is one of them.

    `measured` is variant -> for each of `seeds` its measures, the same ones everywhere.
    """
    heads = list(measured[baseline][0])
    cells: dict[str, dict[str, Cell]] = {}
    for variant, runs in measured.items():
        cells[variant] = {}
        for position, head in enumerate(heads):
            own = [run[position] for run in runs]
            base = [run[position] for run in measured[baseline]]
            assert {m.name for m in own + base} == {head.name}, f"the runs of {variant} have other measures"
            cells[variant][head.name] = _cell(variant, head, own, None if variant == baseline else base)
    return DifferenceTable(plan, asks, baseline, list(seeds), heads, cells)


def _cell(variant: str, head: Measure, own: Sequence[Measure], base: Sequence[Measure] | None) -> Cell:
    each = [measure.mean for measure in own]
    if base is None:
        return Cell(variant, head.name, mean(each), each)
    differences = [value - other.mean for value, other in zip(each, base, strict=True)]
    over_seeds = student_interval(differences) if len(differences) > 1 else None
    over_units = paired_interval(own, base) if head.over else None  # what is measured once has no units
    difference, verdict = mean(differences), "open"
    low, high = over_seeds or over_units or (0.0, 0.0)
    if head.better is not None and not low <= 0 <= high:
        verdict = "better" if (difference > 0) == (head.better == "higher") else "worse"
    return Cell(
        variant, head.name, mean(each), each, difference, differences, over_seeds, over_units, verdict
    )


def paired_interval(own: Sequence[Measure], base: Sequence[Measure], seed: int = 0) -> Interval:
    """Return the 95 % bootstrap interval of the mean over runs of `own - base`, resampling units in each run.

    Both hold one measure for each seed, over the same units; `seed` is of the resamples.
    """
    cells = []
    for run, (mine, other) in enumerate(zip(own, base, strict=True)):
        of = [1.0] * len(mine.values) if mine.of is None else mine.of
        cells += [(run, *unit) for unit in zip(mine.values, other.values, of, strict=True)]
    outcomes, counts = resample(cells, lambda cell: cell[0], seed=seed)
    table = np.asarray(outcomes, dtype=float)
    total = np.zeros(len(counts))
    for run in range(len(own)):
        rows = table[:, 0] == run
        here = counts[:, rows]
        total += here @ (table[rows, 1] - table[rows, 2]) / (here @ table[rows, 3])
    return percentile_interval(total / len(own))


# The table as text: variants from top to bottom, or two variants side by side.


def number(value: float, measure: Measure, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''},.{measure.digits}f}"


def interval(cell: Cell, measure: Measure) -> str:
    """Return an interval as in `-0.003 to +0.027`; empty where there is none."""
    if cell.interval is None:
        return ""
    return " to ".join(number(end, measure, signed=True) for end in cell.interval)


def change(cell: Cell, measure: Measure) -> str:
    """Return a difference with its interval, as in `+0.012 (-0.003 to +0.027)`; empty for the baseline."""
    if cell.difference is None:
        return ""
    return f"{number(cell.difference, measure, signed=True)} ({interval(cell, measure)})"


_COLOURS = {"better": "green", "worse": "red"}


def coloured(text: str, cell: Cell) -> Text:
    return Text(text, _COLOURS.get(cell.verdict, ""))


def rich_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str | Text]] = ()) -> Table:
    """Return a table for a terminal; all columns but the first stand at the right."""
    made = Table(heads[0], title=title, title_justify="left")
    for head in heads[1:]:
        made.add_column(head, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def for_terminal(table: DifferenceTable) -> Table:
    """Return a row for each variant and a column for each measure."""
    rows = []
    for variant, row in table.cells.items():
        shown: list[str | Text] = [f"{variant}\n(baseline)" if variant == table.baseline else variant]
        for measure in table.measures:
            cell = row[measure.name]
            changed = ("\n", coloured(change(cell, measure), cell)) if cell.difference is not None else ()
            shown.append(Text.assemble(number(cell.mean, measure), *changed))
        rows.append(shown)
    return rich_table(table.title, ["variant", *(measure.heading for measure in table.measures)], rows)


def write_markdown(table: DifferenceTable, path: Path, command: str, notes: Sequence[str] = ()) -> None:
    """Write the table for a README, with what its intervals are, `notes` and the command that made it."""
    rows = []
    for variant, row in table.cells.items():
        cells = [f"{number(row[m.name].mean, m)} {change(row[m.name], m)}".strip() for m in table.measures]
        rows.append([f"**{variant}**" if variant == table.baseline else variant, *cells])
    heads = ["variant", *(measure.heading for measure in table.measures)]
    write_rows(path, heads, rows, after=["", table.how_sure, *notes, f"`{command}`"])


def write_rows(
    path: Path,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> None:
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    lines = [*before, lines[0], "|---" * len(heads) + "|", *lines[1:], *after]
    with complete(path) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Pair:
    """One measure of a baseline and the only other variant."""

    measure: Measure
    base: Cell
    other: Cell

    @property
    def group(self) -> str:
        """Heading that it belongs under."""
        return ", ".join(filter(None, (self.measure.over, self.measure.group)))

    def texts(self, each_seed: bool) -> list[str]:
        """Return label, both means, the difference, its interval and, where asked, that of each seed."""
        measure, other = self.measure, self.other
        assert other.difference is not None, "the baseline comes first"
        assert other.differences is not None, "the baseline comes first"
        label = f"{measure.label} ({measure.unit})" if measure.unit else measure.label
        means = [number(cell.mean, measure) for cell in (self.base, other)]
        texts = [label, *means, number(other.difference, measure, signed=True), interval(other, measure)]
        if each_seed:
            texts.append(" ".join(number(value, measure, signed=True) for value in other.differences))
        return texts


def _pair_heads(table: DifferenceTable) -> list[str]:
    base, other = table.cells
    heads = ["", base, other, f"{other} - {base}", "95 % interval"]
    return [*heads, "each seed"] if len(table.seeds) > 1 else heads


def side_by_side(table: DifferenceTable, title: str) -> Table:
    """Return a row for each measure of two variants, for a terminal."""
    made = rich_table(title, _pair_heads(table))
    for group, members in groupby(table.pairs, lambda pair: pair.group):
        made.add_section()
        made.add_row(group, style="bold")
        for pair in members:
            texts = pair.texts(len(table.seeds) > 1)
            made.add_row(*texts[:3], coloured(texts[3], pair.other), *texts[4:])
    return made


def write_side_by_side(table: DifferenceTable, path: Path) -> None:
    """Write a row for each measure of two variants, for a README."""
    heads, rows = _pair_heads(table), []
    for group, members in groupby(table.pairs, lambda pair: pair.group):
        rows.append([f"**{group}**", *[""] * (len(heads) - 1)])
        rows += [[text.strip() for text in pair.texts(len(table.seeds) > 1)] for pair in members]
    write_rows(path, heads, rows)
