"""What the scoring of plain benchmarks shares: one share right for each question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.question import LETTER, Id, Question
from basic_lite.evaluation.statistics import Score, by_field, score_of

Rule = Callable[[str, Question], float | None]
"""`(answer, question) -> share right`; `None` where nothing can be read from the answer."""


def score_each(
    questions: Sequence[Question],
    predictions: Mapping[Id, str],
    scorer: str,
    rule: Rule,
    groupings: Iterable[str] = (),
    **more: Any,
) -> Score:
    """Score each question by itself; what is unreadable or missing counts as wrong.

    Args:
        questions: What was asked.
        predictions: Question id -> answer.
        scorer: Name of the rule.
        rule: The rule.
        groupings: Names in `Question.fields` to break the value down by.
        more: Other attributes of `Score`.
    """
    shares = {q.id: rule(predictions[q.id], q) for q in questions if q.id in predictions}
    items = {question.id: float(shares.get(question.id) or 0.0) for question in questions}
    unparsed = sum(share is None for share in shares.values())
    made: dict[str, Any] = {"right_wrong": True, "unparsed": unparsed} | more
    return score_of(questions, predictions, items, scorer=scorer, groupings=by_field(*groupings), **made)


def by_letter(method: str) -> Rule:
    """Return the rule that reads an option by a method of `choices` and compares it with the answer."""

    def rule(text: str, question: Question) -> float | None:
        letter = extract_option(text, question.choices, method)
        return None if letter is None else float(letter == question.answer)

    return rule


def options_prompt(question: str, choices: Mapping[str, str]) -> str:
    """Return LLaVA-1.5's words for a choice: the question, an option a line, the request for a letter."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.items()), LETTER])
