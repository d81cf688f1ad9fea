"""What the two twins of a demo are compared by: one column per figure, with how sure its difference is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from basic_lite.benchmarks.predictions import read
from basic_lite.benchmarks.question import Question
from basic_lite.demo.inspection import Inspection
from basic_lite.demo.lexicon import Language
from basic_lite.demo.questions import KINDS
from basic_lite.scoring import extract_option
from basic_lite.scoring.circular import ROTATION
from basic_lite.scoring.interval import percentile_interval, resample

LANGUAGE_NAMES: dict[Language, str] = {"en": "English", "zh": "Chinese"}


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


def paired_interval(
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
        interval = paired_interval(one, other)
        values = (float(np.mean(one)), float(np.mean(other)))
        name = f"{key}_stage{stage}"
        found.append(Column(name, label, group, unit, better, *values, interval, digits))
    shares = [100 * sum(side.meaningful) / sum(side.shown) for side in (plain, basic)]
    low, high = paired_interval(plain.meaningful, basic.meaningful, plain.shown)
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


def shares_right(questions: Sequence[Question], answers: Path) -> dict[int, float]:
    """Return for each question the share of its rotations that are answered with the right letter."""
    given, right = read(answers, questions), {}
    for question in questions:
        said = extract_option(given.get(question.id, ""), question.choices, "exact_matching")
        base = int(question.fields["index"]) % ROTATION
        right.setdefault(base, []).append(said == question.answer)
    return {base: sum(hits) / len(hits) for base, hits in right.items()}


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
    return Column(name, label, group, "%", "higher", *values, paired_interval(one, other), 1)


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
