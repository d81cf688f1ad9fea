"""Show what `results.json` holds: the figure, how sure it is, what it is made of, and what others report."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from basic_lite import pages
from basic_lite.evaluation.compare import Comparison
from basic_lite.evaluation.question import Id, Question
from basic_lite.evaluation.table import BENCHMARKS
from basic_lite.files import one_line

_LONGEST_SIDE = 480  # of the pictures on a page, which may be hundreds


def results_table(content: Mapping[str, Any]) -> Table:
    title = f"{content['benchmark']} {content['split']}, {content['metric']}, scorer {content['scorer']}"
    table = _table("", "", title=title, title_justify="left", show_header=False, min_width=60)
    if content["value"] is not None:
        interval = content["interval_95"]
        sure = "   95 % interval {:.1f} to {:.1f}".format(*interval) if interval else ""
        table.add_row("value", f"{content['value']:.2f}{sure}", style="bold")
        if content.get("clusters"):  # results of older versions did not say
            table.add_row("independent units (pictures) in the interval", f"{content['clusters']:,}")
    limit = f" (--limit {content['limit']})" if content["limit"] else ""
    table.add_row("prompts", f"{content['n']:,}{limit}")
    for name, value in content["figures"].items():
        several = value.items() if isinstance(value, Mapping) else [("", value)]
        shown = (f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in several)
        table.add_row(name.replace("_", " "), "  ".join(shown).strip())
    table.add_row("answers without a readable option or value", str(content["parse_failures"]))
    if content["missing_predictions"]:
        table.add_row("questions without an answer", str(content["missing_predictions"]), style="red")
    for name, groups in content["breakdown"].items():
        table.add_section()
        for group, value in groups.items():
            table.add_row(f"{name}: {group}", f"{value:.2f}")
    for note in content["notes"]:
        table.add_section()
        table.add_row(note, "")
    if content["published"]["values"] and _is_whole(content):
        table.add_section()
        table.add_row(f"published, on {content['published']['measured_on']}", "")
        for model, value in content["published"]["values"].items():
            table.add_row(f"  {model}", f"{value:.1f}")
    return table


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Whether results are of all rows of a published split; those of older versions do not say."""
    return content["run"].get("published_size", True)


def _table(*heads: str, **style: Any) -> Table:
    table = Table(*heads, **style)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def overview(contents: Sequence[Mapping[str, Any]]) -> Table:
    """Make one table of several benchmarks, with the published figures beside each value."""
    models = list(dict.fromkeys(m for content in contents for m in content["published"]["values"]))
    # A terminal has 80 columns: names of models are broken into several short lines.
    heads = [model.replace("-", "\n").replace(" ", "\n") for model in models]
    table = _table("benchmark, split", "value", "95 % interval", *heads, box=box.SIMPLE_HEAD, padding=0)
    for column in table.columns:
        column.no_wrap = True
    for content in contents:
        value, interval = content["value"], content["interval_95"]
        figures = content["published"]["values"]
        table.add_row(
            f"{content['benchmark']} {content['split']}{'' if _is_whole(content) else ' *'}",
            "none" if value is None else f"{value:.2f}",
            "{:.1f} to {:.1f}".format(*interval) if interval else "",
            *(f"{figures[model]:.1f}" if model in figures else "" for model in models),
        )
    if not all(map(_is_whole, contents)):
        table.caption = "* not the published rows: not comparable with the figures beside it"
    return table


def comparison_table(name: str, result: Comparison, run_a: Path, run_b: Path) -> Table:
    title = f"{name}, {result.metric}, scorer {result.scorer}"
    table = _table("", str(run_a), str(run_b), "difference", title=title, title_justify="left")
    low, high = result.interval
    difference = f"{result.difference:+.2f} ({low:+.2f} to {high:+.2f})"
    units = f"{result.n_clusters:,} {'pictures' if result.n_clusters < result.n else 'questions'}"
    table.add_row(f"{result.n} questions", f"{result.a:.2f}", f"{result.b:.2f}", difference)
    verdict = "more than noise" if result.is_clear else "may be noise"
    table.add_row(f"95 % paired bootstrap interval over {units}", "", "", verdict)
    table.add_row("right in one run only", str(len(result.lost)), str(len(result.gained)), "")
    if result.p_value is not None:
        table.add_row(f"{test_name(result)}, exact", "", "", f"p = {result.p_value:.3g}")
    table.add_section()
    for category, row in result.categories.items():
        table.add_row(f"{category} ({row.n})", f"{row.a:.2f}", f"{row.b:.2f}", f"{row.b - row.a:+.2f}")
    if not result.knows_pictures:
        table.caption = (
            "Scored by a version that did not keep which questions share a picture: interval and p take them "
            "for independent and are too sure; eval --step score scores again."
        )
    return table


def test_name(result: Comparison) -> str:
    return "McNemar" if result.n_clusters == result.n else "sign flips by picture"


def read_results(path: Path) -> dict[str, Any]:
    """Read a `results.json`; raises ValueError if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}); run `basic-lite eval` again") from error


def results_in(run: Path, wanted: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return the results in `RUN/eval/NAME` or `RUN/NAME`, by name, all or of the `wanted` benchmarks."""
    if not run.is_dir():
        raise ValueError(f"{run} is no folder: give runs, or folders that eval wrote into")
    paths = sorted({*run.glob("results.json"), *run.glob("*/results.json"), *run.glob("eval/*/results.json")})
    contents = [content for content in map(read_results, paths) if "benchmark" in content]
    return [content for content in contents if wanted is None or content["benchmark"] in wanted]


def _measured(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what two values must have in common to share a column."""
    part = "whole" if _is_whole(content) else f"{content['n']:,} rows"
    names = ("benchmark", "split", "scorer", "prompt_style", "metric")
    return (*(str(content[name]) for name in names), part, str(content["run"].get("decoding", "greedy")))


def _columns(have: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[tuple[str, ...], str]:
    """Return what was measured -> a name that says no more than distinguishes two columns."""
    measured = sorted({_measured(content) for contents in have.values() for content in contents})
    names = {}
    for key in measured:
        others = [other for other in measured if other[0] == key[0]]
        differing = [
            part for part, *rest in zip(key[1:], *(o[1:] for o in others), strict=True) if {*rest} != {part}
        ]
        if key[5] != "whole" and key[5] not in differing:
            differing.append(key[5])
        names[key] = "\n".join((key[0], *differing))
    return names


def across(have: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Make a table of runs by benchmarks, each value with half the width of its 95 % interval."""
    columns = _columns(have)
    table = _table("run", *columns.values(), box=box.SIMPLE_HEAD, padding=(0, 1))
    for run, contents in have.items():
        cells = {_measured(content): _cell(content) for content in contents}
        table.add_row(run, *(cells.get(key, "") for key in columns))
    table.caption = (
        "± half of the 95 % interval; basic-lite compare, which pairs answers, tells whether two runs differ"
    )
    return table


def _cell(content: Mapping[str, Any]) -> str:
    if content["value"] is None:
        return "none"
    low, high = content["interval_95"] or (content["value"],) * 2
    return f"{content['value']:.1f} ±{(high - low) / 2:.1f}"


def across_csv(have: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    text = StringIO()
    names = ("benchmark", "split", "metric", "scorer", "prompt_style", "n", "value")
    more = ("decoding", "published_size")
    rows = csv.writer(text)
    rows.writerow(["run", *names, "low_95", "high_95", *more])
    for run, contents in have.items():
        for content in contents:
            interval = content["interval_95"] or (None, None)
            facts = (content["run"].get(name) for name in more)
            rows.writerow([run, *(content[name] for name in names), *interval, *facts])
    return text.getvalue()


def write_page(
    comparison: Comparison,
    benchmark: str,
    questions: Sequence[Question],
    answers: Mapping[str, Mapping[Id, str]],
    path: Path,
    most: int = 200,
) -> Path:
    """Write questions whose answers flipped, with pictures, rotations and both answers, as an HTML file."""
    unit = BENCHMARKS[benchmark].unit
    by_unit: dict[Hashable, list[Question]] = defaultdict(list)
    for question in questions:
        for name in {question.id, unit(question)}:  # a base question of MMBench stands for its rotations
            by_unit[name].append(question)

    def flip(name: Id) -> dict[str, Any]:
        rows = by_unit[name]
        image = rows[0].open_image()
        return {
            "unit": name,
            "picture": None if image is None else pages.picture(image, _LONGEST_SIDE),
            "asked": [
                (
                    ("Question", row.text),
                    ("Reference", row.answer if row.answer is not None else ", ".join(row.answers)),
                    *((run, given.get(row.id, "(none)")) for run, given in answers.items()),
                )
                for row in rows
            ],
        }

    low, high = comparison.interval
    summary = [
        (f"{comparison.metric} ({comparison.scorer})", f"{comparison.a:.2f} / {comparison.b:.2f}"),
        ("difference", f"{comparison.difference:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}"),
        ("questions", f"{comparison.n}: {len(comparison.lost)} lost, {len(comparison.gained)} gained"),
    ]
    if comparison.p_value is not None:
        summary.append((f"{test_name(comparison)}, exact", f"p = {comparison.p_value:.3g}"))
    flips = {"lost": comparison.lost, "gained": comparison.gained}
    kinds = [(kind, len(names), [flip(name) for name in names[:most]]) for kind, names in flips.items()]
    values = {"benchmark": benchmark, "names": list(answers), "summary": summary, "kinds": kinds}
    return pages.write(path, "evaluation/flipped.html", **values)
