"""The pages of an ablation and of the demo, each one HTML file with its plots and pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from basic_lite import pages
from basic_lite.data.world.lexicon import named_by
from basic_lite.data.world.questions import KINDS
from basic_lite.data.world.render import enlarged
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.world import held_out_scenes
from basic_lite.experiments.curves import Curves, Saving, all_savings, band, headline_of
from basic_lite.experiments.demo import Results, folder_of
from basic_lite.experiments.measure import BEFORE, LANGUAGE_NAMES, Inspection, Measure, View, read_inspection
from basic_lite.experiments.plans import DEMO
from basic_lite.experiments.sweeps import Sweep, table_rows
from basic_lite.experiments.table import DifferenceTable, Pair, change, interval, number
from basic_lite.training.report import Log

COLOURS = {"plain": "#6b7280", "BASIC": "#d1495b"}
_MORE_COLOURS = ("#30638e", "#1b7f5c", "#edae49", "#7b5ea7", "#c26a2d", "#3a9ea5", "#8c6d46")
"""Of variants that are neither plain nor BASIC."""


def curve_plot(curves: Curves, baseline: str, saved: Saving | None = None) -> str:
    """Return held-out figures over the samples seen as SVG, a panel for each but the losses that are trained.

    The final figure of `baseline` is drawn as a line; `saved` is marked in the panel of its measure, if it is
    reached.
    """
    base = curves[baseline]
    keys = [key for key, curve in base.items() if curve.measure.better][:3]
    keys = [key for key in keys if key != "cosine"] or keys
    colours = _colours(curves, baseline)
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False).flat, keys, strict=True):
        for variant, own in curves.items():
            if key not in own:
                continue
            curve, style = own[key], {"color": colours[variant], "label": variant}
            axes.fill_between(curve.samples, *band(curve), color=style["color"], alpha=0.15, linewidth=0)
            if len(curve.each) > 1:
                axes.plot(curve.samples, curve.each.T, color=style["color"], linewidth=0.7, alpha=0.4)
            axes.plot(curve.samples, curve.mean, linewidth=2.3, marker="o", markersize=4.5, **style)
        goal, samples = base[key].mean[-1], base[key].samples
        axes.axhline(goal, color=colours[baseline], linewidth=0.9, linestyle=(0, (2, 3)), zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(samples[0] / 1.1, samples[-1] * 1.18)
        axes.set_xticks(samples[::-1][::2][::-1], [f"{count:,}" for count in samples[::-1][::2][::-1]])
        axes.minorticks_off()
        axes.set_title(f"held-out {base[key].measure.heading}", fontsize=11, loc="left")
        if saved is not None and saved.measure == key and np.isfinite(saved.samples):
            _mark(axes, saved, colours[saved.variant])
        pages.quiet_axes(axes)
    figure.axes[0].legend(frameon=False, fontsize=10)
    figure.supxlabel("samples seen in stage 1 (log scale)", fontsize=9.5)
    return pages.as_svg(figure)


def _marked_plot(curves: Curves, baseline: str) -> str | None:
    """Return `curve_plot` with the headline of the only other variant; of several none is the one.

    `None` where the baseline has no curve.
    """
    saved = [of["caption_loss"] for of in all_savings(curves, baseline).values() if "caption_loss" in of]
    marked = headline_of(saved[0]) if len(saved) == 1 else None
    return curve_plot(curves, baseline, marked) if curves.get(baseline) else None


def _colours(curves: Curves, baseline: str) -> dict[str, str]:
    more = iter(_MORE_COLOURS * (1 + len(curves) // len(_MORE_COLOURS)))
    return {
        name: COLOURS.get(name) or (COLOURS["plain"] if name == baseline else next(more)) for name in curves
    }


def _mark(axes: Axes, saved: Saving, colour: str) -> None:
    """Show how much earlier a variant is where the baseline ends."""
    low, high = saved.interval
    ends = [low, min(high, saved.base_samples)]
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom - 0.12 * (top - bottom), top)  # room for the words
    axes.plot(ends, [saved.goal] * 2, color=colour, linewidth=7, alpha=0.25, solid_capstyle="butt")
    axes.plot([saved.samples, saved.base_samples], [saved.goal] * 2, color=colour, linewidth=1.2)
    axes.plot([saved.samples], [saved.goal], "D", color=colour, markersize=8, zorder=5)
    axes.annotate(
        f"{saved.samples:,.0f} samples\ninstead of {saved.base_samples:,}",
        (saved.samples, saved.goal),
        xytext=(-14, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=10,
        fontweight="bold",
        color=colour,
    )


_TERMS = {
    "lm": "caption loss (nats per token)",
    "cosine": "cosine of initial to target",
    "das": "L_das",
    "sds": "L_sds",
}


def training_curves(runs: Mapping[str, Path], stage: int) -> str:
    """Return loss terms and cosine over the steps of a stage (1 or 2) as SVG; `runs` is variant -> folder."""
    logs = {name: Log.of(run / f"stage{stage}").steps for name, run in runs.items()}
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


def accuracy_bars(values: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """Return grouped bars as SVG; `values` is title -> kind of question -> per cent of plain and of BASIC."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    grid = figure.subplots(1, len(values), sharey=True)
    for axes, (title, kinds) in zip(grid, values.items(), strict=True):
        for i, name in enumerate(COLOURS):
            heights = [pair[i] for pair in kinds.values()]
            places = [place + (i - 0.5) * 0.38 for place in range(len(kinds))]
            axes.bar(places, heights, width=0.36, color=COLOURS[name], label=name)
        axes.set_xticks(range(len(kinds)), list(kinds), fontsize=9)
        axes.set_ylim(0, 100)
        axes.set_title(title, fontsize=10, loc="left")
        pages.quiet_axes(axes)
    figure.axes[0].set_ylabel("right answers, %", fontsize=9)
    names = figure.axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", frameon=False, fontsize=9, ncols=2)  # off the bars
    return pages.as_svg(figure)


def write_demo(results: Results) -> Path:
    """Write `report.html` of a demo of one seed from its runs, and return its path."""
    (demo,), (seed,) = results.demos, results.seeds
    compared = {pair.measure.name: pair for pair in results.table.pairs}
    saved = all_savings(results.curves, DEMO.baseline).get("BASIC", {}).get("caption_loss", [])
    folders = {variant: folder_of(demo, variant) for variant in DEMO.variants}
    before = read_inspection(folders[DEMO.baseline], BEFORE)
    views = {"before training": before.views} | {
        f"{variant}, after stage 1": read_inspection(folder, "stage1").views
        for variant, folder in folders.items()
    }
    bars = {
        f"questions in {name}": {
            kind: (pair.base.mean, pair.other.mean)
            for kind in KINDS
            if (pair := compared.get(f"{kind}_{language}")) is not None
        }
        for language, name in LANGUAGE_NAMES.items()
    }
    return pages.write(
        demo / "report.html",
        "experiments/demo.html",
        lead=_lead(compared, before),
        curves=_marked_plot(results.curves, DEMO.baseline) if saved else None,
        headline=results.sentences,
        savings=saved,
        needed=_needed,
        cost=results.cost,
        inspected=len(before.caption_loss),
        pairs=list(compared.values()),
        number=number,
        interval=interval,
        stage1=training_curves(folders, 1),
        stage2=training_curves(folders, 2),
        bars=accuracy_bars(bars),
        scenes=[
            _scene(scene, {title: shown[place] for title, shown in views.items()})
            for place, scene in enumerate(held_out_scenes(len(before.views), seed))
        ],
        footer=f"{results.seconds:.0f} seconds, basic-lite demo --seed {seed} --scenes "
        f"{len(before.caption_loss)}",
    )


def write_demos(results: Results, path: Path) -> Path:
    """Write one page on the demos of several seeds, and return its path."""
    table = results.table
    kept = [measure for measure in table.measures if not measure.detail and measure.group != "cost"]
    command = f"basic-lite demo --seed {results.seeds[0]} --seeds {len(results.seeds)}"
    return write_ablation(replace(table, measures=kept), results.curves, results.sentences, path, command)


def _needed(saving: Saving, first: int) -> tuple[str, str]:
    """Return what a variant needs and the interval as text; `first` is where its curve begins."""

    def text(count: float) -> str:
        return "never" if not np.isfinite(count) else f"{'at most ' if count <= first else ''}{count:,.0f}"

    low, high = map(text, saving.interval)
    return text(saving.samples), low if low == high else f"{low} to {high}"


def _lead(compared: Mapping[str, Pair], before: Inspection) -> str:
    """Summarise the results in three sentences, whatever they are."""
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
        "name": ", ".join(
            f"{thing.size} {thing.colour} {thing.shape}, {thing.place}" for thing in scene.things
        ),
        "picture": pages.picture(enlarged(scene)),
        "views": {title: {"tokens": _tokens(view), "note": _count(view)} for title, view in views.items()},
        "importance": [value / max(importance) for value in importance],
    }


def _tokens(view: View) -> list[tuple[str, str, str]]:
    """Return each token's kind, text (a dot for what is no whole character), and its English if Chinese."""
    shown = []
    for token, verdict in zip(view.tokens, view.meaningful, strict=True):
        kind = {True: "true", False: "false", None: "ground"}[verdict]
        text, named = token.strip(), named_by(token)
        word = text if text and "\ufffd" not in text else "·"
        shown.append((kind, word, "" if named is None or text.isascii() else named[1]))
    return shown


def _count(view: View) -> str:
    verdicts = [verdict for verdict in view.meaningful if verdict is not None]
    return f"{sum(verdicts)} of {len(verdicts)} patches on things have a true nearest token"


VERDICT_COLOURS = {"baseline": "#22262d", "better": "#1b7f5c", "worse": "#b3261e", "open": "#8a8f98"}
_PANELS_IN_ROW = 3


def dots(table: DifferenceTable) -> str:
    """Return one panel for each measure as SVG: variants from top to bottom, the baseline as a line."""
    measures = table.measures
    columns = min(len(measures), _PANELS_IN_ROW)
    rows = -(-len(measures) // columns)
    height = rows * (0.9 + 0.34 * len(table.cells))
    figure = Figure(figsize=(11, height), layout=ConstrainedLayoutEngine(hspace=0.1))
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


def write_ablation(
    table: DifferenceTable, curves: Curves, said: Sequence[str], path: Path, command: str
) -> Path:
    """Write the page of a plan and return its path: its question, its curves, its plot and its table.

    `curves` may be empty; `said` are sentences about the results, and `command` is what made them.
    """
    drawn = _marked_plot(curves, table.baseline)
    values = {"table": table, "plot": dots(table), "command": command, "curves": drawn, "said": said}
    return pages.write(path, "experiments/ablation.html", number=number, change=change, **values)


def sweep_plot(sweep: Sweep) -> str:
    """Return plain and BASIC over the levels, and below their difference with its interval, as SVG."""
    keys = [measure.name for measure in sweep.judged][:3]
    places = [level.place for level in sweep.levels]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    grid = figure.subplots(2, len(keys), squeeze=False, sharex=True, height_ratios=(3, 2))
    for (top, bottom), key in zip(grid.T, keys, strict=True):
        each = [level.pair(key) for level in sweep.levels]
        for name, cells in (("plain", [p.base for p in each]), ("BASIC", [p.other for p in each])):
            style = {"color": COLOURS[name], "label": name}
            top.plot(places, [cell.mean for cell in cells], linewidth=2.3, marker="o", markersize=5, **style)
            for place, cell in zip(places, cells, strict=True):
                dots_at = [place] * len(cell.each)
                top.plot(dots_at, cell.each, "o", color=style["color"], markersize=3, alpha=0.4)
        bottom.axhline(0, color=COLOURS["plain"], linewidth=0.9, linestyle=(0, (2, 3)))
        for place, pair in zip(places, each, strict=True):
            colour = VERDICT_COLOURS[pair.other.verdict]
            if pair.other.interval is not None:
                bottom.plot([place] * 2, pair.other.interval, color=colour, linewidth=2.4)
            bottom.plot([place], [pair.other.difference], "o", color=colour, markersize=6.5)
        arrow = "up" if each[0].measure.better == "higher" else "down"
        top.set_title(each[0].measure.heading, fontsize=11, loc="left")
        bottom.set_title(f"BASIC − plain ({arrow} is better)", fontsize=9.5, loc="left")
        bottom.set_xscale("log")
        bottom.set_xticks(places, [level.label for level in sweep.levels])
        for axes in (top, bottom):
            axes.minorticks_off()
            pages.quiet_axes(axes)
    grid[0, 0].legend(frameon=False, fontsize=10)
    figure.supxlabel(f"{sweep.plan.axis} (log scale)", fontsize=9.5)
    return pages.as_svg(figure)


def write_sweep(sweep: Sweep, along: Curves, said: Sequence[str], path: Path, command: str) -> None:
    """Write the page of a sweep: where BASIC helped, in words, a plot and a table, and the way to one level.

    `along` are the curves of plain and BASIC at the level that changes nothing; may be empty. `said` and
    `command` are as in `write_ablation`.
    """
    heads, rows = table_rows(sweep)
    values = {"sweep": sweep, "heads": heads, "rows": rows, "said": said, "command": command}
    values |= {"plot": sweep_plot(sweep), "curves": _marked_plot(along, sweep.plan.baseline)}
    pages.write(path, "experiments/sweep.html", **values)
