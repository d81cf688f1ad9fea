"""What every run is measured by, with the same yardstick whatever it was trained with.

The yardstick's target is the paper's (k half, quadratic, raw), never the arm's own: an arm that is trained
on an easy target would look good on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from basic_lite.demo.inspection import Inspection
from basic_lite.writing import write_json


@dataclass(frozen=True)
class Measure:
    """One figure of one run, with the units that it is a mean over.

    Attributes:
        name: key.
        label: for people.
        unit: empty for a pure number.
        better: which way; `None` where neither is.
        over: what a unit is, in the plural.
        values: one per unit.
        of: what the values are counts out of; `None` where each unit counts once.
        digits: behind the point.
    """

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"] | None
    over: str
    values: list[float]
    of: list[float] | None = None
    digits: int = 3

    @property
    def mean(self) -> float:
        """The figure."""
        return sum(self.values) / (len(self.values) if self.of is None else sum(self.of))


def of_inspection(found: Inspection) -> list[Measure]:
    """Return what a look into a model of the embedded world shows."""
    where = "held-out scenes"
    return [
        Measure("caption_loss", "caption loss", "nats per token", "lower", where, found.caption_loss),
        Measure("cosine", "cosine to the target", "", "higher", where, found.cosine),
        Measure(
            "meaningful",
            "patches named truly",
            "%",
            "higher",
            where,
            [100.0 * count for count in found.meaningful],
            [float(count) for count in found.shown],
            digits=1,
        ),
    ]


def of_answers(name: str, label: str, shares: Mapping[object, float]) -> Measure:
    """Return the share of right answers; `shares` says how right each question was, 0 to 1."""
    values = [100.0 * shares[question] for question in sorted(shares, key=str)]
    return Measure(name, label, "%", "higher", "questions", values, digits=1)


def path_of(run: Path, step: str) -> Path:
    """Return the file of what a step of a run was measured by; it is there when the step is done."""
    return run / f"measured-{step}.json"


def write(run: Path, step: str, measures: Sequence[Measure]) -> None:
    """Write a step's measures, which marks it as done."""
    write_json(path_of(run, step), [asdict(measure) for measure in measures])


def read(run: Path, step: str) -> list[Measure]:
    """Read what `write` wrote."""
    return [Measure(**one) for one in json.loads(path_of(run, step).read_text(encoding="utf-8"))]


def of_run(run: Path, steps: Sequence[str]) -> list[Measure]:
    """Read all measures of a run; what both stages were measured by is told apart by the stage."""
    found = []
    for step in steps:
        for one in read(run, step):
            twice = "stage2" in steps and step.startswith("stage") and not one.name.startswith("answers")
            stage = step.removeprefix("stage")
            told = (
                replace(one, name=f"{one.name}_{step}", label=f"{one.label}, stage {stage}") if twice else one
            )
            found.append(told)
    return found
