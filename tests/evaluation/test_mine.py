"""A set of your own, a fixed sample of any set, and choices that are answered by likelihood."""

from __future__ import annotations

import json
import random
import shutil
import sys
import types
from collections import Counter

import pytest
import torch
from command import make_world, run
from tiny import tiny_assembled

from basic_lite.evaluation import answer, table
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.table import BENCHMARKS, load, sample
from basic_lite.models.generate import one_row, prompt_ids

ROWS = [
    {
        "image": "a.png",
        "question": "Which colour?",
        "choices": ["red", "blue"],
        "answer": "blue",
        "category": "x",
    },
    {"image": "a.png", "question": "Which now?", "choices": {"A": "red", "B": "blue"}, "answer": "A"},
    {"image": "b.png", "question": "What word?", "answers": ["Stop", "halt"], "id": "w"},
    {"question": "Without a picture?", "answer": 7},
]


@pytest.fixture
def own(tmp_path, png):
    for folder in ("lines", "lines/images", "list"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "lines/images" / name).write_bytes(png())
        (tmp_path / "list" / name).write_bytes(png())
    (tmp_path / "lines/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "list/mine.json").write_text(json.dumps(ROWS))
    return tmp_path


@pytest.mark.parametrize("data", ["lines", "lines/mine.jsonl", "list", "list/mine.json"])
def test_own_questions_are_read_and_scored(own, data):
    questions = load("mine", own / data)
    assert [q.open_image() is not None for q in questions] == [True, True, True, False]
    assert [q.answer for q in questions] == ["B", "A", None, None]
    assert [q.id for q in questions] == ["0", "1", "w", "3"]
    assert questions[0].text == (
        "Which colour?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    assert questions[2].text == "What word?\nAnswer the question using a single word or phrase."
    assert load("mine", own / data, prompt_style="as_written")[2].text == "What word?"
    given = {"0": "B", "1": "blue", "w": " HALT.", "3": "it is 7"}
    row = BENCHMARKS["mine"]
    assert row.score(questions, given, "equal").value == 50
    assert row.score(questions, given, "contains").value == 75
    assert row.score(questions, given, "equal").n_clusters == 3  # two about one picture, two alone
    assert row.score(questions, given, "equal").breakdown["category"] == {"x": 100}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "choices": ["a", "b"], "answer": "c"}, "answer 'c' is none of its choices A, B"),
        ({"question": "?", "choices": "ab", "answer": "a"}, "choices must be a list"),
        ({"answer": "a"}, "lacks question; it has answer"),
        ({"question": "?", "image": "no.png", "answer": "a"}, "1 of 1 pictures are missing"),
    ],
)
def test_a_row_that_is_none_is_said_in_one_line(tmp_path, row, message):
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        load("mine", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="mine has no data of its own: give a file or folder with --data"):
        load("mine")


def test_a_sample_is_fixed_nested_and_stratified():
    rows = [
        Question(n, "?", None, 1, category="big" if n % 10 else "small", picture=n // 2) for n in range(200)
    ]
    drawn = {size: [q.id for q in sample(rows, lambda q: q.id, size)] for size in (10, 50, 200, 999)}
    assert Counter(rows[n].category for n in drawn[50]) == {"big": 45, "small": 5}
    assert Counter(rows[n].category for n in drawn[10]) == {"big": 9, "small": 1}
    assert set(drawn[10]) < set(drawn[50])
    assert drawn[200] == drawn[999] == list(range(200))
    assert drawn[50] != list(range(50))
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {q.id for q in sample(shuffled, lambda q: q.id, 50)} == set(drawn[50])
    pairs = sample(rows, lambda q: q.picture, 7)
    assert len(pairs) == 14
    assert len({q.picture for q in pairs}) == 7


def texts(path):
    return {row["question_id"]: row["text"] for row in map(json.loads, path.read_text().splitlines())}


def choices(count=6):
    words = "what is the brand of this camera near two red doors".split()
    letters = {"A": "red", "B": "blue", "C": "green"}
    asked = [Question(n, " ".join(words[: 1 + n]), None, 4, choices=letters) for n in range(count)]
    return [*asked, Question("open", "what is it", None, 4)]


def test_the_likeliest_letter_is_that_of_a_single_forward_pass(tmp_path):
    """Whatever the batch; a question without choices is answered in words."""
    assembled, asked = tiny_assembled("llama", bits=16), choices()
    assembled.model.float()
    given = {}
    for size in (1, 4):
        path = tmp_path / f"{size}.jsonl"
        assert answer.generate(assembled, asked, path, batch_size=size, answer_by="likelihood") == 0
        given[size] = texts(path)
    assert given[1] == given[4]
    space = assembled.tokenizer(" A", add_special_tokens=False).input_ids
    for question in asked[:-1]:
        ids = prompt_ids(assembled, [("user", question.text)])
        with torch.inference_mode():
            logits = assembled.model(**one_row(assembled.model, ids)).logits[0, -1]
        start = {x: answer._answer_ids(assembled, answer.Prompt(question, ids), x)[0] for x in "ABC"}
        assert given[1][question.id] == max(start, key=lambda x: float(logits[start[x]]))
        assert start["A"] in space
    answer.generate(assembled, asked, tmp_path / "text.jsonl")
    words = texts(tmp_path / "text.jsonl")
    assert words["open"] == given[1]["open"]
    assert words != given[1]


def test_likelihood_on_the_command_line_for_a_run_and_its_folder(trained, own):
    make_world(trained)
    base = ("eval", "mmbench", "--data", "bench.tsv", "--any-size", "--answer-by", "likelihood")
    run("export", "runs/stage1", "likely", "--device", "cpu", cwd=trained)
    run(*base, "--run", "runs/stage1", "--out", "a", cwd=trained)
    run(*base, "--model", "likely", "--out", "b", cwd=trained)
    contents = [json.loads((trained / name / "results.json").read_text()) for name in ("a", "b")]
    assert contents[0]["run"]["decoding"] == contents[1]["run"]["decoding"] == "likelihood of letters"
    of_run, of_folder = (texts(trained / name / "predictions.jsonl") for name in ("a", "b"))
    assert of_run == of_folder
    assert set(of_run.values()) <= set("ABCD")
    mixed = run(*base[:-2], "--run", "runs/stage1", "--out", "a", cwd=trained, expect=2)
    assert "made with another answer_by" in mixed.stderr
    done = run("eval", "mine", "--data", own / "lines", "--run", "runs/stage1", "--out", "m", cwd=trained)
    assert "no mine number" not in done.stdout
    assert json.loads((trained / "m/results.json").read_text())["n"] == 4


CAPTIONS = [
    {"image": "a.png", "captions": ["A red square.", "a square that is red"]},
    {
        "image": "b.png",
        "captions": ["Two dogs run on the beach."],
        "question": "Describe it.",
        "category": "x",
    },
]


@pytest.fixture
def captioned(tmp_path, png):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "mine.json").write_text(json.dumps(CAPTIONS))
    return tmp_path


def test_captions_are_asked_for_and_need_no_question(captioned):
    first, second = load("mine", captioned)
    assert first.text == "Provide a one-sentence caption for the provided image."
    assert first.answers == ("A red square.", "a square that is red")
    assert second.text == "Describe it."  # no request for a single word
    said = {"0": "a red square", "1": "dogs"}
    assert BENCHMARKS["mine"].score([first, second], said, "equal").value == 50


def test_cider_is_the_librarys_over_cocos_tokens(captioned, monkeypatch):
    """What the library is given and gives stands here; `test_cider_of_the_library` runs it."""
    given = {}

    class Tokenizer:
        def tokenize(self, texts):
            return {
                name: [row["caption"].lower().rstrip(".") for row in rows] for name, rows in texts.items()
            }

    class Cider:
        def compute_score(self, references, answers):
            given.update(references=references, answers=answers)
            return 1.25, [2.0, 0.5]

    for name, content in (("cider", Cider), ("tokenizer", Tokenizer)):
        module = types.ModuleType("x")
        setattr(module, {"cider": "Cider", "tokenizer": "PTBTokenizer"}[name], content)
        path = {"cider": "cider.cider", "tokenizer": "tokenizer.ptbtokenizer"}[name]
        monkeypatch.setitem(sys.modules, f"pycocoevalcap.{path}", module)
    for name in ("pycocoevalcap", "pycocoevalcap.cider", "pycocoevalcap.tokenizer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    questions = load("mine", captioned)
    score = BENCHMARKS["mine"].score(questions, {"0": "A red square."}, "cider")
    assert given["references"] == {
        "0": ["a red square", "a square that is red"],
        "1": ["two dogs run on the beach"],
    }
    assert given["answers"] == {"0": ["a red square"], "1": [""]}
    assert (score.value, score.missing, score.metric) == (125, 1, "CIDEr")
    assert score.breakdown["category"] == {"x": 50}
    with pytest.raises(ValueError, match="Question q has no caption"):
        BENCHMARKS["mine"].score([Question("q", "?", None, 1)], {}, "cider")


def test_cider_of_the_library(captioned):
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    questions = load("mine", captioned)
    right = {"0": "A red square.", "1": "Two dogs run on the beach!"}
    assert BENCHMARKS["mine"].score(questions, right, "cider").value > 500
    assert BENCHMARKS["mine"].score(questions, {"0": "cats", "1": ""}, "cider").value == 0


def test_a_scorer_that_is_not_installed_is_said_before_anything_is_asked(captioned, monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs pycocoevalcap and java: pip install pycocoevalcap"):
        table.scorer_of("mine", "cider")
    monkeypatch.setattr(table, "find_spec", lambda name: True)
    monkeypatch.setattr(table, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs pycocoevalcap and java"):
        table.scorer_of("mine", "cider")
    monkeypatch.setattr(table, "which", lambda name: f"/usr/bin/{name}")
    assert table.scorer_of("mine", "cider") == "cider"
    assert table.scorer_of("mine", None) == "equal"
