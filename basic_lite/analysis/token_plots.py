"""Curves over the decoder's depth, as SVG."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basic_lite.analysis import replacement
from basic_lite.analysis.found import Look
from basic_lite.analysis.tokens import Analysis
from basic_lite.demo.plots import as_svg, quiet_axes

COLOURS: dict[str, str] = {"before": "#b3b9c3", "plain": "#4b5563", "BASIC": "#d1495b"}
"""Of each kind of model."""

SECOND: str = "#2a6f97"
"""Of the second model of one kind."""


def colours(found: Analysis) -> list[str]:
    """Return a colour for each model of an analysis."""
    chosen: list[str] = []
    for subject in found.subjects:
        own = COLOURS[subject.kind]
        chosen.append(SECOND if own in chosen else own)
    return chosen


def depth_curves(found: Analysis) -> str:
    """Return what happens over the layers, a small plot for each measure that there is, as SVG."""
    panels: list[tuple[str, Callable[[Axes, Look, dict], None]]] = []
    if found.judged_by is not None:
        panels.append(("patches whose nearest token means something, %", _meaningful))
    panels.append(("patches nearest to an end token, %", _ends))
    panels.append(("cosine of the state to the initial embedding", _cosine))
    if any(one.loss_by_layer() for one in found.looks):
        panels.append(("caption loss, tokens matched there in the picture's place", _losses))
    columns = 3 if len(panels) == 3 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 2.9 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    names, last = colours(found), len(found.looks[0].depths) - 2
    for axes, (title, draw) in zip(places, panels, strict=False):
        axes.axvspan(0.5, found.layers + 0.5, color="#f2efe6", linewidth=0, zorder=0)
        for subject, one, colour in zip(found.subjects, found.looks, names, strict=True):
            style = {"color": colour, "linewidth": 1.8, "label": subject.label}
            draw(axes, one, style | ({"linestyle": "--"} if subject.kind == "before" else {}))
        axes.set_title(title, fontsize=10, loc="left")
        ticks = _ticks(last, found.layers)
        axes.set_xticks(ticks, ["initial" if tick == 0 else str(tick) for tick in ticks])
        axes.set_xlim(-0.3, last + 0.3)
        quiet_axes(axes)
    lines, labels = places[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=10)
    figure.supxlabel(
        f"decoder layer (shaded: 1 to k = {found.layers}, of which the target is made)", fontsize=9
    )
    return as_svg(figure)


def _ticks(last: int, k: int) -> list[int]:
    """Return some depths, the first, k and the last among them, none so close to one of these as to touch."""
    step = max(1, round(last / 8))
    kept = {0, k, last}
    return sorted(kept | {at for at in range(0, last, step) if all(abs(at - one) >= step for one in kept)})


def _meaningful(axes: Axes, one: Look, style: dict) -> None:
    shares = [depth.meaningful_share for depth in one.depths[:-1]]
    axes.plot([None if share is None else 100 * share for share in shares], **style)
    axes.set_ylim(-3, 103)


def _ends(axes: Axes, one: Look, style: dict) -> None:
    axes.plot([100 * depth.end_share for depth in one.depths[:-1]], **style)
    axes.set_ylim(-3, 103)


def _cosine(axes: Axes, one: Look, style: dict) -> None:
    depths = [depth.cosine for depth in one.depths[:-1]]
    axes.fill_between(
        range(len(depths)),
        [depth["q1"] for depth in depths],
        [depth["q3"] for depth in depths],
        color=style["color"],
        alpha=0.16,
        linewidth=0,
    )
    axes.plot([depth["mean"] for depth in depths], **style)


def _losses(axes: Axes, one: Look, style: dict) -> None:
    by_layer = one.loss_by_layer()
    places = [0 if name == "initial" else int(name) for name in by_layer]
    axes.plot(places, list(by_layer.values()), marker="o", markersize=4, **style)
    own = one.loss(replacement.ORIGINAL)
    if own is not None:
        axes.axhline(own, color=style["color"], linewidth=0.9, linestyle=":")
