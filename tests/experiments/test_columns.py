from __future__ import annotations

import json

import numpy as np
import pytest

from basic_lite.evaluation.question import Question
from basic_lite.experiments.measure import Inspection, shares_right
from basic_lite.experiments.table import Column, inspection_columns, question_columns, seed_interval


def naive_interval(plain, basic, of, draws=4000):
    generator, n = np.random.default_rng(5), len(plain)
    plain, basic, of = (np.asarray(values, dtype=float) for values in (plain, basic, of))
    found = []
    for _ in range(draws):
        chosen = generator.integers(0, n, n)
        found.append((basic[chosen] - plain[chosen]).sum() / of[chosen].sum())
    return np.percentile(found, [2.5, 97.5])


@pytest.mark.parametrize("ratio", [False, True])
def test_interval_equals_a_loop_over_resamples(ratio):
    generator = np.random.default_rng(1)
    of = generator.integers(3, 20, 60) if ratio else np.ones(60)
    plain = generator.integers(0, 4, 60).astype(float)
    basic = plain + generator.integers(-1, 3, 60)
    low, high = seed_interval(plain.tolist(), basic.tolist(), of.tolist())
    assert (low, high) == pytest.approx(naive_interval(plain, basic, of), abs=0.03 if not ratio else 0.005)


@pytest.mark.parametrize(
    ("better", "plain", "basic", "interval", "verdict"),
    [
        ("higher", 1.0, 2.0, (0.5, 1.5), "better"),
        ("lower", 1.0, 2.0, (0.5, 1.5), "worse"),
        ("lower", 2.0, 1.0, (-1.5, -0.5), "better"),
        ("higher", 1.0, 2.0, (-0.1, 2.0), "open"),
        (None, 1.0, 2.0, (0.5, 1.5), "open"),
        ("higher", 1.0, 2.0, None, "open"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero_and_a_better_side(better, plain, basic, interval, verdict):
    column = Column("x", "x", "g", "", better, plain, basic, interval)
    assert column.verdict == verdict
    assert column.as_dict()["difference"] == basic - plain


def test_the_meaningful_share_is_of_all_patches_that_show_a_thing():
    plain = Inspection([1.0, 2.0], [0.1, 0.3], shown=[1, 9], meaningful=[1, 0])
    basic = Inspection([1.0, 1.0], [0.5, 0.7], shown=[1, 9], meaningful=[1, 9])
    found = {column.name: column for column in inspection_columns(1, plain, basic)}
    assert (found["meaningful_stage1"].plain, found["meaningful_stage1"].basic) == (10.0, 100.0)
    assert found["caption_loss_stage1"].difference == -0.5
    assert found["cosine_stage1"].difference == pytest.approx(0.4)


def test_questions_count_by_rotation_and_as_a_whole(tmp_path):
    def question(index, answer):
        fields = {"index": index, "category": "colour" if index % 10**6 == 0 else "count"}
        choices = {"A": "red", "B": "blue"}
        return Question(
            index, "?", None, 5, answer=answer, choices=choices, category=fields["category"], fields=fields
        )

    questions = [question(0, "A"), question(10**6, "B"), question(1, "A"), question(10**6 + 1, "B")]
    answers = tmp_path / "predictions.jsonl"
    given = zip(questions, "ABAA", strict=True)
    lines = [json.dumps({"question_id": question.id, "text": said}) for question, said in given]
    answers.write_text("\n".join(lines) + "\n")
    right = shares_right(questions, answers)
    assert right == {0: 1.0, 1: 0.5}
    found = {c.name: c for c in question_columns("en", questions, right, {0: 1.0, 1: 1.0})}
    assert (found["accuracy_en"].plain, found["accuracy_en"].basic) == (75.0, 100.0)
    assert (found["circular_en"].plain, found["count_en"].plain, found["colour_en"].plain) == (
        50.0,
        50.0,
        100.0,
    )
    assert "shape_en" not in found
