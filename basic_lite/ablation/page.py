"""A plan's page: its question, its plot and its table in one HTML file."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

from basic_lite.ablation.plots import dots
from basic_lite.ablation.table import Table
from basic_lite.ablation.texts import change, heading, number
from basic_lite.writing import complete

PAGE = Path(__file__).with_name("page.html")
"""The frame: text and style, with `$names` for what is filled in."""


def write(table: Table, path: Path, command: str) -> None:
    """Write the page.

    Args:
        table: what was found.
        path: of the file.
        command: that makes it again.
    """
    text = Template(PAGE.read_text(encoding="utf-8")).substitute(
        plan=escape(table.plan),
        asks=escape(table.asks),
        plot=dots(table),
        head="".join(f"<th>{escape(heading(measure))}</th>" for measure in table.measures),
        rows="\n".join(_row(arm, table) for arm in table.cells),
        sure=escape(table.how_sure),
        command=escape(command),
    )
    with complete(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _row(arm: str, table: Table) -> str:
    cells = []
    for measure in table.measures:
        cell = table.cells[arm][measure.name]
        changed = f"<br><small>{escape(change(cell, measure))}</small>" if cell.difference is not None else ""
        cells.append(f'<td class="{cell.verdict}">{number(cell.mean, measure)}{changed}</td>')
    name = f"{escape(arm)} <small>baseline</small>" if arm == table.baseline else escape(arm)
    return f"<tr><td>{name}</td>{''.join(cells)}</tr>"
