"""Show what `results.json` holds: the figure, how sure it is, what it is made of, and what others report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def results_table(content: Mapping[str, Any]) -> Table:
    """Make a table of one benchmark's results.

    Args:
        content: of `results.json`.
    """
    title = f"{content['benchmark']} {content['split']}, {content['metric']}, scorer {content['scorer']}"
    table = Table("", "", title=title, title_justify="left", show_header=False, min_width=60)
    table.columns[1].justify = "right"
    if content["value"] is not None:
        low, high = content["interval_95"] or (None, None)
        sure = f"   95 % interval {low:.1f} to {high:.1f}" if low is not None else ""
        table.add_row("[bold]value[/bold]", f"[bold]{content['value']:.2f}[/bold]{sure}")
    counted = f"{content['n']:,}" + (f" (--limit {content['limit']})" if content["limit"] else "")
    table.add_row("prompts", counted)
    for name, value in content["figures"].items():
        shown = f"{value:.2f}" if isinstance(value, float) else value
        if isinstance(value, Mapping):
            shown = "  ".join(
                f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        table.add_row(name.replace("_", " "), str(shown))
    table.add_row("answers without a readable option or value", str(content["parse_failures"]))
    if content["missing_predictions"]:
        table.add_row("[red]questions without an answer[/red]", str(content["missing_predictions"]))
    for name, groups in content["breakdown"].items():
        table.add_section()
        for group, value in groups.items():
            table.add_row(f"{name}: {group}", f"{value:.2f}")
    for note in content["notes"]:
        table.add_section()
        table.add_row(note, "")
    values = content["published"]["values"]
    if values and content["run"].get("published_size", True):
        table.add_section()
        table.add_row(f"published, on {content['published']['measured_on']}", "")
        for model, value in values.items():
            table.add_row(f"  {model}", f"{value:.1f}")
    return table
