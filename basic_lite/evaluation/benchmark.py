"""What every benchmark has in common: where it comes from, how it is read, what was published about it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import Id, Question
from basic_lite.evaluation.statistics import Score

Predictions = Mapping[Id, str]
Row = Mapping[str, Any]


def published(*llava: float, basic: float | None = None) -> dict[str, float]:
    """Return model -> published figure.

    Args:
        llava: LLaVA-1.5-7B, LLaVA-1.5-13B and their LoRA versions, from LLaVA `docs/MODEL_ZOO.md`.
        basic: BASIC-7B, from the paper (ICCV 2025), where it has one.
    """
    models = ("LLaVA-1.5-7B", "LLaVA-1.5-13B", "LLaVA-1.5-7B LoRA", "LLaVA-1.5-13B LoRA")
    return dict(zip(models, llava, strict=True)) | ({} if basic is None else {"BASIC-7B": basic})


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; `tasks/` has a file for each.

    Attributes:
        name: On the command line.
        hub: Data set on the hub that holds it.
        split: The split that is asked unless another is named.
        sizes: Split -> the numbers of rows that published versions have; none where any number will do.
        styles: Prompt style -> whatever its rendering needs; the first is LLaVA's.
        scorers: Scoring rules; the first gives the number that LLaVA reports.
        rows: Two readers `source -> rows`: of the layout of `datasets`, and of the original files.
        question: `(row, style) -> question`, or `None` for a row that is not asked.
        score: `(questions, predictions, scorer) -> score`.
        export: `(questions, predictions, path) -> path`; `None` where nothing is handed in.
        submission: Name of the file that `export` writes (MME: folder).
        all_asked: `source -> ids` that a submission must hold, where these are more than the split's.
        key: Name of the id in a row.
        unit: What a limit counts: a question, with all its rotations, or a picture with all its questions.
        units: Number of rows -> number of units, where these differ.
        check: `(questions, where)` raises ValueError where data that is no published split is not whole.
        aliases: Other names on the command line.
        published: Model -> published figure, in per cent (MME: perception points).
        measured_on: What those were measured on; another split or scorer is not comparable.
        of_size: Number of rows -> published figures and what they were measured on, where sizes differ in it.
    """

    name: str
    hub: str
    split: str
    sizes: Mapping[str, tuple[int, ...]]
    styles: Mapping[str, Any]
    scorers: tuple[str, ...]
    rows: tuple[Callable[[Source], Iterable[Row]], Callable[[Source], Iterable[Row]]]
    question: Callable[[Row, str], Question | None]
    score: Callable[[Sequence[Question], Predictions, str], Score]
    export: Callable[[Sequence[Question], Predictions, Path], Path] | None = None
    submission: str = "submission.json"
    all_asked: Callable[[Source], Sequence[Id] | None] = lambda source: None
    key: str = "id"
    unit: Callable[[Question], Hashable] = lambda question: question.id
    units: Mapping[int, int] = field(default_factory=dict)
    check: Callable[[Sequence[Question], str], None] = lambda questions, where: None
    aliases: tuple[str, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""
    of_size: Mapping[int, tuple[Mapping[str, float], str]] = field(default_factory=dict)

    def figures(self, rows: int) -> tuple[Mapping[str, float], str]:
        """Return the published figures that a set of so many rows compares with, and what they are of.

        A part of a set, which compares with nothing and is marked so, gets those of the whole beside it.
        """
        whole = any(rows in sizes for sizes in self.sizes.values())
        return self.of_size.get(
            rows, ({}, "") if self.of_size and whole else (self.published, self.measured_on)
        )

    def read(self, source: Source, style: str = "llava") -> list[Question]:
        """Read the questions of a split, each with an id of its own.

        Raises:
            ValueError: In one line, if the style is unknown, or the data is missing, damaged or another's.
        """
        if style not in self.styles:
            raise ValueError(
                f"Unknown prompt style {style!r} of {self.name}: use one of {', '.join(self.styles)}."
            )
        source = replace(source, style=style)
        from_table, from_files = self.rows
        rows = list(from_table(source) if files.is_table(source) else from_files(source))
        files.unique((row[self.key] for row in rows), str(source.data))
        questions = (self.question(row, style) for row in rows)
        return [question for question in questions if question is not None]

    def check_size(self, split: str, questions: Sequence[Question]) -> None:
        """Check that a split is whole, as a part of it gives another number under the same name.

        Raises:
            ValueError: If the number of rows, or of questions with their rotations, is no published one.
        """
        if not self.sizes[split]:
            return
        advice = (
            "it is cut off, another version, or a benchmark of your own; --limit N scores a part of it, "
            f"--any-size all of it, but not as a {self.name} number"
        )
        if len(questions) not in self.sizes[split]:
            published = " or ".join(f"{size:,}" for size in self.sizes[split])
            raise ValueError(
                f"{self.name} {split} has {len(questions):,} rows and not {published}: {advice}."
            )
        units = len({self.unit(question) for question in questions})
        if units != self.units.get(len(questions), units):
            raise ValueError(
                f"{self.name} {split} has {units:,} questions with their rotations and not "
                f"{self.units[len(questions)]:,}: {advice}."
            )
