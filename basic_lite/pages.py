"""pages."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure


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
