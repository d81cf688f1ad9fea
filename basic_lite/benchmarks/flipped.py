"""A page of the questions whose answers changed between two runs, with their pictures, for a browser."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from basic_lite.benchmarks.files import write_text
from basic_lite.benchmarks.question import Question
from basic_lite.benchmarks.table import BENCHMARKS, name_of
from basic_lite.scoring.compare import Comparison
from basic_lite.scoring.score import Id

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; }
td, th { padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd; }
article { display: flex; gap: 1.5em; border-top: 1px solid #ccc; padding: 1em 0; }
img { max-width: 20em; max-height: 20em; } pre { white-space: pre-wrap; font: inherit; margin: 0; }
.gained h3 { color: #17692e; } .lost h3 { color: #a11c1c; }
"""
_LONGEST_SIDE = 480


def _thumbnail(question: Question) -> str:
    """Return an image tag with the picture inside, so that the page is one file."""
    picture = question.open_image()
    if picture is None:
        return ""
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _article(
    kind: str,
    unit: Id,
    rows: Sequence[Question],
    answers: tuple[Mapping[Id, str], Mapping[Id, str]],
    names: tuple[str, str],
) -> str:
    """Return one flipped question: picture, wording, reference and both answers; rotations follow."""
    asked = []
    for question in rows:
        reference = question.answer if question.answer is not None else ", ".join(question.answers)
        cells = [("Question", question.text), ("Reference", reference)]
        cells += [
            (name, given.get(question.id, "(none)")) for name, given in zip(names, answers, strict=True)
        ]
        lines = "".join(f"<tr><th>{escape(k)}</th><td><pre>{escape(v)}</pre></td></tr>" for k, v in cells)
        asked.append(f"<table>{lines}</table>")
    heading = f"{escape(str(unit))}: {kind}"
    texts = f"<div><h3>{heading}</h3>{''.join(asked)}</div>"
    return f'<article class="{kind}">{_thumbnail(rows[0])}{texts}</article>'


def write_page(
    comparison: Comparison,
    benchmark: str,
    questions: Sequence[Question],
    answers: tuple[Mapping[Id, str], Mapping[Id, str]],
    path: Path,
    names: tuple[str, str] = ("A", "B"),
    most: int = 200,
) -> Path:
    """Write the flipped questions of a comparison as one HTML file.

    Args:
        comparison: Of the two runs.
        benchmark: Its name in the table.
        questions: What was asked.
        answers: Question id -> answer, of either run.
        path: The file to write.
        names: What to call the runs.
        most: How many lost, and how many gained questions to show at most.
    """
    unit = BENCHMARKS[name_of(benchmark)].unit
    by_unit: dict[Id, list[Question]] = defaultdict(list)
    for question in questions:
        by_unit[question.id].append(question)
        if unit(question) != question.id:  # a base question of MMBench stands for its rotations
            by_unit[unit(question)].append(question)  # type: ignore[index]
    low, high = comparison.interval
    summary = [
        (f"{comparison.metric} ({comparison.scorer})", f"{comparison.a:.2f} / {comparison.b:.2f}"),
        ("difference", f"{comparison.difference:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}"),
        ("questions", f"{comparison.n}: {len(comparison.lost)} lost, {len(comparison.gained)} gained"),
    ]
    if comparison.mcnemar_p is not None:
        summary.append(("McNemar, exact", f"p = {comparison.mcnemar_p:.3g}"))
    head = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in summary)
    title = f"{escape(name_of(benchmark))}: {escape(names[0])} / {escape(names[1])}"
    articles = []
    for kind, flips in (("lost", comparison.lost), ("gained", comparison.gained)):
        if len(flips) > most:
            articles.append(f"<p>{most} of {len(flips)} {kind} questions are shown.</p>")
        articles += [_article(kind, flip, by_unit[flip], answers, names) for flip in flips[:most]]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><table>{head}</table>{''.join(articles)}"
        "</body></html>\n"
    )
    return write_text(path, page)
