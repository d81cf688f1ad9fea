"""The pages of an ablation and of the demo, each one HTML file with its plots and pictures inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basic_lite import pages
from basic_lite.data.world.lexicon import named_by
from basic_lite.data.world.questions import KINDS
from basic_lite.data.world.render import enlarged
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.world import held_out_scenes
from basic_lite.experiments.demo import folder_of, seconds_of
from basic_lite.experiments.measure import BEFORE, LANGUAGE_NAMES, Inspection, Measure, View, read_inspection
from basic_lite.experiments.plans import DEMO
from basic_lite.experiments.table import DifferenceTable, Pair, change, interval, number, pairs

# The demo: curves, answers by kind, and scenes with their tokens.

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
        logs: variant -> its logged steps.
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
        pages.quiet_axes(axes)
        if key in ("das", "sds"):
            axes.set_ylim(bottom=0)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.supxlabel(f"optimizer step of stage {stage}", fontsize=9)
    return pages.as_svg(figure)


def accuracy_bars(
    values: Mapping[str, Mapping[str, tuple[float, float]]], chance: float | None = None
) -> str:
    """Return grouped bars as SVG.

    Args:
        values: Title -> kind of question -> accuracy of plain and of BASIC, per cent.
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
        pages.quiet_axes(axes)
    figure.axes[0].set_ylabel("right answers, %", fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=9, ncols=2)
    return pages.as_svg(figure)


def write_demo(demo: Path, table: DifferenceTable) -> Path:
    """Write `report.html` of a demo from its runs, and return its path."""
    seed, compared = table.seeds[0], {pair.measure.name: pair for pair in pairs(table)}
    before = read_inspection(folder_of(demo, DEMO.baseline), BEFORE)
    views = {"before training": before}
    for variant in DEMO.variants:
        views[f"{variant}, after stage 1"] = read_inspection(folder_of(demo, variant), "stage1")
    logs = {
        stage: {variant: read_log(folder_of(demo, variant) / f"stage{stage}") for variant in DEMO.variants}
        for stage in (1, 2)
    }
    bars = {
        f"questions in {LANGUAGE_NAMES[language]}": {
            kind: (pair.base.mean, pair.other.mean)
            for kind in KINDS
            if (pair := compared.get(f"{kind}_{language}")) is not None
        }
        for language in LANGUAGE_NAMES
    }
    return pages.write(
        demo / "report.html",
        "experiments/demo.html",
        lead=_lead(compared, before),
        pairs=list(compared.values()),
        number=number,
        interval=interval,
        stage1=training_curves(logs[1], 1),
        stage2=training_curves(logs[2], 2),
        bars=accuracy_bars(bars),
        scenes=[
            _scene(scene, {title: inspection.views[place] for title, inspection in views.items()})
            for place, scene in enumerate(held_out_scenes(len(before.views), seed))
        ],
        footer=f"seed {seed}, {seconds_of(demo):.0f} seconds, basic-lite demo --seed {seed}",
    )


def _lead(compared: Mapping[str, Pair], before: Inspection) -> str:
    """Say the results in three sentences, whatever they are."""
    named, cosine = compared["meaningful_stage1"], compared["cosine_stage1"]
    share = 100 * sum(before.meaningful) / sum(before.shown)
    answers = []
    for language, name in LANGUAGE_NAMES.items():
        pair = compared[f"answers_{language}"]
        answers.append(
            f"{name} {pair.base.mean:.1f} % and {pair.other.mean:.1f} % (difference "
            f"{pair.other.difference:+.1f}, 95 % interval {interval(pair.other, pair.measure)})"
        )
    return (
        f"Before training, {share:.0f} % of the patches that show a thing lie nearest to a word that is "
        f"true of it. After stage 1 it is {named.base.mean:.0f} % for plain and {named.other.mean:.0f} % "
        f"with BASIC; the cosine between what goes into the decoder and what its shallow layers make of it "
        f"is {cosine.base.mean:.2f} and {cosine.other.mean:.2f}. Questions on scenes never seen are answered "
        f"right, plain and with BASIC: {'; '.join(answers)}."
    )


def _scene(scene: Scene, views: Mapping[str, View]) -> dict[str, object]:
    """Return a scene with its tokens, view by view, and where the caption of the last one looks."""
    importance = list(views.values())[-1].importance
    return {
        "name": ", ".join(f"{one.size} {one.colour} {one.shape}, {one.place}" for one in scene.things),
        "picture": pages.picture(enlarged(scene)),
        "views": {title: {"tokens": _tokens(view), "note": _count(view)} for title, view in views.items()},
        "importance": [value / max(importance) for value in importance],
    }


def _tokens(view: View) -> list[tuple[str, str, str]]:
    kinds = {True: "true", False: "false", None: "ground"}
    return [
        (kinds[verdict], _word(token), _gloss(token))
        for token, verdict in zip(view.tokens, view.meaningful, strict=True)
    ]


def _gloss(token: str) -> str:
    """Return what a Chinese token names, in English."""
    named = named_by(token)
    return "" if named is None or token.strip().isascii() else named[1]


def _word(token: str) -> str:
    """Return a token's text, or a dot for what is no whole character."""
    text = token.strip()
    return text if text and "\ufffd" not in text else "·"


def _count(view: View) -> str:
    verdicts = [verdict for verdict in view.meaningful if verdict is not None]
    return f"{sum(verdicts)} of {len(verdicts)} patches on things have a true nearest token"


# An ablation: every variant's mean, its seeds, and how sure its difference to the baseline is.

VERDICT_COLOURS = {"baseline": "#22262d", "better": "#1b7f5c", "worse": "#b3261e", "open": "#8a8f98"}
_PANELS_IN_ROW = 3


def dots(table: DifferenceTable) -> str:
    """Return one panel for each measure as SVG: variants from top to bottom, the baseline as a line."""
    measures = table.measures
    columns = min(len(measures), _PANELS_IN_ROW)
    rows = -(-len(measures) // columns)
    height = rows * (0.9 + 0.34 * len(table.cells))
    figure = Figure(figsize=(11, height), layout="constrained")
    figure.get_layout_engine().set(hspace=0.1)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _panel(axes, table, measure)
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    return pages.as_svg(figure)


def _panel(axes: Axes, table: DifferenceTable, measure: Measure) -> None:
    base = table.cells[table.baseline][measure.name].mean
    axes.axvline(base, color=VERDICT_COLOURS["baseline"], linewidth=0.8, linestyle=":")
    for place, row in enumerate(table.cells.values()):
        cell = row[measure.name]
        colour = VERDICT_COLOURS[cell.verdict]
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
    axes.set_title(f"{measure.heading}{arrow}", fontsize=10, loc="left")
    pages.quiet_axes(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)


def _limits(table: DifferenceTable, measure: Measure) -> tuple[float, float]:
    """Return an axis for all seeds; wide intervals, as of two seeds, may leave it on either side."""
    cells = [row[measure.name] for row in table.cells.values()]
    base = table.cells[table.baseline][measure.name].mean
    seen = [value for cell in cells for value in cell.each]
    ends = [base + end for cell in cells if cell.interval is not None for end in cell.interval]
    reach = max(max(seen) - min(seen), 10.0**-measure.digits)
    low = max(min(seen + ends), min(seen) - reach) - 0.08 * reach
    high = min(max(seen + ends), max(seen) + reach) + 0.08 * reach
    return low, high


def write_ablation(table: DifferenceTable, path: Path, command: str) -> None:
    """Write the page of a plan: its question, its plot and its table."""
    values = {"table": table, "plot": dots(table), "command": command}
    pages.write(path, "experiments/ablation.html", number=number, change=change, **values)
