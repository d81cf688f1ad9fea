"""GQA: files, prompt, the three equalities, breakdowns, submission."""

import json

import pytest

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.tasks import gqa

FIRST, SECOND = "990000001", "990000002"


def questions(fixtures):
    return gqa.BENCHMARK.read(Source(fixtures, "testdev", with_images=False))


def test_prompt_and_record(folder):
    data = folder(
        {"gqa_testdev_balanced_questions.json": "testdev_balanced_questions.json"},
        ["images/n900001.jpg", "images/n900002.jpg"],
    )
    first = gqa.BENCHMARK.read(Source(data, "testdev"))[0]
    assert first.text == ("Is there a cup on the table?\nAnswer the question using a single word or phrase.")
    assert (first.id, first.answer, first.max_new_tokens) == (FIRST, "yes", 128)
    assert first.image == data / "images" / "n900001.jpg"


@pytest.mark.parametrize(
    ("answers", "scorer", "right"),
    [
        (("Yes.", "T-shirt"), "gqa_llava", [1, 1]),
        (("yes", "t shirt"), "gqa_llava", [1, 0]),
        (("yes", "tshirt"), "gqa_llava", [1, 0]),
        (("yes", "tshirt"), "gqa_lmms", [1, 1]),
        (("yes", "t shirt"), "gqa_lmms", [1, 0]),
        (("Yes.", "T-shirt"), "gqa_vlmevalkit", [0, 1]),
        (("yes", "tshirt"), "gqa_vlmevalkit", [1, 0]),
    ],
)
def test_scores_of_the_fixture(fixtures, answers, scorer, right):
    result = gqa.BENCHMARK.score(
        questions(fixtures), dict(zip((FIRST, SECOND), answers, strict=True)), scorer
    )
    assert list(result.items.values()) == right
    assert result.value == 50.0 * sum(right)
    assert result.breakdown["kind"] == {"binary": 100.0 * right[0], "open": 100.0 * right[1]}
    assert result.breakdown["structural"] == {"query": 100.0 * right[1], "verify": 100.0 * right[0]}
    assert result.breakdown["words"] == {"5": 100.0 * right[1], "7": 100.0 * right[0]}


def test_reasoning_steps_leave_out_the_final_look_up():
    program = [
        {"operation": "select", "argument": "shirt (2)"},
        {"operation": "relate", "argument": "man"},
        {"operation": "query", "argument": "name"},
    ]
    assert gqa._steps(program) == 2
    assert (
        gqa._steps([{"operation": "select", "argument": "x"}, {"operation": "exist", "argument": "?"}]) == 1
    )


def test_only_balanced_questions_count(folder, fixtures):
    content = json.loads((fixtures / "gqa_testdev_balanced_questions.json").read_text())
    content[SECOND]["isBalanced"] = False
    data = folder({})
    (data / "testdev_balanced_questions.json").write_text(json.dumps(content))
    assert [q.id for q in gqa.BENCHMARK.read(Source(data, "testdev", with_images=False))] == [FIRST]


def test_submission(fixtures, tmp_path):
    path = gqa.BENCHMARK.export(questions(fixtures), {FIRST: "Yes..", SECOND: "T-Shirt"}, tmp_path / "s.json")
    assert json.loads(path.read_text()) == [
        {"questionId": FIRST, "prediction": "yes"},
        {"questionId": SECOND, "prediction": "t-shirt"},
    ]


def test_parquet_joins_questions_with_their_pictures(fixtures, parquet, png):
    row = json.loads((fixtures / "gqa_hf_row.json").read_text())
    parquet([row], "testdev_balanced_instructions/testdev-00000-of-00001.parquet")
    pictures = [
        {"id": name, "image": {"bytes": png(colour), "path": None}}
        for name, colour in (("n900002", "blue"), ("n900001", "red"))
    ]
    data = parquet(pictures, "testdev_balanced_images/testdev-00000-of-00001.parquet")
    there = gqa.BENCHMARK.read(Source(data, "testdev"))
    assert [(q.id, q.text, q.answer, q.fields["kind"]) for q in there] == [
        (q.id, q.text, q.answer, q.fields["kind"]) for q in questions(fixtures)[:1]
    ]
    assert there[0].open_image().getpixel((0, 0)) == (255, 0, 0)


def test_parquet_without_a_picture_is_refused(fixtures, parquet, png):
    row = json.loads((fixtures / "gqa_hf_row.json").read_text())
    parquet([row], "testdev_balanced_instructions/testdev-00000-of-00001.parquet")
    pictures = [{"id": "other", "image": {"bytes": png(), "path": None}}]
    data = parquet(pictures, "testdev_balanced_images/testdev-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="question 990000001 has no picture n900001"):
        gqa.BENCHMARK.read(Source(data, "testdev"))
