"""POPE: questions paired with labels by position, F1, and what an answer without yes or no means."""

import json

import pytest

from basic_lite.evaluation import question as evaluation_question
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.tasks import pope

NAME = "COCO_val2014_000000000101.jpg"
SHORT = "Answer the question using a single word or phrase."


def questions(source):
    return pope.BENCHMARKS[0].read(Source(source, "test", with_images=False))


def label(number, what, answer):
    return {"question_id": number, "image": NAME, "text": f"Is there {what}?", "label": answer}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_llavas_questions_get_the_labels_at_their_places(folder):
    data = folder(
        {
            "pope_questions.jsonl": "llava_pope_test.jsonl",
            "coco_pope_random.json": "coco/coco_pope_random.json",
        },
        [f"val2014/{NAME}"],
    )
    first, second = pope.BENCHMARKS[0].read(Source(data, "test"))
    assert first.text == f"Is there a dog in the image?\n{SHORT}"
    assert (first.id, first.answer, second.answer, first.category) == (1, "no", "yes", "random")
    assert first.image == data / "val2014" / NAME


def test_labels_out_of_place_are_refused(folder):
    data = folder({"pope_questions.jsonl": "llava_pope_test.jsonl"})
    rows = [label(2, "a kettle in the image", "yes"), label(1, "a dog in the image", "no")]
    lines(data / "coco_pope_random.json", rows)
    with pytest.raises(ValueError, match="question 1 of random is not the one at its place"):
        questions(data)
    lines(data / "coco_pope_random.json", rows[:1])
    with pytest.raises(ValueError, match="2 questions of random, the labels 1"):
        questions(data)


def test_labels_may_word_the_question_as_older_releases_did(folder):
    data = folder({"pope_questions.jsonl": "llava_pope_test.jsonl"})
    rows = [label(1, "an dog in the imange", "no"), label(2, "a kettle in the imange", "yes")]
    lines(data / "coco_pope_random.json", rows)
    assert [question.answer for question in questions(data)] == ["no", "yes"]


def test_label_files_alone_are_asked_too(folder):
    data = folder({"coco_pope_random.json": "coco_pope_random.json"})
    lines(data / "coco_pope_popular.json", [label(1, "a cup in the image", "yes")])
    assert [question.id for question in questions(data)] == ["popular/1", "random/1", "random/2"]


@pytest.mark.parametrize("prefix", ["gqa", "aokvqa"])
def test_label_files_of_gqa_and_aokvqa_are_read_as_pope_publishes_them(tmp_path, prefix):
    for kind in ("random", "popular", "adversarial"):
        path = tmp_path / f"output/{prefix}_pope_seem_{kind}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([label(1, f"a {kind} cup in the image", "yes")], indent=4))
    benchmark = {row.name: row for row in pope.BENCHMARKS}[f"pope-{prefix}"]
    asked = benchmark.read(Source(tmp_path, "test", with_images=False))
    assert sorted(question.category for question in asked) == ["adversarial", "popular", "random"]
    for data in (tmp_path, tmp_path / f"output/{prefix}_pope_seem_random.json"):
        (question,) = benchmark.read(Source(data, "random", with_images=False))
        assert (question.id, question.text) == ("random/1", f"Is there a random cup in the image?\n{SHORT}")


def make(rows):
    return [
        evaluation_question.Question(i, "?", None, 128, answer=label, category=category)
        for i, (category, label) in enumerate(rows)
    ]


def test_value_is_the_mean_of_the_categories_f1():
    asked = make([("x", "yes"), ("x", "yes"), ("x", "no"), ("y", "yes"), ("y", "no")])
    answers = dict(enumerate(["yes", "no", "Yes", "yes", "No, none"]))
    result = pope.score(asked, answers, "pope_llava")
    # x: 1 hit, 2 said yes, 2 are yes -> P = R = F1 = 1/2; y: all right.
    assert result.breakdown["f1"] == pytest.approx({"x": 50.0, "y": 100.0})
    assert result.value == pytest.approx(75.0)
    assert result.breakdown["precision"] == pytest.approx({"x": 50.0, "y": 100.0})
    assert result.breakdown["recall"] == pytest.approx({"x": 50.0, "y": 100.0})
    assert result.breakdown["accuracy"] == pytest.approx({"x": 100 / 3, "y": 100.0})
    assert result.breakdown["yes_ratio"] == pytest.approx({"x": 200 / 3, "y": 50.0})


def test_an_empty_answer_is_a_yes_and_a_missing_one_is_wrong():
    asked = make([("x", "yes"), ("x", "yes"), ("x", "no")])
    result = pope.score(asked, {0: "", 2: "no"}, "pope_llava")
    assert list(result.items.values()) == [1.0, 0.0, 1.0]
    assert result.missing == 1


def test_lmms_pools_the_rows_and_wants_the_bare_word():
    asked = make([("x", "yes"), ("y", "yes"), ("y", "no")])
    result = pope.score(asked, {0: "Yes", 1: "yes, there is", 2: "no"}, "pope_lmms")
    assert result.value == pytest.approx(100 * 2 / 3)  # 1 hit, 1 said yes, 2 are yes
    assert result.unparsed == 1


def test_scores_of_the_fixture(fixtures):
    result = pope.score(questions(fixtures), {1: "No", 2: "Yes."}, "pope_llava")
    assert result.value == 100.0


def test_parquet(parquet, png):
    row = {"id": "0", "question_id": "1", "question": " Is there a dog in the image?", "answer": "no"}
    rows = [
        {**row, "image_source": "x", "image": {"bytes": png(), "path": None}, "category": category}
        for category in ("random", "popular")
    ]
    there = questions(parquet(rows))
    assert [(q.id, q.text, q.answer) for q in there] == [
        (f"{category}/1", f"Is there a dog in the image?\n{SHORT}", "no")
        for category in ("random", "popular")
    ]


def test_a_label_that_is_neither_is_refused(folder):
    data = folder({})
    lines(data / "coco_pope_random.json", [{"question_id": 1, "image": NAME, "text": "?", "label": "maybe"}])
    with pytest.raises(ValueError, match="question random/1 is 'maybe', neither yes nor no"):
        questions(data)
