"""The report of an analysis of tokens: one HTML file with pictures, tokens and plots inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from basic_lite import pages
from basic_lite.analysis import replacement
from basic_lite.analysis.inspection import ModelResults
from basic_lite.analysis.judges import shown
from basic_lite.analysis.tokens import Analysis

COLOURS: dict[str, str] = {"before": "#b3b9c3", "plain": "#4b5563", "BASIC": "#d1495b"}
"""Of each kind of model."""

SECOND: str = "#2a6f97"
"""Of the second model of one kind."""


def colours(analysis: Analysis) -> list[str]:
    chosen: list[str] = []
    for subject in analysis.subjects:
        own = COLOURS[subject.kind]
        chosen.append(SECOND if own in chosen else own)
    return chosen


def depth_curves(analysis: Analysis) -> str:
    """Return what happens over the layers, a small plot for each measure that there is, as SVG."""
    panels: list[tuple[str, Callable[[Axes, ModelResults, dict], None]]] = []
    if analysis.judged_by is not None:
        panels.append(("patches whose nearest token means something, %", _meaningful))
    panels.append(("patches nearest to an end token, %", _ends))
    panels.append(("cosine of the state to the initial embedding", _cosine))
    if any(result.loss_by_layer() for result in analysis.results):
        panels.append(("caption loss, tokens matched there in the picture's place", _losses))
    columns = 3 if len(panels) == 3 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 2.9 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    names, last = colours(analysis), len(analysis.results[0].depths) - 2
    for axes, (title, draw) in zip(places, panels, strict=False):
        axes.axvspan(0.5, analysis.layers + 0.5, color="#f2efe6", linewidth=0, zorder=0)
        for subject, result, colour in zip(analysis.subjects, analysis.results, names, strict=True):
            style = {"color": colour, "linewidth": 1.8, "label": subject.label}
            draw(axes, result, style | ({"linestyle": "--"} if subject.kind == "before" else {}))
        axes.set_title(title, fontsize=10, loc="left")
        ticks = _ticks(last, analysis.layers)
        axes.set_xticks(ticks, ["initial" if tick == 0 else str(tick) for tick in ticks])
        axes.set_xlim(-0.3, last + 0.3)
        pages.quiet_axes(axes)
    lines, labels = places[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=10)
    figure.supxlabel(
        f"decoder layer (shaded: 1 to k = {analysis.layers}, of which the target is made)", fontsize=9
    )
    return pages.as_svg(figure)


def _ticks(last: int, k: int) -> list[int]:
    """Return some depths, the first, k and the last among them, none so close to one of these as to touch."""
    step = max(1, round(last / 8))
    kept = {0, k, last}
    return sorted(
        kept | {at for at in range(0, last, step) if all(abs(at - fixed) >= step for fixed in kept)}
    )


def _meaningful(axes: Axes, result: ModelResults, style: dict) -> None:
    shares = [depth.meaningful_share for depth in result.depths[:-1]]
    axes.plot([math.nan if share is None else 100 * share for share in shares], **style)
    axes.set_ylim(-3, 103)


def _ends(axes: Axes, result: ModelResults, style: dict) -> None:
    axes.plot([100 * depth.end_share for depth in result.depths[:-1]], **style)
    axes.set_ylim(-3, 103)


def _cosine(axes: Axes, result: ModelResults, style: dict) -> None:
    depths = [depth.cosine for depth in result.depths[:-1]]
    axes.fill_between(
        range(len(depths)),
        [depth["q1"] for depth in depths],
        [depth["q3"] for depth in depths],
        color=style["color"],
        alpha=0.16,
        linewidth=0,
    )
    axes.plot([depth["mean"] for depth in depths], **style)


def _losses(axes: Axes, result: ModelResults, style: dict) -> None:
    by_layer = result.loss_by_layer()
    places = [0 if name == "initial" else int(name) for name in by_layer]
    axes.plot(places, list(by_layer.values()), marker="o", markersize=4, **style)
    own = result.loss(replacement.ORIGINAL)
    if own is not None:
        axes.axhline(own, color=style["color"], linewidth=0.9, linestyle=":")


_SHOWN_TEXTS = (replacement.ORIGINAL, replacement.DIRECTION, replacement.AS_TEXT, replacement.SHUFFLED)


def write(path: Path, analysis: Analysis) -> Path:
    return pages.write(
        path,
        "analysis/tokens.html",
        analysis=analysis,
        lead=lead(analysis),
        curves=depth_curves(analysis),
        stand_ins=_stand_ins(analysis),
        common=_common(analysis),
        depths=_depths(analysis),
        data=_data(analysis),
        footer=_footer(analysis),
    )


def lead(analysis: Analysis) -> list[str]:
    """Summarise the results in a few sentences, whatever they are."""
    parts = [
        f"{len(analysis.samples.chosen)} pictures, {analysis.grid} x {analysis.grid} patches each, through "
        f"{len(analysis.results[0].depths) - 2} layers."
    ]
    pairs = list(zip(analysis.subjects, analysis.results, strict=True))
    if analysis.judged_by is not None:
        shares = [
            f"{subject.label}: {_percent(result.depths[0].meaningful_share)}" for subject, result in pairs
        ]
        parts.append(f"Initial embeddings whose nearest token means something: {'; '.join(shares)}.")
    ends = [f"{subject.label}: {_percent(result.depths[-2].end_share)}" for subject, result in pairs]
    parts.append(f"States that the last layer leaves nearest to an end token: {'; '.join(ends)}.")
    left = [(subject.label, result.survives(replacement.DIRECTION)) for subject, result in pairs]
    shown_left = [f"{label}: {_left(share)}" for label, share in left if share is not None]
    if shown_left:
        parts.append(
            "Of what the picture adds to the caption's likelihood, above a blank or another picture, this is "
            f"left when each patch is replaced by its nearest token: {'; '.join(shown_left)}."
        )
    return parts


def _stand_ins(analysis: Analysis) -> list[tuple[str, str, list[tuple[str, list[str]]]]]:
    """Return a row for each kind of stand-in; none where none was tried."""
    if not any(result.tried for result in analysis.results):
        return []
    return [
        (kind, meaning, [_stand_in(result, kind) for result in analysis.results])
        for kind, meaning in replacement.KINDS.items()
    ]


def _stand_in(result: ModelResults, kind: str) -> tuple[str, list[str]]:
    loss, left, texts = result.loss(kind), result.survives(kind), result.overlap(kind)
    notes = [] if left is None or kind == replacement.ORIGINAL else [f"{_left(left)} left"]
    if texts["content_kept"] is not None and kind != replacement.ORIGINAL:
        notes.append(f"text: {_percent(texts['content_kept'])} of words kept")
    if texts["caption_said"] is not None:
        notes.append(f"{_percent(texts['caption_said'])} of the caption's words")
    return _number(loss, "{:.3f}"), notes


def _common(analysis: Analysis) -> list[tuple[str, list[list[tuple[str, bool, str]]]]]:
    """Return the most frequent matches at some depths: token, whether it is an end token, share."""
    rows = []
    last = len(analysis.results[0].depths) - 2
    for place in sorted({0, max(analysis.layers // 2, 1), analysis.layers, last}):
        depths = [result.depths[place] for result in analysis.results]
        cells = [
            [
                (shown(analysis.texts[token]), token in analysis.ends, f"{100 * count / depth.patches:.0f}")
                for token, count in depth.common[:8]
            ]
            for depth in depths
        ]
        rows.append((f"layer {depths[0].name}" if place else depths[0].name, cells))
    return rows


def _depths(analysis: Analysis) -> list[tuple[str, list[str]]]:
    """Return every figure at every depth, four for each model."""
    rows = []
    for depths in zip(*(result.depths for result in analysis.results), strict=True):
        cells = []
        for depth in depths:
            cells += [_percent(depth.meaningful_share), _percent(depth.end_share)]
            cells += [f"{depth.cosine['mean']:.2f}", f"{depth.similarity:.2f}"]
        rows.append((depths[0].name, cells))
    return rows


def _data(analysis: Analysis) -> dict[str, object]:
    """Return what the page's script lays over the pictures: ids into a list of the tokens that occur."""
    place: dict[int, int] = {}
    pictures = []
    for number, picture in enumerate(analysis.prepared):
        sample = analysis.samples.chosen[number]
        views = []
        for result in analysis.results:
            rows, verdicts = result.views[number]
            ids = [[place.setdefault(token, len(place)) for token in row] for row in rows]
            judged = 0 if verdicts is None else sum(value is not None for value in verdicts[0])
            views.append({"ids": ids, "kinds": _kinds(analysis, rows, verdicts), "judged": judged})
        texts = [
            [kind, *(result.pictures[number].texts[kind] for result in analysis.results)]
            for kind in _SHOWN_TEXTS
            if kind in analysis.results[0].pictures[number].texts
        ]
        pictures.append(
            {
                "name": sample.name,
                "caption": sample.caption or "",
                "src": pages.picture(picture),
                "views": views,
                "texts": texts,
            }
        )
    return {
        "grid": analysis.grid,
        "k": analysis.layers,
        "depths": [depth.name for depth in analysis.results[0].depths],
        "models": [
            {"label": subject.label, "colour": colour}
            for subject, colour in zip(analysis.subjects, colours(analysis), strict=True)
        ],
        "judged": analysis.judged_by is not None,
        "tokens": [shown(analysis.texts[token]) for token in place],
        "exact": [repr(analysis.texts[token]) for token in place],
        "pictures": pictures,
    }


def _kinds(analysis: Analysis, rows: list[list[int]], verdicts: list[list[bool | None]] | None) -> list[str]:
    """Return a letter for each patch at each depth: `t`rue, `f`alse, `e`nd token, `n`othing to judge."""
    letters = {True: "t", False: "f", None: "n"}
    return [
        "".join(
            "e" if token in analysis.ends else letters[None if verdicts is None else verdicts[depth][patch]]
            for patch, token in enumerate(row)
        )
        for depth, row in enumerate(rows)
    ]


def _footer(analysis: Analysis) -> str:
    shows = analysis.samples
    parts = [f"{len(shows.chosen)} of {shows.available} {shows.source}"]
    if shows.unreadable:
        parts.append(f"{len(shows.unreadable)} of those chosen could not be read")
    for subject in analysis.subjects:
        if subject.seed is not None:
            parts.append(f"{subject.label}: projector of seed {subject.seed} ({subject.seed_from})")
        else:
            parts.append(f"{subject.label}: {subject.folder}")
    return " · ".join(parts)


def _left(share: float) -> str:
    return _percent(share) if share > 0 else "nothing"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}\u00a0%"


def chosen_depths(layers: int, k: int, most: int = 12) -> list[int]:
    """Return the depths that a table shows, 0 for initial: all of a shallow decoder's, else some with k."""
    if layers <= most:
        return list(range(layers + 1))
    steps = {round(layers * step / 8) for step in range(1, 9)}
    return sorted({0, 1, k, layers} | steps)


def depth_table(analysis: Analysis) -> Group:
    """Return shares and cosines at each depth, a column for each model."""
    judged, chosen = analysis.judged_by is not None, analysis.samples
    table = _table("depth", analysis, ["true%", "end %", "cos"] if judged else ["end %", "cos"])
    last = len(analysis.results[0].depths) - 1
    for place in [*chosen_depths(last - 1, analysis.layers), last]:
        cells = []
        for depth in (result.depths[place] for result in analysis.results):
            meaningful = [_share_percent(depth.meaningful_share)] if judged else []
            cells.append(_row([*meaningful, _share_percent(depth.end_share), f"{depth.cosine['mean']:.2f}"]))
        name = analysis.results[0].depths[place].name
        table.add_row(f"{name} = k" if name == str(analysis.layers) else name, *cells)
    unread = f"; {len(chosen.unreadable)} could not be read" if chosen.unreadable else ""
    title = (
        f"{len(chosen.chosen)} of {chosen.available} {chosen.source}{unread}. "
        f"Nearest vocabulary token of every patch.\nJudged by {analysis.judged_how}."
    )
    return Group(Text(title), table)


def common_table(analysis: Analysis) -> Group:
    """Return the most frequent matches at the initial embeddings, after layer k and after the last layer."""
    table = _table("depth", analysis, [])
    for place in sorted({0, analysis.layers, len(analysis.results[0].depths) - 2}):
        cells = [
            Text(" ".join(shown(analysis.texts[token]) for token, _ in result.depths[place].common[:8]))
            for result in analysis.results
        ]
        table.add_row(analysis.results[0].depths[place].name, *cells)
    return Group("Most frequent matches", table)


def replacement_table(analysis: Analysis) -> Group:
    """Return what is left of captions and of greedy texts with stand-ins for the picture, for every model."""
    title = (
        "In the picture's place: caption loss (nats per token), how much of the picture's\nuse for it is left"
    )
    texts = any(picture.texts for picture in analysis.results[0].pictures)
    measures = ["loss", "left", "kept%"] if texts else ["loss", "left"]
    if texts:
        title += ", and how many content words of the greedy text are kept"
    table = _table("", analysis, measures)
    for kind in replacement.KINDS:
        cells = []
        for result in analysis.results:
            left = "" if kind == replacement.ORIGINAL else _number(result.survives(kind), "{:.2f}")
            kept = _share_percent(result.overlap(kind)["content_kept"])
            cells.append(_row([_number(result.loss(kind), "{:.3f}"), left, kept][: len(measures)]))
        table.add_row(kind, *cells)
    return Group(title, table)


def _table(first: str, analysis: Analysis, measures: list[str]) -> Table:
    table = Table(header_style="", box=box.SIMPLE_HEAD)
    table.add_column(f"\n{first}", no_wrap=True)
    for subject in analysis.subjects:
        title = Text(f"{subject.label}\n{_row(measures)}")
        table.add_column(title, no_wrap=bool(measures), overflow="fold")
    return table


def _row(values: list[str]) -> str:
    return " ".join(f"{value:>5}" for value in values)


def _share_percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
