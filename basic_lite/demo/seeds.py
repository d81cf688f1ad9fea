"""Several demos with seeds of their own: mean and interval of every column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich.table import Table

from basic_lite.scoring.interval import student_interval
from basic_lite.writing import complete, write_json


def collect(folders: Sequence[Path], out: Path) -> list[dict[str, object]]:
    """Read the `summary.json` of each folder, and write `seeds.json` and `seeds.md` in `out`.

    Returns:
        For each column its name, label, group, unit, digits, the means of both twins, the mean difference,
        its 95 % interval over seeds (Student's t), and each seed's difference.
    """
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]
    found = []
    for columns in zip(*(summary["columns"] for summary in summaries), strict=True):
        names = {column["name"] for column in columns}
        assert len(names) == 1, f"the demos have different columns: {names}"
        differences = [column["difference"] for column in columns]
        found.append(
            {key: columns[0][key] for key in ("name", "label", "group", "unit", "better", "digits")}
            | {side: mean(column[side] for column in columns) for side in ("plain", "basic")}
            | {"difference": mean(differences), "interval_95": student_interval(differences)}
            | {"each": differences}
        )
    write_json(out / "seeds.json", {"seeds": [s["seed"] for s in summaries], "columns": found})
    with complete(out / "seeds.md") as draft:
        draft.write_text("\n".join(_markdown(found)) + "\n", encoding="utf-8")
    return found


def _cells(column: dict[str, object]) -> list[str]:
    digits = column["digits"]
    unit = f" ({column['unit']})" if column["unit"] else ""
    low, high = column["interval_95"]
    return [
        f"{str(column['label']).strip()}{unit}",
        f"{column['plain']:,.{digits}f}",
        f"{column['basic']:,.{digits}f}",
        f"{column['difference']:+,.{digits}f}",
        f"{low:+,.{digits}f} to {high:+,.{digits}f}",
        " ".join(f"{value:+,.{digits}f}" for value in column["each"]),
    ]


_HEAD = ("", "plain", "BASIC", "difference", "95 % interval", "each seed")


def _markdown(found: Sequence[dict[str, object]]) -> list[str]:
    lines = [f"| {' | '.join(_HEAD)} |", "|---|---|---|---|---|---|"]
    group = ""
    for column in found:
        if column["group"] != group:
            group = str(column["group"])
            lines.append(f"| **{group}** | | | | | |")
        lines.append(f"| {' | '.join(_cells(column))} |")
    return lines


def table(found: Sequence[dict[str, object]]) -> Table:
    """Make a table of `collect`'s columns."""
    made = Table(*_HEAD, title="means over seeds", title_justify="left")
    group = ""
    for column in made.columns[1:]:
        column.justify = "right"
    for column in found:
        if column["group"] != group:
            group = str(column["group"])
            made.add_section()
            made.add_row(f"[bold]{group}[/bold]")
        made.add_row(*_cells(column))
    return made
