"""SEED-Bench: pictures and frames, the exact letter, types."""

import json

import pytest

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.tasks import seed


def row(identity, data_type, answer, type_id, data_id):
    return {
        **{"question_id": identity, "question": "What?", "answer": answer, "data_type": data_type},
        **{"question_type_id": type_id, "data_id": data_id},
        **{"choice_a": "red", "choice_b": "blue", "choice_c": "1", "choice_d": "2"},
    }


ROWS = [row("7", "image", "B", 1, "7.jpg"), row("v1", "video", "A", 10, "clip.mp4")]


@pytest.fixture
def data(folder):
    root = folder({}, ["SEED-Bench-image/7.jpg", "frames/v1.png"])
    (root / "SEED-Bench.json").write_text(json.dumps({"questions": ROWS, "question_type": {}}))
    return root


def test_prompt_and_frames_named_by_llavas_file(data):
    asked = [
        {"question_id": 7, "image": "SEED-Bench-image/7.jpg"},
        {"question_id": "v1", "image": "frames/v1.png"},
    ]
    (data / "llava-seed-bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    first, second = seed.BENCHMARK.read(Source(data, "test"))
    assert first.text == (
        "What?\nA. red\nB. blue\nC. 1\nD. 2\nAnswer with the option's letter from the given choices directly."
    )
    assert (first.id, first.category, second.category) == ("7", "Scene Understanding", "Action Recognition")
    assert second.image == data / "frames" / "v1.png"


def test_without_that_file_pictures_alone_can_be_asked(data):
    with pytest.raises(ValueError, match="1 video questions have no frame"):
        seed.BENCHMARK.read(Source(data, "test"))
    assert [question.image for question in seed.BENCHMARK.read(Source(data, "image"))] == [
        data / "." / "SEED-Bench-image" / "7.jpg"
    ]


@pytest.mark.parametrize(
    ("answers", "scorer", "value", "unparsed"),
    [
        ({"7": "B", "v1": "A"}, "exact", 100.0, 0),
        ({"7": "B.", "v1": "A"}, "exact", 50.0, 1),
        ({"7": "B.", "v1": "C"}, "first_character", 50.0, 0),
        ({"7": "(B)", "v1": "red"}, "exact_matching", 100.0, 0),
    ],
)
def test_scores(data, answers, scorer, value, unparsed):
    result = seed.BENCHMARK.score(
        seed.BENCHMARK.read(Source(data, "test", with_images=False)), answers, scorer
    )
    assert (result.value, result.unparsed) == (value, unparsed)
    assert set(result.breakdown["data_type"]) == {"image", "video"}


def test_submission(data, tmp_path):
    asked = seed.BENCHMARK.read(Source(data, "test", with_images=False))
    path = seed.BENCHMARK.export(asked, {"7": "B"}, tmp_path / "s.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"question_id": "7", "prediction": "B"},
        {"question_id": "v1", "prediction": ""},
    ]


def test_parquet_takes_the_middle_frame_of_a_video(parquet, png):
    frames = {"7": ["red"], "v1": ["red", "blue", "green"]}
    rows = [
        {**line, "image": [{"bytes": png(colour), "path": None} for colour in frames[line["question_id"]]]}
        for line in ROWS
    ]
    first, second = seed.BENCHMARK.read(Source(parquet(rows, several=True), "test"))
    assert first.open_image().getpixel((0, 0)) == (255, 0, 0)
    assert second.open_image().getpixel((0, 0)) == (0, 0, 255)
