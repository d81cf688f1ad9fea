"""A plan's plot: every arm's mean, its seeds, and how sure its difference to the baseline is."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basic_lite.ablation.measures import Measure
from basic_lite.ablation.table import Table
from basic_lite.ablation.texts import heading

COLOURS = {"baseline": "#22262d", "better": "#1b7f5c", "worse": "#b3261e", "open": "#8a8f98"}
PANELS_IN_ROW = 3


def dots(table: Table) -> str:
    """Return one panel for each measure as SVG: arms from top to bottom, the baseline as a line."""
    measures = table.measures
    columns = min(len(measures), PANELS_IN_ROW)
    rows = -(-len(measures) // columns)
    height = rows * (0.9 + 0.34 * len(table.cells))
    figure = Figure(figsize=(11, height), layout="constrained")
    figure.get_layout_engine().set(hspace=0.1)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _panel(axes, table, measure)
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    return svg(figure)


def _panel(axes: Axes, table: Table, measure: Measure) -> None:
    base = table.cells[table.baseline][measure.name].mean
    axes.axvline(base, color=COLOURS["baseline"], linewidth=0.8, linestyle=":")
    for place, row in enumerate(table.cells.values()):
        cell = row[measure.name]
        colour = COLOURS[cell.verdict]
        if cell.interval is not None:
            low, high = (base + end for end in cell.interval)
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        if len(cell.each) > 1:
            axes.plot(cell.each, [place] * len(cell.each), "o", color=colour, markersize=3, alpha=0.45)
        axes.plot([cell.mean], [place], "o", color=colour, markersize=6.5)
    axes.set_xlim(_limits(table, measure))
    names = [f"{name} (baseline)" if name == table.baseline else name for name in table.cells]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    arrow = {"higher": " →", "lower": " ←", None: ""}[measure.better]
    axes.set_title(f"{heading(measure)}{arrow}", fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#b9bec6")
    axes.tick_params(labelsize=8, color="#b9bec6")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.grid(axis="x", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)


def _limits(table: Table, measure: Measure) -> tuple[float, float]:
    """Return an axis for all seeds; wide intervals, as of two seeds, may leave it on either side."""
    cells = [row[measure.name] for row in table.cells.values()]
    base = table.cells[table.baseline][measure.name].mean
    seen = [value for cell in cells for value in cell.each]
    ends = [base + end for cell in cells if cell.interval is not None for end in cell.interval]
    reach = max(max(seen) - min(seen), 1e-9)
    low = max(min(seen + ends), min(seen) - reach) - 0.08 * reach
    high = min(max(seen + ends), max(seen) + reach) + 0.08 * reach
    return low, high


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
