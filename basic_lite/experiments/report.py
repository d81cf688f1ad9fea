"""A demo's report: one HTML file with all its pictures inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import rich.table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basic_lite.data.world.lexicon import named_by
from basic_lite.data.world.questions import KINDS
from basic_lite.data.world.render import enlarged
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.world import held_out_scenes
from basic_lite.experiments.measure import LANGUAGE_NAMES, Inspection, Measure, View
from basic_lite.experiments.table import Cell, Column, DifferenceTable, Outcome, load_inspection, shown_number
from basic_lite.files import complete
from basic_lite.pages import as_svg, quiet_axes

# The curves of a demo's report, as SVG.

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


PAGE = Path(__file__).with_name("demo.html")
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


# A plan's table for a terminal and for a README.


def heading(measure: Measure) -> str:
    """Return a measure's label with its unit."""
    return f"{measure.label} ({measure.unit})" if measure.unit else measure.label


def number(value: float, measure: Measure, signed: bool = False) -> str:
    """Return a value as its measure shows it."""
    return f"{value:{'+' if signed else ''},.{measure.digits}f}"


def change(cell: Cell, measure: Measure) -> str:
    """Return a difference with its interval, as in `+0.012 (-0.003 to +0.027)`; empty for the baseline."""
    if cell.difference is None:
        return ""
    ends = " to ".join(number(end, measure, signed=True) for end in cell.interval)
    return f"{number(cell.difference, measure, signed=True)} ({ends})"


def for_terminal(table: DifferenceTable) -> rich.table.Table:
    """Make the table that ends an ablation."""
    colours = {"better": "green", "worse": "red"}
    seeds = f"{len(table.seeds)} seed{'s' if len(table.seeds) > 1 else ''}"
    made = rich.table.Table("arm", title=f"{table.plan}: {table.asks} {seeds}", title_justify="left")
    for measure in table.measures:
        made.add_column(heading(measure), justify="right")
    for arm, row in table.cells.items():
        shown = []
        for measure in table.measures:
            cell = row[measure.name]
            text = number(cell.mean, measure)
            if changed := change(cell, measure):
                colour = colours.get(cell.verdict)
                text += f"\n[{colour}]{changed}[/]" if colour else f"\n{changed}"
            shown.append(text)
        made.add_row(f"{arm}\n(baseline)" if arm == table.baseline else arm, *shown)
    return made


def write_markdown(table: DifferenceTable, path: Path, command: str, notes: Sequence[str] = ()) -> None:
    """Write the table for a README, with what its intervals are and how it was made.

    Args:
        table: what was found.
        path: of the file.
        command: that makes it again.
        notes: further lines.
    """
    lines = [
        f"| {' | '.join(['arm', *map(heading, table.measures)])} |",
        "|---" * (len(table.measures) + 1) + "|",
    ]
    for arm, row in table.cells.items():
        cells = [f"{number(row[m.name].mean, m)} {change(row[m.name], m)}".strip() for m in table.measures]
        lines.append(f"| {' | '.join([f'**{arm}**' if arm == table.baseline else arm, *cells])} |")
    with complete(path) as draft:
        draft.write_text(
            "\n".join([*lines, "", table.how_sure, f"`{command}`", *notes]) + "\n", encoding="utf-8"
        )


# A plan's plot: every arm's mean, its seeds, and how sure its difference to the baseline is.

ABLATION_COLOURS = {"baseline": "#22262d", "better": "#1b7f5c", "worse": "#b3261e", "open": "#8a8f98"}
PANELS_IN_ROW = 3


def dots(table: DifferenceTable) -> str:
    """Return one panel for each measure as SVG: arms from top to bottom, the baseline as a line."""
    measures = table.measures
    columns = min(len(measures), PANELS_IN_ROW)
    rows = -(-len(measures) // columns)
    height = rows * (0.9 + 0.34 * len(table.cells))
    figure = Figure(figsize=(11, height), layout="constrained")
    figure.get_layout_engine().set(hspace=0.1)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _ablation_panel(axes, table, measure)
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    return svg(figure)


def _ablation_panel(axes: Axes, table: DifferenceTable, measure: Measure) -> None:
    base = table.cells[table.baseline][measure.name].mean
    axes.axvline(base, color=ABLATION_COLOURS["baseline"], linewidth=0.8, linestyle=":")
    for place, row in enumerate(table.cells.values()):
        cell = row[measure.name]
        colour = ABLATION_COLOURS[cell.verdict]
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


def _limits(table: DifferenceTable, measure: Measure) -> tuple[float, float]:
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


# A plan's page: its question, its plot and its table in one HTML file.

ABLATION_PAGE = Path(__file__).with_name("ablation.html")
"""The frame: text and style, with `$names` for what is filled in."""


def write_ablation(table: DifferenceTable, path: Path, command: str) -> None:
    """Write the page.

    Args:
        table: what was found.
        path: of the file.
        command: that makes it again.
    """
    text = Template(ABLATION_PAGE.read_text(encoding="utf-8")).substitute(
        plan=escape(table.plan),
        asks=escape(table.asks),
        plot=dots(table),
        head="".join(f"<th>{escape(heading(measure))}</th>" for measure in table.measures),
        rows="\n".join(_row(arm, table) for arm in table.cells),
        sure=escape(table.how_sure),
        command=escape(command),
    )
    with complete(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _row(arm: str, table: DifferenceTable) -> str:
    cells = []
    for measure in table.measures:
        cell = table.cells[arm][measure.name]
        changed = f"<br><small>{escape(change(cell, measure))}</small>" if cell.difference is not None else ""
        cells.append(f'<td class="{cell.verdict}">{number(cell.mean, measure)}{changed}</td>')
    name = f"{escape(arm)} <small>baseline</small>" if arm == table.baseline else escape(arm)
    return f"<tr><td>{name}</td>{''.join(cells)}</tr>"
