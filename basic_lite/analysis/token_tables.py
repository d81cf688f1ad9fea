"""An analysis of tokens in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.markup import escape as markup_escape
from rich.table import Table
from rich.text import Text

from basic_lite.analysis import replacement
from basic_lite.analysis.found import Depth
from basic_lite.analysis.token_texts import shown
from basic_lite.analysis.tokens import Analysis


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
            kept = _percent(one.overlap(kind)["content_kept"])
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
    return [_percent(depth.meaningful_share), _percent(depth.end_share), f"{depth.cosine['mean']:.2f}"]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
