"""Show what `results.json` holds: the figure, how sure it is, what it is made of, and what others report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from basic_lite.scoring.compare import Comparison


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


def overview(contents: Sequence[Mapping[str, Any]]) -> Table:
    """Make one table of several benchmarks, with the published figures beside each value."""
    models = list(dict.fromkeys(m for content in contents for m in content["published"]["values"]))
    # A terminal has 80 columns: names of models stand on several short lines.
    heads = [model.replace("-", "\n").replace(" ", "\n") for model in models]
    table = Table("benchmark, split", "value", "95 % interval", *heads, box=box.SIMPLE_HEAD, padding=0)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for content in contents:
        value, interval = content["value"], content["interval_95"]
        note = "" if content["run"].get("published_size", True) else " *"
        row = [f"{content['benchmark']} {content['split']}{note}"]
        row.append("none" if value is None else f"{value:.2f}")
        row.append("" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}")
        figures = content["published"]["values"]
        row += [f"{figures[model]:.1f}" if model in figures else "" for model in models]
        table.add_row(*row)
    if any(not content["run"].get("published_size", True) for content in contents):
        table.caption = "* not the published rows: not comparable with the figures beside it"
    return table


def comparison_table(name: str, result: Comparison, run_a: Path, run_b: Path) -> Table:
    """Make a table of a paired comparison."""
    title = f"{name}, {result.metric}, scorer {result.scorer}"
    table = Table("", str(run_a), str(run_b), "difference", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    low, high = result.interval
    difference = f"{result.difference:+.2f} ({low:+.2f} to {high:+.2f})"
    table.add_row(f"{result.n} questions", f"{result.a:.2f}", f"{result.b:.2f}", difference)
    verdict = "more than noise" if result.is_clear else "not told from noise"
    table.add_row("95 % paired bootstrap interval", "", "", verdict)
    table.add_row("right in one run only", str(len(result.lost)), str(len(result.gained)), "")
    if result.mcnemar_p is not None:
        table.add_row("McNemar, exact", "", "", f"p = {result.mcnemar_p:.3g}")
    table.add_section()
    for category, row in result.categories.items():
        table.add_row(f"{category} ({row.n})", f"{row.a:.2f}", f"{row.b:.2f}", f"{row.b - row.a:+.2f}")
    return table


def read_results(path: Path) -> dict[str, Any]:
    """Read a `results.json`.

    Raises:
        ValueError: If it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); run `basic-lite eval` again") from error
