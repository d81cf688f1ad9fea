"""The report of an analysis of tokens: one HTML file with pictures, tokens and plots inside."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from basic_lite.analysis import replacement
from basic_lite.analysis.found import Look
from basic_lite.analysis.token_plots import colours, depth_curves
from basic_lite.analysis.token_texts import shown
from basic_lite.analysis.tokens import Analysis
from basic_lite.writing import complete

PAGE = Path(__file__).with_name("token_page.html")
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
