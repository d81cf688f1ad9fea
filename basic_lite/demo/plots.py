"""The curves of a demo's report, as SVG."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"plain": "#8a8f98", "BASIC": "#d1495b"}

_TERMS = {
    "lm": "caption loss (nats per token)",
    "cosine": "cosine of initial to target",
    "das": "L_das",
    "sds": "L_sds",
}


def read_log(run: Path) -> list[dict[str, float]]:
    """Return the logged steps of a run."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def training_curves(logs: Mapping[str, list[dict[str, float]]], stage: int) -> str:
    """Return the loss terms and the cosine over the steps of a stage, one small plot each, as SVG.

    Args:
        logs: Twin -> its logged steps.
        stage: 1 or 2.
    """
    figure = Figure(figsize=(11, 2.7), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(_TERMS)), _TERMS.items(), strict=True):
        for name, rows in logs.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[name], linewidth=1.8, label=name)
        if stage == 2 and key == "lm":
            title = "answer loss (nats per token)"
        axes.set_title(title, fontsize=10, loc="left")
        quiet_axes(axes)
        if key in ("das", "sds"):
            axes.set_ylim(bottom=0)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.supxlabel(f"optimizer step of stage {stage}", fontsize=9)
    return as_svg(figure)


def accuracy_bars(
    values: Mapping[str, Mapping[str, tuple[float, float]]], chance: float | None = None
) -> str:
    """Return grouped bars as SVG.

    Args:
        values: Title -> kind of question -> accuracy of the plain and of the BASIC twin, per cent.
        chance: What guessing gives, per cent.
    """
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    for axes, (title, kinds) in zip(
        figure.subplots(1, len(values), sharey=True), values.items(), strict=True
    ):
        for i, name in enumerate(COLOURS):
            heights = [pair[i] for pair in kinds.values()]
            places = [place + (i - 0.5) * 0.38 for place in range(len(kinds))]
            axes.bar(places, heights, width=0.36, color=COLOURS[name], label=name)
        if chance is not None:
            axes.axhline(chance, color="#555", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(kinds)), list(kinds), fontsize=9)
        axes.set_ylim(0, 100)
        axes.set_title(title, fontsize=10, loc="left")
        quiet_axes(axes)
    figure.axes[0].set_ylabel("right answers, %", fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=9, ncols=2)
    return as_svg(figure)


def quiet_axes(axes: Axes) -> None:
    """Leave of a plot's frame what is needed to read it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9bec6")
    axes.tick_params(labelsize=8, color="#b9bec6")
    axes.grid(axis="y", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)


def as_svg(figure: Figure) -> str:
    """Return a figure as an `<svg>` element for a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
