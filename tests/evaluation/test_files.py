"""Damaged files, missing pictures, prediction files: one clear line each, and nothing half written."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from basic_lite.evaluation import files, predictions
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import Question

QUESTIONS = [
    Question(7, "Which?", None, 1024, choices={"A": "x", "B": "y"}),
    Question("v1", "What?", None, 128),
]


def line(**row):
    return json.dumps({"question_id": 7, "text": "A", **row}) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', r"is no JSON \(line 1"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (None, "does not exist"),
    ],
)
def test_damaged_json(tmp_path, content, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        files.read_json(path)
    assert "\n" not in str(error.value)


def test_json_lines_may_end_where_a_run_was_killed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": ')
    assert files.read_json_lines(path, drop_cut_end=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="line 4 is no JSON"):
        files.read_json_lines(path)
    path.write_text('{"a": \n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        files.read_json_lines(path, drop_cut_end=True)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is no JSON object"):
        files.read_json_lines(path)


def test_a_file_is_found_in_the_folder_or_one_below(tmp_path):
    source = Source(tmp_path, "val")
    with pytest.raises(ValueError, match=r"has no questions: looked for q\.json, other\.json"):
        files.find(source, "questions", "q.json", "other.json")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "q.json").write_text("{}")
    assert files.find(source, "questions", "q.json") == tmp_path / "a" / "q.json"
    (tmp_path / "q.json").write_text("{}")
    assert files.find(source, "questions", "q.json") == tmp_path / "q.json"
    assert files.find(Source(tmp_path / "q.json", "val"), "questions", "q*.json") == tmp_path / "q.json"
    (tmp_path / "q2.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has 2 files for q\*"):
        files.find(source, "questions", "q*.json")


def test_missing_pictures_are_counted_and_the_first_is_named(tmp_path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "a.jpg").write_bytes(b"")
    names = {1: "a.jpg", 2: "b.jpg", 3: "c.jpg", 4: None}
    with pytest.raises(ValueError, match=r"2 of 4 pictures are missing from .*val2014 \(first: b.jpg\)"):
        files.locate_images(Source(tmp_path, "val"), names, ("val2014",))
    with pytest.raises(ValueError, match="give the folder with --images"):
        files.locate_images(Source(tmp_path, "val"), names, ("val2015", "images"))
    located = files.locate_images(Source(tmp_path, "val", tmp_path / "val2014"), {1: "a.jpg"}, ("x",))
    assert located == {1: tmp_path / "val2014" / "a.jpg"}
    unpictured = files.locate_images(Source(tmp_path, "val", with_images=False), names, ("x",))
    assert set(unpictured.values()) == {None}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "deep" / "x.json", "old")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="no space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"


def test_a_prediction_line_has_llavas_fields():
    row = predictions.record(QUESTIONS[0], "A", "runs/stage2")
    assert list(row) == [
        *("question_id", "prompt", "text", "answer_id", "model_id", "metadata"),
        *("round_id", "options", "option_char"),
    ]
    assert (row["question_id"], row["prompt"], row["options"], row["option_char"]) == (
        7,
        "Which?",
        ["x", "y"],
        ["A", "B"],
    )
    assert row["answer_id"] == predictions.record(QUESTIONS[0], "A", "runs/stage2")["answer_id"]
    assert row["answer_id"] != predictions.record(QUESTIONS[0], "B", "runs/stage2")["answer_id"]
    assert "options" not in predictions.record(QUESTIONS[1], "x", "m")
    assert files.json_lines([{"text": "是"}]) == '{"text": "是"}\n'


def test_predictions_are_paired_by_id_whatever_its_type(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(line(question_id="v1", text="b") + line(question_id="7"))
    assert predictions.read(path, QUESTIONS) == {7: "A", "v1": "b"}
    assert list(predictions.read(path, QUESTIONS)) == [7, "v1"]
    path.write_text(line(prompt="<image>\nWhich?\nAnswer with the letter."))
    assert predictions.read(path, QUESTIONS) == {7: "A"}
    path.write_text(line(prompt="Whi"))
    assert predictions.read(path, QUESTIONS) == {7: "A"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (line(question_id=8) + line(), r"1 questions that were not asked \(first: 8\)"),
        (line() + line(), "answers question 7 twice"),
        (json.dumps({"question_id": 7}) + "\n", "line 1 lacks text; it has question_id"),
        (line() + '{"question', "line 2 is no JSON"),
        (line(prompt="Welches?"), "line 1 answers other words than question 7 has"),
    ],
)
def test_a_prediction_file_that_does_not_fit_is_refused(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        predictions.read(path, QUESTIONS)


def test_the_file_of_a_killed_run_is_read_up_to_its_last_whole_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(line() + line(question_id="v1")[:-9])
    assert predictions.read(path, QUESTIONS, drop_cut_end=True) == {7: "A"}


def test_llavas_answer_file_is_read(fixtures):
    question = Question(101000, "Is the kettle red?", None, 128)
    assert predictions.read(fixtures / "llava_answers.jsonl", [question]) == {101000: "Yes"}


def test_a_picture_that_is_missing_or_broken_names_its_question(tmp_path):
    with pytest.raises(ValueError, match=r"of question 5: image .* does not exist: check the image folder"):
        Question(5, "?", tmp_path / "none.png", 8).open_image()
    with pytest.raises(
        ValueError, match=r"of question 5: image .5. cannot be decoded: no known picture format"
    ):
        Question(5, "?", b"no picture", 8).open_image()
    assert Question(5, "?", None, 8).open_image() is None


def test_pictures_are_decoded_as_in_training():
    """16-bit grey is scaled and not clipped to white; what is too large is one line and not another error."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(buffer, "PNG")
    assert Question(5, "?", buffer.getvalue(), 8).open_image().getpixel((0, 0)) == (128, 128, 128)
    header = b"P6 20000 10000 255\n"  # 200 megapixels, of which not one is there
    with pytest.raises(ValueError, match=r"of question 5: .*pixels"):
        Question(5, "?", header, 8).open_image()
