"""A judge at an address: what is sent, what is kept, what is asked again, and errors in one line."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command import run

from basic_lite.evaluation import judge
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.judge import Judge, ask, read_grades
from basic_lite.evaluation.table import BENCHMARKS

ANSWERS = {"v1_0": "x is -2", "v1_1": "The Sedan.", "v1_2": "A dog.\nIt sleeps."}


class Address:
    """A local address of chat completions; `replies` are taken in turn, the last one stays.

    A reply is a text, or the status and body of a refusal.
    """

    def __init__(self):
        self.replies, self.requests, self.headers = ["1.0"], [], []
        address = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                address.requests.append({"path": self.path, **body})
                address.headers.append(dict(self.headers))
                reply = address.replies.pop(0) if len(address.replies) > 1 else address.replies[0]
                status, text = reply if isinstance(reply, tuple) else (200, None)
                choices = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                content = (json.dumps(choices) if text is None else text).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(judge.KEY, raising=False)
    monkeypatch.setattr(judge, "_WAITS", (0.0, 0.0))
    address = Address()
    yield address
    address.close()


@pytest.fixture
def mmvet(fixtures):
    benchmark = BENCHMARKS["mmvet"]
    return benchmark.grading, benchmark.read(Source(fixtures, "test", with_images=False))


def graded(mmvet, address, tmp_path, answers=ANSWERS, **more):
    return ask(*mmvet, answers, Judge("m", address.url, **more), tmp_path / "grades.jsonl")


def test_a_question_is_one_request_with_the_originals_decoding(mmvet, address, tmp_path, monkeypatch):
    monkeypatch.setenv(judge.KEY, "secret")
    address.replies = ["0.5", "1.0", "0.0 because"]
    grades = graded(mmvet, address, tmp_path, rule="T")
    assert grades == {"v1_0": [0.5], "v1_1": [1.0], "v1_2": [0.0]}
    message = {"role": "user", "content": "T\nWhat is x in the equation? | -2 <AND> 7 | x is -2 | "}
    assert address.requests[0] == {
        **{"path": "/v1/chat/completions", "model": "m", "messages": [message]},
        **{"max_tokens": 3, "temperature": 0.0},
    }
    assert address.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in (tmp_path / "grades.jsonl").read_text()


def test_what_was_graded_is_not_asked_again_and_a_new_answer_is(mmvet, address, tmp_path):
    address.replies = ["0.5", (400, "no such model"), "1.0"]
    with pytest.raises(
        ValueError, match=r"Question v1_1: .*model m \(HTTP 400\): no such model.*grades so far"
    ):
        graded(mmvet, address, tmp_path)
    with (tmp_path / "grades.jsonl").open("a") as file:
        file.write('{"key": "of a kill')  # a line that was not finished
    assert graded(mmvet, address, tmp_path) == {"v1_0": [0.5], "v1_1": [1.0], "v1_2": [1.0]}
    assert len(address.requests) == 4
    graded(mmvet, address, tmp_path)
    assert len(address.requests) == 4
    graded(mmvet, address, tmp_path, {**ANSWERS, "v1_0": "another"})
    assert len(address.requests) == 5
    kept = [json.loads(line) for line in (tmp_path / "grades.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in kept] == ["v1_0", "v1_1", "v1_2", "v1_0"]


def test_a_reply_without_a_grade_is_asked_for_again_warmer(mmvet, address, tmp_path):
    address.replies = ["good", "2.0", "", "0.7"]
    assert graded(mmvet, address, tmp_path)["v1_0"] == [0.7]
    sent = address.requests[:4]
    ends = [row["messages"][0]["content"].endswith("answer (digit): ") for row in sent]
    assert ends == [False, True, True, True]
    assert [row["temperature"] for row in sent] == [0.0, 0.0, 0.5, 1.0]
    address.replies, address.requests = ["fine"], []
    with pytest.raises(
        ValueError, match=r"5 replies of m hold no grade, a number from 0 to 1 \(the last: 'fine'\)"
    ):
        graded(mmvet, address, tmp_path, {**ANSWERS, "v1_0": "new"})
    assert [row["temperature"] for row in address.requests] == [0.0, 0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([(401, "who are you?")], "refuses the key .HTTP 401.: put one into .* BASIC_LITE_JUDGE_KEY"),
        ([(503, "busy")], "does not grade with model m .HTTP 503.: busy"),
        ([(302, "")], "HTTP 302"),
        ([(200, "<html>")], "sent no chat completion"),
        ([(200, '{"choices": []}')], "sent no chat completion"),
    ],
)
def test_refusals_end_in_one_line(mmvet, address, tmp_path, replies, message):
    address.replies = replies
    with pytest.raises(ValueError, match=message) as error:
        graded(mmvet, address, tmp_path)
    assert "\n" not in str(error.value)
    assert not any(row["path"] == "/elsewhere" for row in address.requests)


def test_an_address_that_is_busy_is_asked_again(mmvet, address, tmp_path):
    address.replies = [(429, "slow down"), (500, ""), "0.5"]
    assert graded(mmvet, address, tmp_path)["v1_0"] == [0.5]


def test_an_address_that_is_not_there(mmvet, address, tmp_path):
    address.close()
    with pytest.raises(ValueError, match=r"Question v1_0: http://127.* cannot be reached \(.*refused"):
        graded(mmvet, address, tmp_path)
    with pytest.raises(ValueError, match="ftp://x is no address"):
        Judge("m", "ftp://x").address  # noqa: B018


@pytest.fixture
def answered(folder):
    data = folder({"mm-vet.json": "mm-vet.json"}, [f"images/v1_{i}.png" for i in range(3)])
    rows = [{"question_id": identity, "text": text} for identity, text in ANSWERS.items()]
    (data / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_the_command_asks_a_named_judge_and_nobody_else(answered, address):
    base = ("eval", "mmvet", "--predictions", "a.jsonl", "--data", ".", "--limit", 3)
    run(*base, cwd=answered)
    results = answered / "a-scored/eval/mmvet/results.json"
    assert json.loads(results.read_text())["value"] is None
    refused = run(*base, "--judge", "m", cwd=answered, expect=2)
    assert "say where with --judge-url" in refused.stderr
    refused = run(*base, "--judge-url", address.url, cwd=answered, expect=2)
    assert "name the judge with --judge" in refused.stderr
    refused = run(*base, "--judge", "m", "--judge-url", "localhost", cwd=answered, expect=2)
    assert "--judge-url localhost is no address" in refused.stderr
    assert not address.requests
    address.replies = ["0.5", "1.0", "0.0"]
    run(*base, "--judge", "m", "--judge-url", address.url, cwd=answered)
    content = json.loads(results.read_text())
    assert (content["value"], content["metric"]) == (50.0, "MM-Vet score, judged by m")
    assert "not MM-Vet's: give --judge-prompt" in content["notes"][-1]
    (answered / "evaluator.py").write_text('prompt = "T"\n')
    address.replies = ["1.0"]
    run(*base, "--judge", "m", "--judge-url", address.url, "--judge-prompt", "evaluator.py", cwd=answered)
    content = json.loads(results.read_text())
    assert (content["value"], content["notes"]) == (100.0, [])
    assert address.requests[-1]["messages"][0]["content"].startswith("T\n")
    (answered / "g.json").write_text(json.dumps({"v1_0": 0.5, "v1_1": 0.5, "v1_2": 0.5}))
    run(*base, "--judge", "someone", "--grades", "g.json", cwd=answered)
    assert json.loads(results.read_text())["scorer"] == "judge:someone"


@pytest.fixture
def wild(folder):
    data = folder({}, ["images/001.jpg", "images/002.jpg"])
    asked = [
        {"question_id": n, "image": f"00{1 + n // 2}.jpg", "text": f"What {n}?", "category": kind}
        for n, kind in enumerate(["conv", "detail", "complex"])
    ]
    files = {
        "questions.jsonl": asked,
        "context.jsonl": [
            {"id": "001", "image": "001.jpg", "caption": "A bay."},
            {"id": "002", "image": "002.jpg", "caption": ["A fridge.", "With milk."]},
        ],
        "answers_gpt4.jsonl": [{"question_id": n, "text": f"Reference {n}."} for n in range(3)],
    }
    for name, rows in files.items():
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_llava_bench_is_graded_beside_gpt4(wild, address, tmp_path):
    benchmark = BENCHMARKS["llava-bench"]
    asked = benchmark.read(Source(wild, "test"))
    assert [(q.id, q.text, q.max_new_tokens, q.picture) for q in asked][:2] == [
        (0, "What 0?", 1024, "001.jpg"),
        (1, "What 1?", 1024, "001.jpg"),
    ]
    answers = {0: "Mine.", 1: "Ours.", 2: "Theirs."}
    address.replies = ["8 4\nbecause", "10, 5", "10,5\nbecause", "6.5 9\n"]  # "10, 5" has three parts
    kept = tmp_path / "grades.jsonl"
    grades = ask(benchmark.grading, asked, answers, Judge("m", address.url), kept)
    assert grades == {"0": [(8.0, 4.0)], "1": [(10.0, 5.0)], "2": [(6.5, 9.0)]}
    last = address.requests[-1]
    assert (last["temperature"], last["max_tokens"]) == (0.2, 1024)
    assert [message["role"] for message in last["messages"]] == ["system", "user"]
    assert last["messages"][1]["content"].startswith(
        "[Context]\nA fridge.\nWith milk.\n\n[Question]\nWhat 2?\n\n[Assistant 1]\nReference 2.\n\n"
        "[End of Assistant 1]\n\n[Assistant 2]\nTheirs.\n\n[End of Assistant 2]\n\n[System]\nWe would like"
    )
    score = benchmark.grading.score(asked, answers, grades, "m")
    assert score.value == pytest.approx(100 * (4 + 5 + 9) / (8 + 10 + 6.5))
    assert score.breakdown["category"] == pytest.approx({"conv": 50, "detail": 50, "complex": 900 / 6.5})
    assert score.figures == pytest.approx({"reference": 10 * 24.5 / 3, "model": 60})
    low, high = score.interval()
    assert low <= score.value <= high
    assert read_grades(kept, asked, benchmark.grading) == grades
    reviews = [{"question_id": n, "tuple": pair} for n, pair in enumerate([[8, 4], [10, 5], [6.5, 9]])]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in reviews))
    assert read_grades(path, asked, benchmark.grading) == grades
    path.write_text(path.read_text().replace("[6.5, 9]", "[-1, -1]"))  # what the original writes for no grade
    with pytest.raises(ValueError, match=r"grade of 2 is \[-1, -1\], not two numbers from 1 to 10"):
        read_grades(path, asked, benchmark.grading)


def test_llava_bench_says_what_is_missing(wild):
    (wild / "answers_gpt4.jsonl").write_text('{"question_id": 0, "text": "x"}\n')
    with pytest.raises(ValueError, match="question 1 has no description or no answer of GPT-4"):
        BENCHMARKS["llava-bench"].read(Source(wild, "test"))
    (wild / "context.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no descriptions of the pictures: looked for context\.jsonl"):
        BENCHMARKS["llava-bench"].read(Source(wild, "test"))
