"""What a demo found: all columns, as a file and as a table."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

from rich.table import Table

from basic_lite.demo.columns import (
    Column,
    cost_columns,
    inspection_columns,
    load_inspection,
    question_columns,
    shares_right,
)
from basic_lite.demo.inspection import Inspection
from basic_lite.demo.lexicon import Language
from basic_lite.demo.watch import DIARY
from basic_lite.demo.world import SCALE
from basic_lite.measure import Evaluation
from basic_lite.run_folder import versions
from basic_lite.writing import write_json

BENCHMARKS: dict[Language, str] = {"en": "mmbench", "zh": "mmbench-cn"}


@dataclass(frozen=True)
class Outcome:
    """Everything that a demo found.

    Attributes:
        seed: Of the world and the twins.
        seconds: Of the whole demo, wall clock.
        before: The model with a fresh projector.
        columns: All figures of both twins.
    """

    seed: int
    seconds: float
    before: Inspection
    columns: list[Column]

    def column(self, name: str) -> Column:
        """Return the column of a name."""
        return next(column for column in self.columns if column.name == name)


def collect(out: Path, seed: int, seconds: float) -> Outcome:
    """Read what both twins left in `out/plain` and `out/basic`, and write `summary.json`."""
    plain, basic = out / "plain", out / "basic"
    columns = []
    for stage in (1, 2):
        sides = (load_inspection(side / f"stage{stage}" / "inspection.json") for side in (plain, basic))
        columns += inspection_columns(stage, *sides)
    for language in BENCHMARKS:
        columns += _question_columns(out, language)
    diaries = (json.loads((side / DIARY).read_text(encoding="utf-8")) for side in (plain, basic))
    columns += cost_columns(*diaries)
    found = Outcome(seed, round(seconds, 1), load_inspection(plain / "before.json"), columns)
    write_json(
        out / "summary.json",
        {
            "seed": seed,
            "seconds": found.seconds,
            "world": SCALE,
            "meaningful_before": 100 * sum(found.before.meaningful) / sum(found.before.shown),
            "columns": [column.as_dict() for column in columns],
            "machine": {"system": platform.platform(), "cores": cpu_count()},
            "versions": versions(),
        },
    )
    return found


def _question_columns(out: Path, language: Language) -> list[Column]:
    benchmark, tsv = BENCHMARKS[language], out / "world" / _file(language)
    runs = {name: out / name / "stage2" for name in ("plain", "basic")}
    evaluations = {
        name: Evaluation(run, benchmark, run / "eval" / benchmark, data=str(tsv), any_size=True)
        for name, run in runs.items()
    }
    questions = evaluations["plain"].questions(with_images=False)
    right = {name: shares_right(questions, side.answers) for name, side in evaluations.items()}
    return question_columns(language, questions, right["plain"], right["basic"])


def _file(language: Language) -> str:
    return {"en": "mmbench_en.tsv", "zh": "mmbench_cn.tsv"}[language]


def shown_number(value: float, column: Column, signed: bool = False) -> str:
    """Return a value as its column shows it."""
    return f"{value:{'+' if signed else ''},.{column.digits}f}"


def table(found: Outcome) -> Table:
    """Make the table that ends a demo."""
    minutes, rest = divmod(round(found.seconds), 60)
    title = f"plain against BASIC, embedded world, seed {found.seed}, {minutes} min {rest} s"
    made = Table("", "plain", "BASIC", "BASIC - plain", "95 % interval", title=title, title_justify="left")
    for column in made.columns[1:]:
        column.justify = "right"
    group = ""
    colours = {"better": "green", "worse": "red", "open": "default"}
    for column in found.columns:
        if column.group != group:
            made.add_section()
            made.add_row(f"[bold]{column.group}[/bold]")
            group = column.group
        sure = ""
        if column.interval_95 is not None:
            sure = " to ".join(shown_number(end, column, signed=True) for end in column.interval_95)
        unit = f" ({column.unit})" if column.unit else ""
        made.add_row(
            f"{column.label}{unit}",
            shown_number(column.plain, column),
            shown_number(column.basic, column),
            f"[{colours[column.verdict]}]{shown_number(column.difference, column, signed=True)}[/]",
            sure,
        )
    return made
