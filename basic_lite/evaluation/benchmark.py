"""What benchmarks have in common: where one comes from, how it is read and scored, what was published."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.files import Reader, Source
from basic_lite.evaluation.judge import Grading
from basic_lite.evaluation.question import Id, Question
from basic_lite.evaluation.statistics import Score, score_of

Predictions = Mapping[Id, str]
Row = Mapping[str, Any]
Figures = tuple[Mapping[str, float], str]
"""Model -> published figure in per cent (MME: perception points), and what these were measured on."""

Rule = Callable[[str, Question], float | None]
"""`(answer, question) -> share right`; `None` where nothing can be read from the answer."""

Scoring = Callable[[Sequence[Question], Mapping[Id, str], str], Score]
"""`(questions, predictions, scorer) -> score`."""


def published(*llava: float, on: str, basic: float | None = None) -> Figures:
    """Return LLaVA's figures (`docs/MODEL_ZOO.md`: 7B, 13B, their LoRA versions) and BASIC-7B's (paper)."""
    models = ("LLaVA-1.5-7B", "LLaVA-1.5-13B", "LLaVA-1.5-7B LoRA", "LLaVA-1.5-13B LoRA")
    values = dict(zip(models, llava, strict=True))
    return values | ({} if basic is None else {"BASIC-7B": basic}), on


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; `tasks/` has a file for each."""

    name: str  # on the command line
    hub: str  # data set on the hub that holds it
    # Split -> the numbers of rows that published versions have; none where any number will do. The first
    # split is asked unless another is named.
    sizes: Mapping[str, tuple[int, ...]]
    scorers: tuple[str, ...]  # scoring rules; the first gives the number that LLaVA reports
    # Readers of the layout of `datasets` and of the original files; each row has an `"id"`
    rows: tuple[Reader, Reader]
    # `(row, style) -> question`, or `None` for a row that is not asked
    question: Callable[[Row, str], Question | None]
    score: Scoring  # `(questions, predictions, scorer) -> score`
    # Prompt style -> whatever its rendering needs, such as the most tokens; the first is LLaVA's
    styles: Mapping[str, Any] = field(default_factory=lambda: {"llava": None})
    grading: Grading | None = None  # how a judge grades, where only one can score; `None` elsewhere
    export: files.Export | None = None  # `None` where nothing is handed in
    submission: str = "submission.json"  # name of the file that `export` writes (MME: folder)
    # `source -> ids` that a submission must hold, where these are more than the split's
    all_asked: Callable[[Source], Sequence[Id] | None] = lambda source: None
    # What a limit counts: a question, with all its rotations, or a picture with all its questions
    unit: Callable[[Question], Hashable] = lambda question: question.id
    # Number of rows -> number of units, where these differ
    units: Mapping[int, int] = field(default_factory=dict)
    # `(questions, where)` raises ValueError where data that is no published split is not whole
    check: Callable[[Sequence[Question], str], None] = lambda questions, where: None
    # Scoring rule -> the Python package and the program that it needs, where it needs more
    programs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()  # other names on the command line
    published: Figures = ({}, "")
    # Number of rows -> published figures, where sizes differ in them
    of_size: Mapping[int, Figures] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The split that is asked unless another is named."""
        return next(iter(self.sizes))

    def figures(self, rows: int) -> Figures:
        """Return the published figures that a set of this size compares with; a part gets the whole's."""
        whole = any(rows in sizes for sizes in self.sizes.values())
        return self.of_size.get(rows, ({}, "") if self.of_size and whole else self.published)

    def read(self, source: Source, style: str = "llava") -> list[Question]:
        """Read the questions of a split; raises ValueError if the data is missing, damaged or another's."""
        if style not in self.styles:
            raise ValueError(
                f"Unknown prompt style {style!r} of {self.name}: use one of {', '.join(self.styles)}."
            )
        source = replace(source, style=style)
        from_table, from_files = self.rows
        rows = list(from_table(source) if files.is_table(source) else from_files(source))
        files.unique((row["id"] for row in rows), str(source.data))
        questions = (self.question(row, style) for row in rows)
        return [question for question in questions if question is not None]

    def check_size(self, split: str, questions: Sequence[Question]) -> None:
        """Raise ValueError unless a split is whole: a part of it is another number of the same name."""
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


def score_each(
    questions: Sequence[Question],
    predictions: Mapping[Id, str],
    scorer: str,
    rule: Rule,
    groupings: Iterable[str] = (),
    **more: Any,
) -> Score:
    """Score each question by a rule, by entries of `Question.fields`; unreadable or missing is wrong."""
    shares = {q.id: rule(predictions[q.id], q) for q in questions if q.id in predictions}
    items = {question.id: float(shares.get(question.id) or 0.0) for question in questions}
    unparsed = sum(share is None for share in shares.values())
    made: dict[str, Any] = {"right_wrong": True, "unparsed": unparsed} | more
    return score_of(questions, predictions, items, scorer=scorer, groupings=groupings, **made)


def scored_by(rules: Mapping[str, Rule], *groupings: str, **more: Any) -> Scoring:
    """Return the scoring of a benchmark whose value is the mean over its questions; see `score_each`."""
    return lambda questions, predictions, scorer: score_each(
        questions, predictions, scorer, rules[scorer], groupings, **more
    )


def compared(read: Callable[[str, Question], str | None]) -> Rule:
    """Return the rule that reads a letter or word from an answer and compares it with the reference."""

    def rule(text: str, question: Question) -> float | None:
        said = read(text, question)
        return None if said is None else float(said == question.answer)

    return rule


def by_letter(method: str) -> Rule:
    """Return the rule that reads an option by a method of `choices` and compares it with the reference."""
    return compared(lambda text, question: extract_option(text, question.choices, method))
