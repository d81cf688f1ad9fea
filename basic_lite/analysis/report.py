"""The report of an analysis of tokens: one HTML file with pictures, tokens and plots inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich import box
from rich.console import Group
from rich.markup import escape as markup_escape
from rich.table import Table
from rich.text import Text

from basic_lite.analysis import replacement
from basic_lite.analysis.judges import shown
from basic_lite.analysis.look import Depth, Look
from basic_lite.analysis.tokens import Analysis
from basic_lite.files import complete
from basic_lite.pages import as_svg, quiet_axes

# Curves over the decoder's depth, as SVG.

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


PAGE = Path(__file__).with_name("tokens.html")
"""The frame: text, style and the script that lays tokens over pictures; `$names` are filled in."""

WIDEST: int = 672
"""Longest side of an embedded picture in pixels."""

_READ = (replacement.ORIGINAL, replacement.DIRECTION, replacement.AS_TEXT, replacement.SHUFFLED)


def write(path: Path, found: Analysis) -> Path:
    """Write the report and return its path."""
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"What the patches mean: {found.subjects[-1].label}"),
        lead="".join(f'<p class="lead">{escape(line)}</p>' for line in lead(found)),
        judged=escape(f"Judged by {found.judged_how}."),
        curves=depth_curves(found),
        models=_heads(found),
        stand_ins=_stand_ins(found),
        common=_common(found),
        depths=_depths(found),
        data=_for_script(_data(found)),
        footer=escape(_footer(found)),
    )
    with complete(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def lead(found: Analysis) -> list[str]:
    """Say in a few sentences what was found, whatever it is."""
    parts = [
        f"{len(found.exhibition.exhibits)} pictures, {found.grid} x {found.grid} patches each, through "
        f"{len(found.looks[0].depths) - 2} layers."
    ]
    pairs = list(zip(found.subjects, found.looks, strict=True))
    if found.judged_by is not None:
        shares = [f"{subject.label}: {_percent(one.depths[0].meaningful_share)}" for subject, one in pairs]
        parts.append(f"Initial embeddings whose nearest token means something: {'; '.join(shares)}.")
    ends = [f"{subject.label}: {_percent(one.depths[-2].end_share)}" for subject, one in pairs]
    parts.append(f"States that the last layer leaves nearest to an end token: {'; '.join(ends)}.")
    left = [(subject.label, one.survives(replacement.DIRECTION)) for subject, one in pairs]
    told = [f"{label}: {_left(share)}" for label, share in left if share is not None]
    if told:
        parts.append(
            "Of what the picture adds to the caption's likelihood, above a blank or another picture, this is "
            f"left when each patch is replaced by its nearest token: {'; '.join(told)}."
        )
    return parts


def _stand_ins(found: Analysis) -> str:
    """Return a section with a row for each kind of stand-in; nothing where none was tried."""
    rows = []
    if not any(one.tried for one in found.looks):
        return ""
    for kind, meaning in replacement.KINDS.items():
        cells = "".join(_stand_in(one, kind) for one in found.looks)
        rows.append(f"<tr><td>{escape(kind)}<small>{escape(meaning)}</small></td>{cells}</tr>")
    head = f"<thead><tr><th>caption loss, nats per token</th>{_heads(found)}</tr></thead>"
    return (
        "<h2>Other vectors in the picture's place</h2>"
        f'<div class="card"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
    )


def _heads(found: Analysis) -> str:
    return "".join(f"<th>{escape(subject.label)}</th>" for subject in found.subjects)


def _stand_in(one: Look, kind: str) -> str:
    loss, left, texts = one.loss(kind), one.survives(kind), one.overlap(kind)
    first = "" if loss is None else f"{loss:.3f}"
    notes = [] if left is None or kind == replacement.ORIGINAL else [f"{_left(left)} left"]
    if texts["content_kept"] is not None and kind != replacement.ORIGINAL:
        notes.append(f"text: {_percent(texts['content_kept'])} of words kept")
    if texts["caption_said"] is not None:
        notes.append(f"{_percent(texts['caption_said'])} of caption said")
    return f"<td>{first}<small>{'<br>'.join(notes)}</small></td>"


def _common(found: Analysis) -> str:
    """Return the most frequent matches at some depths, a cell for each model."""
    rows = []
    for place in sorted({0, max(found.layers // 2, 1), found.layers, len(found.looks[0].depths) - 2}):
        cells = []
        for one in found.looks:
            depth = one.depths[place]
            chips = [_chip(found, token, count / depth.patches) for token, count in depth.common[:8]]
            cells.append(f"<td>{''.join(chips)}</td>")
        name = found.looks[0].depths[place].name
        rows.append(f"<tr><td>{name if place == 0 else f'layer {name}'}</td>{''.join(cells)}</tr>")
    return "".join(rows)


def _chip(found: Analysis, token: int, share: float) -> str:
    kind = "chip end" if token in found.ends else "chip"
    return f'<span class="{kind}">{escape(shown(found.texts[token]))}<i>{100 * share:.0f}</i></span>'


def _depths(found: Analysis) -> str:
    """Return every figure at every depth, a cell for each model."""
    rows = []
    for place, depth in enumerate(found.looks[0].depths):
        cells = []
        for one in (look.depths[place] for look in found.looks):
            cells += [_percent(one.meaningful_share), _percent(one.end_share)]
            cells += [f"{one.cosine['mean']:.2f}", f"{one.similarity:.2f}"]
        rows.append(f"<tr><td>{depth.name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = "".join(f'<th colspan="4">{escape(subject.label)}</th>' for subject in found.subjects)
    kinds = "<th>true</th><th>end</th><th>cosine</th><th>match</th>" * len(found.subjects)
    head = f"<thead><tr><th></th>{heads}</tr><tr><th>depth</th>{kinds}</tr></thead>"
    return f"{head}<tbody>{''.join(rows)}</tbody>"


def _data(found: Analysis) -> dict[str, object]:
    """Return what the page's script lays over the pictures: ids into a list of the tokens that occur."""
    place: dict[int, int] = {}
    pictures = []
    for number, picture in enumerate(found.prepared):
        exhibit = found.exhibition.exhibits[number]
        views = []
        for one in found.looks:
            rows, verdicts = one.views[number]
            ids = [[place.setdefault(token, len(place)) for token in row] for row in rows]
            judged = 0 if verdicts is None else sum(value is not None for value in verdicts[0])
            views.append({"ids": ids, "kinds": _kinds(found, rows, verdicts), "judged": judged})
        texts = [
            [kind, *(one.said[number].texts[kind] for one in found.looks)]
            for kind in _READ
            if kind in found.looks[0].said[number].texts
        ]
        pictures.append(
            {
                "name": exhibit.name,
                "caption": exhibit.caption or "",
                "src": _embedded(picture),
                "views": views,
                "texts": texts,
            }
        )
    return {
        "grid": found.grid,
        "k": found.layers,
        "depths": [depth.name for depth in found.looks[0].depths],
        "models": [
            {"label": subject.label, "colour": colour}
            for subject, colour in zip(found.subjects, colours(found), strict=True)
        ],
        "judged": found.judged_by is not None,
        "tokens": [shown(found.texts[token]) for token in place],
        "exact": [repr(found.texts[token]) for token in place],
        "pictures": pictures,
    }


def _kinds(found: Analysis, rows: list[list[int]], verdicts: list[list[bool | None]] | None) -> list[str]:
    """Return a letter for each patch at each depth: `t`rue, `f`alse, `e`nd token, `n`othing to judge."""
    letters = {True: "t", False: "f", None: "n"}
    return [
        "".join(
            "e" if token in found.ends else letters[None if verdicts is None else verdicts[depth][patch]]
            for patch, token in enumerate(row)
        )
        for depth, row in enumerate(rows)
    ]


def _embedded(picture: Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=86)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _for_script(content: object) -> str:
    """Return JSON that no text inside can end the script element with."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _footer(found: Analysis) -> str:
    shows = found.exhibition
    parts = [f"{len(shows.exhibits)} of {shows.found} {shows.source}"]
    if shows.unreadable:
        parts.append(f"{len(shows.unreadable)} of those drawn could not be read")
    for subject in found.subjects:
        if subject.seed is not None:
            parts.append(f"{subject.label}: projector of seed {subject.seed} ({subject.seed_from})")
        else:
            parts.append(f"{subject.label}: {subject.folder}")
    return " · ".join(parts)


def _left(share: float) -> str:
    return _percent(share) if share > 0 else "nothing"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}\u00a0%"


# An analysis of tokens in the terminal.


def chosen_depths(layers: int, k: int, most: int = 12) -> list[int]:
    """Return the depths that a table shows, 0 for initial: all of a shallow decoder's, else some with k."""
    if layers <= most:
        return list(range(layers + 1))
    steps = {round(layers * step / 8) for step in range(1, 9)}
    return sorted({0, 1, k, layers} | steps)


def depth_table(found: Analysis) -> Group:
    """Return shares and cosines at each depth, a column for each model."""
    measures = ["end %", "cos"] if found.judged_by is None else ["true%", "end %", "cos"]
    table = _table("depth", found, measures)
    last = len(found.looks[0].depths) - 1
    for place in [*chosen_depths(last - 1, found.layers), last]:
        name = found.looks[0].depths[place].name
        mark = " = k" if name == str(found.layers) else ""
        table.add_row(
            f"{name}{mark}", *(_row(_figures(one.depths[place])[-len(measures) :]) for one in found.looks)
        )
    return Group(Text(_title(found)), table)


def common_table(found: Analysis) -> Group:
    """Return the most frequent matches at the initial embeddings, after layer k and after the last layer."""
    table = _table("depth", found, [])
    for place in sorted({0, found.layers, len(found.looks[0].depths) - 2}):
        cells = [
            Text(" ".join(shown(found.texts[token]) for token, _ in one.depths[place].common[:8]))
            for one in found.looks
        ]
        table.add_row(found.looks[0].depths[place].name, *cells)
    return Group("Most frequent matches", table)


def replacement_table(found: Analysis) -> Group:
    """Return what is left of captions and of greedy texts with stand-ins for the picture, for every model."""
    title = (
        "In the picture's place: caption loss (nats per token), how much of the picture's\nuse for it is left"
    )
    texts = any(one.texts for one in found.looks[0].said)
    measures = ["loss", "left", "kept%"] if texts else ["loss", "left"]
    if texts:
        title += ", and how many content words of the greedy text are kept"
    table = _table("", found, measures)
    for kind in replacement.KINDS:
        cells = []
        for one in found.looks:
            left = "" if kind == replacement.ORIGINAL else _number(one.survives(kind), "{:.2f}")
            kept = _share_percent(one.overlap(kind)["content_kept"])
            cells.append(_row([_number(one.loss(kind), "{:.3f}"), left, kept][: len(measures)]))
        table.add_row(kind, *cells)
    return Group(title, table)


def _table(first: str, found: Analysis, measures: list[str]) -> Table:
    table = Table(header_style="", box=box.SIMPLE_HEAD)
    table.add_column(f"\n{first}", no_wrap=True)
    for subject in found.subjects:
        table.add_column(
            f"{markup_escape(subject.label)}\n{_row(measures)}", no_wrap=bool(measures), overflow="fold"
        )
    return table


def _row(values: list[str]) -> str:
    return " ".join(f"{value:>5}" for value in values)


def _title(found: Analysis) -> str:
    shown_count, shows = len(found.exhibition.exhibits), found.exhibition
    unread = f"; {len(shows.unreadable)} could not be read" if shows.unreadable else ""
    return (
        f"{shown_count} of {shows.found} {shows.source}{unread}. Nearest vocabulary token of every patch.\n"
        f"Judged by {found.judged_how}."
    )


def _figures(depth: Depth) -> list[str]:
    return [
        _share_percent(depth.meaningful_share),
        _share_percent(depth.end_share),
        f"{depth.cosine['mean']:.2f}",
    ]


def _share_percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
