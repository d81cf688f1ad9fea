"""A plan's table for a terminal and for a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich.table

from basic_lite.ablation.measures import Measure
from basic_lite.ablation.table import Cell, Table
from basic_lite.writing import complete


def heading(measure: Measure) -> str:
    """Return a measure's label with its unit."""
    return f"{measure.label} ({measure.unit})" if measure.unit else measure.label


def number(value: float, measure: Measure, signed: bool = False) -> str:
    """Return a value as its measure shows it."""
    return f"{value:{'+' if signed else ''},.{measure.digits}f}"


def change(cell: Cell, measure: Measure) -> str:
    """Return a difference with its interval, as in `+0.012 (-0.003 to +0.027)`; empty for the baseline."""
    if cell.difference is None:
        return ""
    ends = " to ".join(number(end, measure, signed=True) for end in cell.interval)
    return f"{number(cell.difference, measure, signed=True)} ({ends})"


def for_terminal(table: Table) -> rich.table.Table:
    """Make the table that ends an ablation."""
    colours = {"better": "green", "worse": "red"}
    seeds = f"{len(table.seeds)} seed{'s' if len(table.seeds) > 1 else ''}"
    made = rich.table.Table("arm", title=f"{table.plan}: {table.asks} {seeds}", title_justify="left")
    for measure in table.measures:
        made.add_column(heading(measure), justify="right")
    for arm, row in table.cells.items():
        shown = []
        for measure in table.measures:
            cell = row[measure.name]
            text = number(cell.mean, measure)
            if changed := change(cell, measure):
                colour = colours.get(cell.verdict)
                text += f"\n[{colour}]{changed}[/]" if colour else f"\n{changed}"
            shown.append(text)
        made.add_row(f"{arm}\n(baseline)" if arm == table.baseline else arm, *shown)
    return made


def write_markdown(table: Table, path: Path, command: str, notes: Sequence[str] = ()) -> None:
    """Write the table for a README, with what its intervals are and how it was made.

    Args:
        table: what was found.
        path: of the file.
        command: that makes it again.
        notes: further lines.
    """
    lines = [
        f"| {' | '.join(['arm', *map(heading, table.measures)])} |",
        "|---" * (len(table.measures) + 1) + "|",
    ]
    for arm, row in table.cells.items():
        cells = [f"{number(row[m.name].mean, m)} {change(row[m.name], m)}".strip() for m in table.measures]
        lines.append(f"| {' | '.join([f'**{arm}**' if arm == table.baseline else arm, *cells])} |")
    with complete(path) as draft:
        draft.write_text(
            "\n".join([*lines, "", table.how_sure, f"`{command}`", *notes]) + "\n", encoding="utf-8"
        )
