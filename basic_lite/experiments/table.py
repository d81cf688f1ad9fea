"""From measured runs to one table: means over seeds, and how sure each difference to the baseline is."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import cpu_count
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np
from rich.table import Table

from basic_lite.data.world.lexicon import Language
from basic_lite.data.world.questions import KINDS
from basic_lite.data.world.world import SCALE
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.run import Evaluation
from basic_lite.evaluation.statistics import percentile_interval, resample, student_interval
from basic_lite.evaluation.tasks.mmbench import ROTATION
from basic_lite.experiments.measure import LANGUAGE_NAMES, Inspection, Measure, shares_right
from basic_lite.experiments.processes import DEMO_DIARY
from basic_lite.files import complete, versions, write_json

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One measure of one arm.

    Attributes:
        arm: its name.
        measure: key of the measure.
        mean: over seeds.
        each: of each seed.
        difference: to the baseline, mean over seeds; `None` for the baseline itself.
        differences: of each seed.
        over_seeds: 95 % interval of the difference for another seed's runs, Student's t of the seeds' paired
            differences; `None` with one seed.
        over_units: 95 % bootstrap interval of the difference for other scenes or questions and these very
            runs, paired by unit and pooled over seeds.
        verdict: `better`, `worse`, or `open` where the interval holds 0; by `interval`.
    """

    arm: str
    measure: str
    mean: float
    each: list[float]
    difference: float | None = None
    differences: list[float] | None = None
    over_seeds: Interval | None = None
    over_units: Interval | None = None
    verdict: Literal["baseline", "better", "worse", "open"] = "baseline"

    @property
    def interval(self) -> Interval | None:
        """The interval that a reader should go by: over seeds, and with one seed over units."""
        return self.over_seeds or self.over_units


@dataclass(frozen=True)
class DifferenceTable:
    """Everything that a plan found.

    Attributes:
        plan: its name.
        asks: its question.
        baseline: name of the arm that all are compared with.
        seeds: what was run.
        measures: the columns; their values are those of the baseline's first seed.
        cells: arm -> key of a measure -> cell, in the plan's order.
    """

    plan: str
    asks: str
    baseline: str
    seeds: list[int]
    measures: list[Measure]
    cells: dict[str, dict[str, Cell]]

    @property
    def how_sure(self) -> str:
        """Say in a sentence what the intervals are."""
        over = " or ".join(dict.fromkeys(measure.over for measure in self.measures))
        if len(self.seeds) == 1:
            return (
                f"Behind each mean its difference to {self.baseline}, with its 95 % bootstrap interval over "
                f"{over}, paired: one seed, so it says nothing about other seeds."
            )
        return (
            f"Means over {len(self.seeds)} seeds; behind each its difference to {self.baseline}, with its "
            f"95 % interval over seeds (Student's t), paired by seed and within it by {over}."
        )

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        heads = [{k: v for k, v in asdict(m).items() if k not in ("values", "of")} for m in self.measures]
        cells = {arm: {name: asdict(cell) for name, cell in row.items()} for arm, row in self.cells.items()}
        return {
            "plan": self.plan,
            "asks": self.asks,
            "baseline": self.baseline,
            "seeds": self.seeds,
            "measures": heads,
            "arms": cells,
        }


def tabulate(
    plan: str,
    asks: str,
    baseline: str,
    seeds: Sequence[int],
    found: Mapping[str, Sequence[Sequence[Measure]]],
) -> DifferenceTable:
    """Compare every arm with the baseline.

    Args:
        plan: its name.
        asks: its question.
        baseline: an arm of `found`.
        seeds: in the order of each arm's runs.
        found: arm -> for each seed its measures, the same ones everywhere.
    """
    heads = list(found[baseline][0])
    cells: dict[str, dict[str, Cell]] = {}
    for arm, runs in found.items():
        cells[arm] = {}
        for position, head in enumerate(heads):
            own = [run[position] for run in runs]
            base = [run[position] for run in found[baseline]]
            assert {m.name for m in own + base} == {head.name}, f"the runs of {arm} have other measures"
            cells[arm][head.name] = _cell(arm, head, own, None if arm == baseline else base)
    return DifferenceTable(plan, asks, baseline, list(seeds), heads, cells)


def _cell(arm: str, head: Measure, own: Sequence[Measure], base: Sequence[Measure] | None) -> Cell:
    each = [measure.mean for measure in own]
    if base is None:
        return Cell(arm, head.name, mean(each), each)
    differences = [one - other.mean for one, other in zip(each, base, strict=True)]
    over_seeds = student_interval(differences) if len(differences) > 1 else None
    over_units = paired_interval(own, base)
    difference, (low, high) = mean(differences), over_seeds or over_units
    verdict = "open"
    if head.better is not None and not low <= 0 <= high:
        verdict = "better" if (difference > 0) == (head.better == "higher") else "worse"
    return Cell(arm, head.name, mean(each), each, difference, differences, over_seeds, over_units, verdict)


def paired_interval(own: Sequence[Measure], base: Sequence[Measure], seed: int = 0) -> Interval:
    """Return the 95 % bootstrap interval of the mean over runs of `own - base`, resampling units in each run.

    Args:
        own: one measure for each seed.
        base: the baseline's, over the same units.
        seed: of the resamples.
    """
    cells = []
    for run, (one, other) in enumerate(zip(own, base, strict=True)):
        of = [1.0] * len(one.values) if one.of is None else one.of
        cells += [(run, *unit) for unit in zip(one.values, other.values, of, strict=True)]
    outcomes, counts = resample(cells, lambda cell: cell[0], seed=seed)
    table = np.asarray(outcomes, dtype=float)
    total = np.zeros(len(counts))
    for run in range(len(own)):
        rows = table[:, 0] == run
        here = counts[:, rows]
        total += here @ (table[rows, 1] - table[rows, 2]) / (here @ table[rows, 3])
    return percentile_interval(total / len(own))


# What the two twins of a demo are compared by: one column per figure, with how sure its difference is.


@dataclass(frozen=True)
class Column:
    """One figure of both twins.

    Attributes:
        name: Key, for instance `meaningful_stage1`.
        label: What it is, for people.
        group: Heading that it belongs under.
        unit: Unit, empty for a pure number.
        better: Which way is better; `None` where neither is.
        plain: Value of the plain twin.
        basic: Value of the BASIC twin.
        interval_95: Paired bootstrap interval of BASIC minus plain; `None` for what is measured once.
        digits: Digits behind the point that are shown.
    """

    name: str
    label: str
    group: str
    unit: str
    better: Literal["higher", "lower"] | None
    plain: float
    basic: float
    interval_95: tuple[float, float] | None = None
    digits: int = 2

    @property
    def difference(self) -> float:
        """BASIC minus plain."""
        return self.basic - self.plain

    @property
    def verdict(self) -> Literal["better", "worse", "open"]:
        """Whether BASIC is better, worse, or the interval holds 0; `open` where nothing is better."""
        if self.interval_95 is None or self.better is None or self.interval_95[0] <= 0 <= self.interval_95[1]:
            return "open"
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON, with the difference."""
        return asdict(self) | {"difference": self.difference, "verdict": self.verdict}


def seed_interval(
    plain: Sequence[float], basic: Sequence[float], of: Sequence[float] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a difference of means, over units that both twins share.

    Args:
        plain: One value per unit.
        basic: One value per unit, in the same order.
        of: What the values are counts out of; the means are then sums divided by its sum.
        seed: Of the resamples.
    """
    of = [1.0] * len(plain) if of is None else of
    cells = list(zip(plain, basic, of, strict=True))
    outcomes, counts = resample(cells, lambda cell: None, seed=seed)
    table = np.asarray(outcomes, dtype=float)
    return percentile_interval(counts @ (table[:, 1] - table[:, 0]) / (counts @ table[:, 2]))


def inspection_columns(stage: int, plain: Inspection, basic: Inspection) -> list[Column]:
    """Return caption loss, cosine and the share of meaningful patches on held-out scenes after a stage."""
    group = f"held-out scenes, after stage {stage}"
    found = []
    for key, label, unit, better, digits in (
        ("caption_loss", "caption loss", "nats per token", "lower", 3),
        ("cosine", "cosine of initial to target", "", "higher", 3),
    ):
        one, other = getattr(plain, key), getattr(basic, key)
        interval = seed_interval(one, other)
        values = (float(np.mean(one)), float(np.mean(other)))
        name = f"{key}_stage{stage}"
        found.append(Column(name, label, group, unit, better, *values, interval, digits))
    shares = [100 * sum(side.meaningful) / sum(side.shown) for side in (plain, basic)]
    low, high = seed_interval(plain.meaningful, basic.meaningful, plain.shown)
    found.append(
        Column(
            f"meaningful_stage{stage}",
            "patches whose nearest token is true of them",
            group,
            "%",
            "higher",
            *shares,
            (100 * low, 100 * high),
            1,
        )
    )
    return found


def question_columns(
    language: Language, questions: Sequence[Question], plain: dict[int, float], basic: dict[int, float]
) -> list[Column]:
    """Return the accuracy on all questions, with all rotations right, and by kind, in per cent."""
    group = f"questions in {LANGUAGE_NAMES[language]}"
    kinds = {int(q.fields["index"]) % ROTATION: q.category for q in questions}
    found = [
        _accuracy(f"accuracy_{language}", "right answers", group, list(plain), plain, basic),
        _accuracy(
            f"circular_{language}",
            "right in every order of the options",
            group,
            list(plain),
            *({base: float(share == 1) for base, share in side.items()} for side in (plain, basic)),
        ),
    ]
    for kind in KINDS:
        chosen = [base for base, of in kinds.items() if of == kind]
        if chosen:
            found.append(_accuracy(f"{kind}_{language}", f"  {kind}", group, chosen, plain, basic))
    return found


def _accuracy(
    name: str, label: str, group: str, chosen: list[int], plain: dict[int, float], basic: dict[int, float]
) -> Column:
    one, other = ([100 * side[base] for base in chosen] for side in (plain, basic))
    values = (float(np.mean(one)), float(np.mean(other)))
    return Column(name, label, group, "%", "higher", *values, seed_interval(one, other), 1)


def cost_columns(plain: dict, basic: dict) -> list[Column]:
    """Return seconds of each part and the highest memory, from what the twins wrote down."""
    found = [
        Column(
            f"seconds_{phase}",
            f"seconds, {phase}",
            "cost",
            "s",
            None,
            plain["seconds"][phase],
            basic["seconds"][phase],
            None,
            0,
        )
        for phase in plain["seconds"]
    ]
    peaks = (max(side["peak_mib"].values()) for side in (plain, basic))
    return [*found, Column("peak_mib", "highest memory", "cost", "MiB", None, *peaks, None, 0)]


def load_inspection(path: Path) -> Inspection:
    """Read what a twin wrote about its model."""
    return Inspection.from_dict(json.loads(path.read_text(encoding="utf-8")))


# Several demos with seeds of their own: mean and interval of every column.


def collect(folders: Sequence[Path], out: Path) -> list[dict[str, object]]:
    """Read the `summary.json` of each folder, and write `seeds.json` and `seeds.md` in `out`.

    Returns:
        For each column its name, label, group, unit, digits, the means of both twins, the mean difference,
        its 95 % interval over seeds (Student's t), and each seed's difference.
    """
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]
    found = []
    for columns in zip(*(summary["columns"] for summary in summaries), strict=True):
        names = {column["name"] for column in columns}
        assert len(names) == 1, f"the demos have different columns: {names}"
        differences = [column["difference"] for column in columns]
        found.append(
            {key: columns[0][key] for key in ("name", "label", "group", "unit", "better", "digits")}
            | {side: mean(column[side] for column in columns) for side in ("plain", "basic")}
            | {"difference": mean(differences), "interval_95": student_interval(differences)}
            | {"each": differences}
        )
    write_json(out / "seeds.json", {"seeds": [s["seed"] for s in summaries], "columns": found})
    with complete(out / "seeds.md") as draft:
        draft.write_text("\n".join(_markdown(found)) + "\n", encoding="utf-8")
    return found


def _cells(column: dict[str, object]) -> list[str]:
    digits = column["digits"]
    unit = f" ({column['unit']})" if column["unit"] else ""
    low, high = column["interval_95"]
    return [
        f"{str(column['label']).strip()}{unit}",
        f"{column['plain']:,.{digits}f}",
        f"{column['basic']:,.{digits}f}",
        f"{column['difference']:+,.{digits}f}",
        f"{low:+,.{digits}f} to {high:+,.{digits}f}",
        " ".join(f"{value:+,.{digits}f}" for value in column["each"]),
    ]


_HEAD = ("", "plain", "BASIC", "difference", "95 % interval", "each seed")


def _markdown(found: Sequence[dict[str, object]]) -> list[str]:
    lines = [f"| {' | '.join(_HEAD)} |", "|---|---|---|---|---|---|"]
    group = ""
    for column in found:
        if column["group"] != group:
            group = str(column["group"])
            lines.append(f"| **{group}** | | | | | |")
        lines.append(f"| {' | '.join(_cells(column))} |")
    return lines


def table(found: Sequence[dict[str, object]]) -> Table:
    """Make a table of `collect`'s columns."""
    made = Table(*_HEAD, title="means over seeds", title_justify="left")
    group = ""
    for column in made.columns[1:]:
        column.justify = "right"
    for column in found:
        if column["group"] != group:
            group = str(column["group"])
            made.add_section()
            made.add_row(f"[bold]{group}[/bold]")
        made.add_row(*_cells(column))
    return made


# What a demo found: all columns, as a file and as a table.

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


def collect_outcome(out: Path, seed: int, seconds: float) -> Outcome:
    """Read what both twins left in `out/plain` and `out/basic`, and write `summary.json`."""
    plain, basic = out / "plain", out / "basic"
    columns = []
    for stage in (1, 2):
        sides = (load_inspection(side / f"stage{stage}" / "inspection.json") for side in (plain, basic))
        columns += inspection_columns(stage, *sides)
    for language in BENCHMARKS:
        columns += _question_columns(out, language)
    diaries = (json.loads((side / DEMO_DIARY).read_text(encoding="utf-8")) for side in (plain, basic))
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


def outcome_table(found: Outcome) -> Table:
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
