"""Show what `results.json` holds: the figure, how sure it is, what it is made of, and what others report."""

from __future__ import annotations

import base64
import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from basic_lite.evaluation.compare import Comparison
from basic_lite.evaluation.files import write_text
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.statistics import Id, Score
from basic_lite.evaluation.table import BENCHMARKS, name_of


def results_table(content: Mapping[str, Any]) -> Table:
    """Make a table of one benchmark's results.

    Args:
        content: of `results.json`.
    """
    title = f"{content['benchmark']} {content['split']}, {content['metric']}, scorer {content['scorer']}"
    table = Table("", "", title=title, title_justify="left", show_header=False, min_width=60)
    table.columns[1].justify = "right"
    if content["value"] is not None:
        low, high = content["interval_95"] or (None, None)
        sure = f"   95 % interval {low:.1f} to {high:.1f}" if low is not None else ""
        table.add_row("[bold]value[/bold]", f"[bold]{content['value']:.2f}[/bold]{sure}")
    counted = f"{content['n']:,}" + (f" (--limit {content['limit']})" if content["limit"] else "")
    table.add_row("prompts", counted)
    for name, value in content["figures"].items():
        shown = f"{value:.2f}" if isinstance(value, float) else value
        if isinstance(value, Mapping):
            shown = "  ".join(
                f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        table.add_row(name.replace("_", " "), str(shown))
    table.add_row("answers without a readable option or value", str(content["parse_failures"]))
    if content["missing_predictions"]:
        table.add_row("[red]questions without an answer[/red]", str(content["missing_predictions"]))
    for name, groups in content["breakdown"].items():
        table.add_section()
        for group, value in groups.items():
            table.add_row(f"{name}: {group}", f"{value:.2f}")
    for note in content["notes"]:
        table.add_section()
        table.add_row(note, "")
    values = content["published"]["values"]
    if values and content["run"].get("published_size", True):
        table.add_section()
        table.add_row(f"published, on {content['published']['measured_on']}", "")
        for model, value in values.items():
            table.add_row(f"  {model}", f"{value:.1f}")
    return table


def overview(contents: Sequence[Mapping[str, Any]]) -> Table:
    """Make one table of several benchmarks, with the published figures beside each value."""
    models = list(dict.fromkeys(m for content in contents for m in content["published"]["values"]))
    # A terminal has 80 columns: names of models stand on several short lines.
    heads = [model.replace("-", "\n").replace(" ", "\n") for model in models]
    table = Table("benchmark, split", "value", "95 % interval", *heads, box=box.SIMPLE_HEAD, padding=0)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for content in contents:
        value, interval = content["value"], content["interval_95"]
        note = "" if content["run"].get("published_size", True) else " *"
        row = [f"{content['benchmark']} {content['split']}{note}"]
        row.append("none" if value is None else f"{value:.2f}")
        row.append("" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}")
        figures = content["published"]["values"]
        row += [f"{figures[model]:.1f}" if model in figures else "" for model in models]
        table.add_row(*row)
    if any(not content["run"].get("published_size", True) for content in contents):
        table.caption = "* not the published rows: not comparable with the figures beside it"
    return table


def comparison_table(name: str, result: Comparison, run_a: Path, run_b: Path) -> Table:
    """Make a table of a paired comparison."""
    title = f"{name}, {result.metric}, scorer {result.scorer}"
    table = Table("", str(run_a), str(run_b), "difference", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    low, high = result.interval
    difference = f"{result.difference:+.2f} ({low:+.2f} to {high:+.2f})"
    table.add_row(f"{result.n} questions", f"{result.a:.2f}", f"{result.b:.2f}", difference)
    verdict = "more than noise" if result.is_clear else "not told from noise"
    table.add_row("95 % paired bootstrap interval", "", "", verdict)
    table.add_row("right in one run only", str(len(result.lost)), str(len(result.gained)), "")
    if result.mcnemar_p is not None:
        table.add_row("McNemar, exact", "", "", f"p = {result.mcnemar_p:.3g}")
    table.add_section()
    for category, row in result.categories.items():
        table.add_row(f"{category} ({row.n})", f"{row.a:.2f}", f"{row.b:.2f}", f"{row.b - row.a:+.2f}")
    return table


def read_results(path: Path) -> dict[str, Any]:
    """Read a `results.json`.

    Raises:
        ValueError: If it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); run `basic-lite eval` again") from error


# Published figures to print beside a measured one, with what they were measured on.
#
# Sources: LLaVA `docs/MODEL_ZOO.md` (LLaVA-1.5 and its LoRA versions), the BASIC paper (ICCV 2025).

_ORDER = (
    *("vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope"),
    *("mme", "mmbench", "mmbench-cn", "seed", "mmvet"),
)

PUBLISHED: dict[str, dict[str, float]] = {
    "LLaVA-1.5-7B": dict(
        zip(_ORDER, (78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 58.3, 58.6, 31.1), strict=True)
    ),
    "LLaVA-1.5-13B": dict(
        zip(_ORDER, (80.0, 63.3, 53.6, 71.6, 61.3, 85.9, 1531.3, 67.7, 63.6, 61.6, 36.1), strict=True)
    ),
    "LLaVA-1.5-7B LoRA": dict(
        zip(_ORDER, (79.1, 63.0, 47.8, 68.4, 58.2, 86.4, 1476.9, 66.1, 58.9, 60.1, 30.2), strict=True)
    ),
    "LLaVA-1.5-13B LoRA": dict(
        zip(_ORDER, (80.0, 63.3, 58.9, 71.2, 60.2, 86.7, 1541.7, 68.5, 61.5, 61.3, 38.3), strict=True)
    ),
    "BASIC-7B": {
        "vqav2": 79.2,
        "gqa": 63.5,
        "vizwiz": 52.5,
        "scienceqa": 70.6,
        "mmbench": 68.8,
        "mmbench-cn": 62.1,
        "mmvet": 33.8,
    },
}
"""Model -> benchmark -> figure, in per cent (MME: perception points)."""

MEASURED_ON: dict[str, str] = {
    "vqav2": "test-dev, scored by the server",
    "gqa": "testdev balanced",
    "vizwiz": "test, scored by the server",
    "scienceqa": "test, questions with a picture",
    "textvqa": "val, with OCR tokens in the prompt",
    "pope": "mean F1 of the three categories",
    "mme": "perception points",
    "mmbench": "dev, scored by the server, which asked a GPT where matching failed",
    "mmbench-cn": "dev, scored by the server, which asked a GPT where matching failed",
    "seed": "images and videos",
    "mmvet": "judged by gpt-4-0613",
}
"""What the published figures were measured on; another split or scorer is not comparable."""


def published(benchmark: str) -> dict[str, float]:
    """Return model -> published figure of a benchmark, for the models that have one."""
    return {model: figures[benchmark] for model, figures in PUBLISHED.items() if benchmark in figures}


# The content of `results.json`: what was measured, on what, by which rule, and how sure it is.

_PACKAGES = (
    "basic-lite",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "datasets",
    "pillow",
    "numpy",
)


def versions() -> dict[str, str]:
    """Return package -> installed version, without importing any."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def results(
    score: Score,
    *,
    benchmark: str,
    split: str,
    n: int,
    prompt_style: str,
    manifest_hash: str | None,
    limit: int | None = None,
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `results.json`.

    Args:
        score: What the scorer returned.
        benchmark: Name in the table of benchmarks.
        split: The split that was asked.
        n: Questions that were asked (for MMBench rows, rotations included).
        prompt_style: Name of the prompts.
        manifest_hash: Of the checkpoint's manifest; `None` for predictions of unknown origin.
        limit: The `--limit`, if one was given; such a value is not the benchmark's.
        run: Anything else worth keeping, such as decoding settings.
    """
    interval = score.interval()
    return {
        "benchmark": benchmark,
        "split": split,
        "n": n,
        "limit": limit,
        "metric": score.metric,
        "scorer": score.scorer,
        "prompt_style": prompt_style,
        "value": score.value,
        "interval_95": None if interval is None else list(interval),
        "parse_failures": score.unparsed,
        "missing_predictions": score.missing,
        "figures": dict(score.figures),
        "breakdown": {name: dict(groups) for name, groups in score.breakdown.items()},
        "notes": list(score.notes),
        "published": {"measured_on": MEASURED_ON.get(benchmark), "values": published(benchmark)},
        "manifest_hash": manifest_hash,
        "versions": versions(),
        "run": dict(run or {}),
    }


# A page of the questions whose answers changed between two runs, with their pictures, for a browser.

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
