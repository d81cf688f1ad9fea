"""What the scoring of plain benchmarks shares: one share right for each question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.question import Id, Question
from basic_lite.evaluation.statistics import Score, score_of

Rule = Callable[[str, Question], float | None]
"""`(answer, question) -> share right`; `None` where nothing can be read from the answer."""

Scoring = Callable[[Sequence[Question], Mapping[Id, str], str], Score]
"""`(questions, predictions, scorer) -> score`."""


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
