"""Two processes share the questions: one file, the bytes of one process, and no hang when one dies."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command import run
from PIL import Image
from processes import finish, start

from basic_lite.files import file_hash

COUNT = 40
SHORT = """
from basic_lite.evaluation import answer
from basic_lite.cli import main
greedily = answer.greedily
answer.greedily = lambda stops, pad, most: greedily(stops, pad, 16)
main()
"""
"""The command with short answers, as the fixture `short_answers` makes them in this process."""

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def asked(trained):
    """Questions of many lengths, with pictures, with choices, and without either; two sets of them."""
    draw = random.Random(0)
    words = "what is the brand of this camera near the two small red doors and who made them".split()
    for name in ("mine", "vizwiz"):
        (trained / "data" / name).mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (20 + number, 24), (60 * number, 90, 200)).save(trained / f"data/mine/{number}.png")
    rows = []
    for number in range(COUNT):
        row = {
            "question": " ".join(draw.choices(words, k=1 + number % 9)),
            "answer": "red",
            "id": f"q{number}",
        }
        row |= {"choices": ["red", "blue"]} if number % 5 == 0 else {}
        rows.append(row | ({"image": f"{number % 4}.png"} if number % 3 else {}))
    (trained / "data/mine/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return trained


def ask(out, *more):
    base = ("eval", "mine", "--run", "runs/stage1", "--data", "data/mine", "--prompt-style", "as_written")
    return [*base, "--batch-size", 3, "--out", out, *more]


def launch(arguments, cwd, processes=2):
    return start([sys.executable, "-c", SHORT, *arguments], cwd, processes)


def answers(folder):
    return folder / "predictions.jsonl"


def lines(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.fixture
def alone(asked):
    """What one process writes."""
    if not answers(asked / "one").is_file():
        run(*ask("one"), cwd=asked)
    assert lines(answers(asked / "one")) == COUNT
    return file_hash(answers(asked / "one"))


@pytest.mark.slow
def test_a_death_ends_both_and_any_number_goes_on_to_the_same_bytes(asked, alone):
    for dies, go_on in ((1, 3), (0, 1)):
        out = f"killed{dies}"
        if dies == 1:  # begun by one process
            run(*ask(out, "--max-steps", 1), cwd=asked)
        started = launch(ask(out), asked)
        while lines(answers(asked / out)) < 6 and all(process.poll() is None for process in started):
            time.sleep(0.005)
        started[dies].send_signal(signal.SIGKILL)
        said = started[1 - dies].communicate(timeout=300)[0]
        assert started[1 - dies].returncode == 1, said
        assert "error: another of the 2 processes of this command has ended; the same command" in said
        assert "Traceback" not in said
        assert 6 <= lines(answers(asked / out)) < COUNT
        if go_on == 1:
            run(*ask(out), cwd=asked)
        else:
            first, *others = finish(launch(ask(out), asked, processes=go_on))
            assert first.count(f"{COUNT}/{COUNT}") == 1
            assert others == ["", ""]
        assert file_hash(answers(asked / out)) == alone
        results = [json.loads((asked / name / "results.json").read_text()) for name in ("one", out)]
        assert results[0]["value"] == results[1]["value"]


@pytest.mark.slow
def test_what_one_process_cannot_do_is_said_once(asked):
    """A list goes on without it, a single benchmark ends; no process waits for another."""
    shutil.copytree(asked / "data/mine", asked / "broken/mine")
    (asked / "broken/mine/2.png").write_bytes(b"no picture")
    shutil.copytree(asked / "data/mine", asked / "broken/mmstar")
    named = [word if word != "mine" else "mmstar,mine" for word in ask("list", "--data", "broken")]
    first, second = (process.communicate(timeout=300)[0] for process in launch(named, asked))
    assert "2 of 2 benchmarks were left out: mmstar: " in first
    assert first.count("Picture of question q2") == 2  # at once, and at the end
    assert second == ""
    started = launch(ask("none", "--run", "nowhere"), asked)
    first, second = (process.communicate(timeout=300)[0] for process in started)
    assert (
        first == "error: nowhere holds no run (no manifest.json); run the stage before, or name its folder\n"
    )
    assert second == ""
    assert [process.returncode for process in started] == [2, 0]


@pytest.mark.slow
def test_accelerate_launch_answers_as_one_process(asked, monkeypatch):
    """The launcher itself, with answers of full length."""
    options = ["--multi_gpu", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"]
    options += [
        "--dynamo_backend",
        "no",
        "--main_process_port",
        0,
        "-m",
        "basic_lite",
        *ask("launched", "--limit", 8),
    ]
    command = [*map(str, [sys.executable, "-m", "accelerate.commands.launch", *options])]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=asked, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("answers/s") >= 1
    assert done.stdout.count("Results in launched/results.json") == 1
    monkeypatch.undo()  # of short answers
    run(*ask("unlaunched", "--limit", 8), cwd=asked)
    assert file_hash(answers(asked / "launched")) == file_hash(answers(asked / "unlaunched"))
