"""A page escapes all text, holds its pictures, and fetches nothing."""

from __future__ import annotations

import base64
import io
import re

import jinja2
import pytest
from matplotlib.figure import Figure
from PIL import Image

from basic_lite import pages
from basic_lite.experiments.measure import Measure
from basic_lite.experiments.report import write_ablation
from basic_lite.experiments.table import tabulate

HOSTILE = "</script><b>&'\""


def test_text_is_escaped_and_a_plot_is_not(tmp_path):
    measured = {
        name: [[Measure("x", HOSTILE, "%", "higher", "scenes", values)]]
        for name, values in (("none", [1.0, 2.0, 3.0]), (HOSTILE, [2.0, 3.0, 4.5]))
    }
    table = tabulate("plan", HOSTILE, "none", [0], measured)
    write_ablation(table, {}, [], tmp_path / "page.html", f"basic-lite {HOSTILE}")
    page = (tmp_path / "page.html").read_text()
    assert "<b>&'" not in page
    assert "</script>" not in page
    assert page.count("&lt;/script&gt;") >= 4
    assert re.search(r'<div class="card"><svg', page)
    assert not re.search(r"(?:src|href|url\()=?[\"']?http", page.replace("xlink:href", ""))


def test_a_picture_is_inside_the_page_and_no_larger_than_asked():
    uri = pages.picture(Image.new("RGBA", (900, 300), "red"), longest=90)
    head, content = uri.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (90, 30)


def test_a_name_that_a_template_lacks_is_an_error():
    values = {"model": "m", "verdict": {"case": "holds", "words": "w"}, "columns": [], "lines": []}
    values["plot"] = pages.as_svg(Figure())
    assert "<svg" in pages.render("analysis/premise.html", summary="s", **values)
    with pytest.raises(jinja2.UndefinedError, match="summary"):
        pages.render("analysis/premise.html", **values)
