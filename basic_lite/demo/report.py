"""A demo's report: one HTML file with all its pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from basic_lite.demo.columns import LANGUAGE_NAMES, Column, load_inspection
from basic_lite.demo.inspection import Inspection, View, held_out_scenes
from basic_lite.demo.lexicon import named_by
from basic_lite.demo.outcome import Outcome, shown_number
from basic_lite.demo.plots import accuracy_bars, read_log, training_curves
from basic_lite.demo.questions import KINDS
from basic_lite.demo.render import enlarged
from basic_lite.demo.scenes import Scene

PAGE = Path(__file__).with_name("report_page.html")
"""The frame: text and style, with `$names` for what is filled in."""


def write(out: Path, found: Outcome) -> Path:
    """Write `report.html` from what the twins left in a demo's folder, and return its path."""
    twins = {"plain": out / "plain", "BASIC": out / "basic"}
    after = {name: load_inspection(run / "stage1" / "inspection.json") for name, run in twins.items()}
    scenes = held_out_scenes(len(found.before.views), found.seed)
    curves = {
        stage: training_curves({name: read_log(run / f"stage{stage}") for name, run in twins.items()}, stage)
        for stage in (1, 2)
    }
    bars = {
        f"questions in {LANGUAGE_NAMES[language]}": {
            kind: (column.plain, column.basic)
            for kind in KINDS
            if (column := _maybe(found, f"{kind}_{language}")) is not None
        }
        for language in LANGUAGE_NAMES
    }
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        lead=_lead(found),
        rows="\n".join(_rows(found.columns)),
        stage1=curves[1],
        stage2=curves[2],
        bars=accuracy_bars(bars),
        scenes="\n".join(_scene(i, scene, found.before, after) for i, scene in enumerate(scenes)),
        footer=escape(
            f"seed {found.seed}, {found.seconds:.0f} seconds in all, basic-lite demo --seed {found.seed}"
        ),
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _maybe(found: Outcome, name: str) -> Column | None:
    return next((column for column in found.columns if column.name == name), None)


def _lead(found: Outcome) -> str:
    """Say in two sentences what was found, whatever it is."""
    named, cosine = found.column("meaningful_stage1"), found.column("cosine_stage1")
    before = 100 * sum(found.before.meaningful) / sum(found.before.shown)
    said = (
        f"Before training, {before:.0f} % of the patches that show a thing lie nearest to a word that is "
        f"true of it. After stage 1 it is {named.plain:.0f} % for the plain twin and {named.basic:.0f} % "
        f"with BASIC; the cosine between what goes into the decoder and what its shallow layers make of it "
        f"is {cosine.plain:.2f} and {cosine.basic:.2f}."
    )
    parts = []
    for language, name in LANGUAGE_NAMES.items():
        column = found.column(f"accuracy_{language}")
        low, high = column.interval_95 or (0.0, 0.0)
        parts.append(
            f"{name} {column.plain:.1f} % and {column.basic:.1f} % (difference {column.difference:+.1f}, "
            f"95 % interval {low:+.1f} to {high:+.1f})"
        )
    return f"{said} Questions on scenes never seen are answered right: {'; '.join(parts)}."


def _rows(columns: Sequence[Column]) -> list[str]:
    rows, group = [], ""
    for column in columns:
        if column.group != group:
            rows.append(f'<tr class="group"><th colspan="5">{escape(column.group)}</th></tr>')
            group = column.group
        unit = f" <small>{escape(column.unit)}</small>" if column.unit else ""
        rows.append(
            f'<tr class="{column.verdict}"><td>{escape(column.label.strip())}{unit}</td>'
            f"<td>{shown_number(column.plain, column)}</td><td>{shown_number(column.basic, column)}</td>"
            f"<td>{shown_number(column.difference, column, signed=True)}</td><td>{_whisker(column)}</td></tr>"
        )
    return rows


def _whisker(column: Column) -> str:
    """Draw the interval of a difference around 0, on a scale of its own."""
    if column.interval_95 is None:
        return ""
    low, high = column.interval_95
    reach = max(abs(low), abs(high), abs(column.difference), 1e-9) * 1.1
    at = [80 + 74 * value / reach for value in (low, high, column.difference)]
    title = escape(f"95 % interval {low:+.3f} to {high:+.3f}")
    return (
        f'<svg width="160" height="16" role="img"><title>{title}</title><line x1="80" x2="80" y1="1" y2="15" '
        f'class="zero"/><line x1="{at[0]:.1f}" x2="{at[1]:.1f}" y1="8" y2="8" class="range"/>'
        f'<circle cx="{at[2]:.1f}" cy="8" r="3.5"/></svg>'
    )


def _scene(number: int, scene: Scene, before: Inspection, after: dict[str, Inspection]) -> str:
    """Show a scene with its tokens before training and after stage 1, and where the text looks."""
    buffer = io.BytesIO()
    enlarged(scene).save(buffer, format="JPEG", quality=88)
    picture = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    views = [("before training", before.views[number])]
    views += [(f"{name}, after stage 1", found.views[number]) for name, found in after.items()]
    cells = [_panel(title, picture, _tokens(view), _count(view)) for title, view in views]
    cells.append(
        _panel("importance, BASIC", picture, _heat(after["BASIC"].views[number]), "where the caption looks")
    )
    things = ", ".join(f"{thing.size} {thing.colour} {thing.shape}, {thing.place}" for thing in scene.things)
    panels = f'<div class="panels">{"".join(cells)}</div>'
    return f'<section class="scene"><h3>{escape(things)}</h3>{panels}</section>'


def _panel(title: str, picture: str, overlay: str, note: str) -> str:
    return (
        f'<figure><div class="picture" style="background-image:url({picture})">{overlay}</div>'
        f"<figcaption>{escape(title)}<br><small>{escape(note)}</small></figcaption></figure>"
    )


def _tokens(view: View) -> str:
    kinds = {True: "true", False: "false", None: "ground"}
    return "".join(
        f'<span class="{kinds[right]}">{escape(_word(token))}{_gloss(token)}</span>'
        for token, right in zip(view.tokens, view.meaningful, strict=True)
    )


def _gloss(token: str) -> str:
    """Return what a Chinese token names, in English below it."""
    named = named_by(token)
    return "" if named is None or token.strip().isascii() else f"<i>{escape(named[1])}</i>"


def _word(token: str) -> str:
    """Return a token's text, or a dot for what is no whole character."""
    text = token.strip()
    return text if text and "\ufffd" not in text else "·"


def _count(view: View) -> str:
    shown = [right for right in view.meaningful if right is not None]
    return f"{sum(shown)} of {len(shown)} patches on things are named truly"


def _heat(view: View) -> str:
    most = max(view.importance)
    return "".join(
        f'<span style="background:rgba(209,73,91,{0.85 * value / most:.2f})"></span>'
        for value in view.importance
    )
