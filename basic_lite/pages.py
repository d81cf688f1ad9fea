"""Pages: one HTML file each, with pictures and plots inside, made from a template beside its package."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from basic_lite.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

LONGEST: int = 672  # longest side of an embedded picture in pixels


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return made


def render(template: str, **values: object) -> str:
    """Return a page of a template of this package, such as `experiments/demo.html`, with `values` escaped."""
    return _environment().get_template(template).render(**values)


def write(path: Path, template: str, **values: object) -> Path:
    """Write a page, whole or not at all, and return its path; see `render`."""
    return write_text(path, render(template, **values))


def picture(image: Image.Image, longest: int = LONGEST) -> str:
    """Return a picture as a data URI for a page, with no side longer than `longest` pixels."""
    shown, buffer = image.convert("RGB"), io.BytesIO()
    shown.thumbnail((longest, longest))
    shown.save(buffer, format="JPEG", quality=87)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def as_svg(figure: Figure) -> Markup:
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def quiet_axes(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    """Leave of a plot's frame what is needed to read it, and a grid of horizontal (`y`) or vertical lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9bec6")
    axes.tick_params(labelsize=8, color="#b9bec6")
    axes.grid(axis=grid, color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
