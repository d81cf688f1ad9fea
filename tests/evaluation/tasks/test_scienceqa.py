"""ScienceQA: files, both renderings, the rule of LLaVA's script, questions with and without a picture."""

import json

import pytest

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.tasks import scienceqa

LETTER = "Answer with the option's letter from the given choices directly."


def questions(fixtures, split="test", style="llava"):
    return scienceqa.BENCHMARK.read(Source(fixtures, split, with_images=False), style)


def test_default_rendering_puts_the_context_first(fixtures):
    first, second, third = questions(fixtures)
    assert first.text == f"Which object is magnetic?\nA. iron nail\nB. wood block\n{LETTER}"
    assert second.text == (
        "Context: The graph shows the average temperature in Foo City.\nWhich month is hottest?\n"
        f"A. January\nB. July\nC. October\n{LETTER}"
    )
    assert third.text == (
        f"Context: Use the map.\nWhat is the capital?\nA. Aville\nB. Bville\nC. Cville\nD. Dville\n{LETTER}"
    )
    assert (first.max_new_tokens, first.answer, dict(first.choices)) == (
        1024,
        "A",
        {"A": "iron nail", "B": "wood block"},
    )


def test_llavas_own_file_gives_the_same_words(folder):
    files = {"sqa_problems.json": "problems.json", "sqa_pid_splits.json": "pid_splits.json"}
    without = [q.text for q in questions(folder(files))]
    data = folder({**files, "llava_sqa_questions.json": "llava_test_CQM-A.json"})
    assert [q.text for q in questions(data)] == without
    content = json.loads((data / "llava_test_CQM-A.json").read_text())
    content[0]["conversations"][0]["value"] = "<image>\nOther words?"
    (data / "llava_test_CQM-A.json").write_text(json.dumps(content))
    assert questions(data)[0].text == f"Other words?\n{LETTER}"
    assert questions(data, style="lmms")[0].text == without[0]


def test_rendering_of_llavas_conversion_script(fixtures):
    first, second, _ = questions(fixtures, style="llava_script")
    assert first.text == (
        f"Context: N/A\nQuestion: Which object is magnetic?\nOptions: (A) iron nail (B) wood block\n{LETTER}"
    )
    assert second.text.startswith("Context: The graph shows")


def test_score_of_the_fixture(fixtures):
    result = scienceqa.score(questions(fixtures), {"1": "A", "2": "July", "3": "D. Dville"}, "llava_sqa")
    assert result.figures["accuracy_all"] == pytest.approx(200 / 3)
    assert result.value == 100.0
    assert result.metric == "accuracy, questions with a picture"
    assert (result.figures["n_with_picture"], result.figures["n_all"], result.unparsed) == (2, 3, 1)
    assert result.breakdown["subject"] == {"natural science": 100.0, "social science": 100.0}


def test_a_letter_out_of_range_is_wrong(fixtures):
    assert scienceqa.score(questions(fixtures, "test-img"), {"1": "C", "3": "D"}, "llava_sqa").value == 50.0


def test_a_missing_prediction_stays_in_the_denominator(fixtures):
    result = scienceqa.score(questions(fixtures), {"1": "A"}, "llava_sqa")
    assert result.value == 50.0
    assert result.missing == 2


@pytest.mark.parametrize(
    ("scorer", "value"), [("llava_sqa", 0.0), ("lmms_sqa", 50.0), ("exact_matching", 50.0)]
)
def test_scorers_by_name(fixtures, scorer, value):
    answers = {"1": "a" if scorer == "lmms_sqa" else "(A)", "3": "?"}
    assert scienceqa.score(questions(fixtures, "test-img"), answers, scorer).value == value


def test_pictures_are_found_by_id(folder):
    data = folder(
        {"sqa_problems.json": "problems.json", "sqa_pid_splits.json": "pid_splits.json"},
        ["images/test/1/image.png", "images/test/3/image.png"],
    )
    images = {q.id: q.image for q in scienceqa.BENCHMARK.read(Source(data, "test"))}
    root = data / "images" / "test"
    assert images == {"1": root / "1" / "image.png", "2": None, "3": root / "3" / "image.png"}
    (root / "3" / "image.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 pictures are missing from .*first: 3/image.png"):
        scienceqa.BENCHMARK.read(Source(data, "test"))


def test_parquet_knows_which_questions_have_a_picture(fixtures, parquet, png):
    problems = json.loads((fixtures / "sqa_problems.json").read_text())
    rows = [
        {**row, "image": {"bytes": png(), "path": None} if row["image"] else None}
        for row in problems.values()
    ]
    data = parquet(rows, "ScienceQA-FULL/test-00000-of-00001.parquet")
    there = scienceqa.BENCHMARK.read(Source(data, "test"))
    assert [(q.text, q.answer, q.fields["has_image"]) for q in there] == [
        (q.text, q.answer, q.fields["has_image"]) for q in questions(fixtures)
    ]
    assert [q.image is None for q in there] == [False, True, False]
    unpictured = scienceqa.BENCHMARK.read(Source(data, "test", with_images=False))
    assert [q.fields["has_image"] for q in unpictured] == [True, False, True]


def test_a_split_without_its_problems(folder, fixtures):
    data = folder({"sqa_problems.json": "problems.json"})
    (data / "pid_splits.json").write_text(json.dumps({"test": ["1", "9"]}))
    with pytest.raises(ValueError, match=r"lacks 1 problems of split test \(first: 9\)"):
        scienceqa.BENCHMARK.read(Source(data, "test", with_images=False))


def test_without_configurations_img_leaves_out_questions_without_a_picture(fixtures, parquet, png):
    problems = json.loads((fixtures / "sqa_problems.json").read_text()).values()
    picture = {"bytes": png(), "path": None}
    rows = [{**row, "image": picture if row["image"] else None} for row in problems]
    data = parquet(rows)
    for with_images in (True, False):
        whole, pictured = (
            scienceqa.BENCHMARK.read(Source(data, split, with_images=with_images))
            for split in ("test", "test-img")
        )
        assert [q.id for q in pictured] == [q.id for q in whole if q.fields["has_image"]]
        assert 0 < len(pictured) < len(whole)
