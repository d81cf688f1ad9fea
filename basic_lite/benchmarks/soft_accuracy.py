"""Scores of VQAv2, TextVQA and VizWiz: the mean over questions of the soft accuracy over human answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from basic_lite.benchmarks.question import Question
from basic_lite.scoring.answers import vqa_accuracy
from basic_lite.scoring.score import Score, mean_by, percent


def soft_accuracies(
    questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str
) -> dict[int | str, float]:
    """Return question -> accuracy in [0, 1]; a question without a prediction has 0."""
    return {
        question.id: vqa_accuracy(predictions[question.id], question.answers, scorer)
        if question.id in predictions
        else 0.0
        for question in questions
    }


def soft_score(
    questions: Sequence[Question],
    predictions: Mapping[int | str, str],
    scorer: str,
    groupings: Iterable[str],
    notes: tuple[str, ...] = (),
) -> Score:
    """Score open answers.

    Args:
        questions: With their human answers.
        predictions: Question id -> answer.
        scorer: As in `vqa_accuracy`.
        groupings: Names in `Question.fields` to break the score down by.
        notes: For the result.

    Raises:
        ValueError: If a question has no human answers, or the scorer is unknown.
    """
    items = soft_accuracies(questions, predictions, scorer)
    by_id = {question.id: question for question in questions}
    breakdown = {
        grouping: mean_by(items, lambda item, name=grouping: by_id[item].fields.get(name))
        for grouping in groupings
    }
    return Score(
        metric="accuracy over ten human answers",
        scorer=scorer,
        value=percent(items),
        items=items,
        categories={question.id: question.category for question in questions},
        breakdown=breakdown,
        unparsed=sum(not text.strip() for text in predictions.values()),
        missing=len(questions) - len(predictions),
        notes=notes,
    )
