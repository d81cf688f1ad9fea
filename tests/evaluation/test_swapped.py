"""The control that asks each question about another one's picture."""

import json
from dataclasses import replace

import pytest
from command import make_world, run

from basic_lite.evaluation.question import Question, with_pictures_swapped


def asked(count: int) -> list[Question]:
    """Return questions about `count` pictures, two each, and one without."""
    made = [Question(f"{n}{turn}", "?", bytes([n]), 1, picture=n) for turn in "ab" for n in range(count)]
    return [*made, Question("blind", "?", None, 1)]


def test_every_question_gets_another_ones_picture_and_those_of_one_picture_the_same():
    questions = asked(7)
    swapped = with_pictures_swapped(questions)
    assert swapped == with_pictures_swapped(questions)
    assert [replace(new, image=old.image) for new, old in zip(swapped, questions, strict=True)] == questions
    images = [question.image for question in swapped]
    assert images[:7] == images[7:14], "both questions about a picture are asked about the same other one"
    assert all(new != old.image for new, old in zip(images[:14], questions[:14], strict=True))
    assert set(images[:7]) == {bytes([n]) for n in range(7)}
    assert images[14] is None


def test_questions_that_name_no_picture_have_one_each():
    questions = [replace(question, picture=None) for question in asked(3)[:3]]
    assert {question.image for question in with_pictures_swapped(questions)} == {b"\0", b"\1", b"\2"}
    with pytest.raises(ValueError, match="needs questions about two pictures at least"):
        with_pictures_swapped(questions[:1])


def test_on_the_command_line(trained):
    make_world(trained)
    base = ("eval", "mmbench", "--run", "runs/stage1", "--data", "bench.tsv", "--any-size")
    for more in ([], ["--swap-pictures"]):
        run(*base, "--answer-by", "mutual-information", *more, cwd=trained)
    folders = [trained / "runs/stage1/eval" / name for name in ("mmbench", "mmbench-swapped")]
    contents = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert contents[1]["run"]["decoding"] == f"{contents[0]['run']['decoding']}, pictures swapped"
    mixed = run(*base, "--swap-pictures", "--out", "runs/stage1/eval/mmbench", cwd=trained, expect=2)
    assert "made with another" in mixed.stderr
    given = folders[0] / "predictions.jsonl"
    words = ("eval", "mmbench", "--data", "bench.tsv", "--any-size", "--predictions", given)
    assert "leave it out with --predictions" in run(*words, "--swap-pictures", cwd=trained, expect=2).stderr
    assert "swapped" in run("results", "runs/stage1", cwd=trained).stdout
