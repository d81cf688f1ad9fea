"""Processes that train for a command: their diary, their display, and how they are stopped."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from basic_lite import files
from basic_lite.experiments import processes
from basic_lite.experiments.processes import Board, State, state_of


def test_a_diary_does_each_thing_once_and_counts_interrupted_attempts(tmp_path, monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr(processes.time, "monotonic", lambda: next(clock))
    done = []
    path = tmp_path / "twin.json"

    def stop():
        raise SystemExit(75)

    with pytest.raises(SystemExit):
        processes.Diary.open(path).does("stage 1", stop)
    for _ in range(2):
        processes.Diary.open(path).does("stage 1", lambda: done.append(1))
    assert done == [1]
    content = json.loads(path.read_text())
    assert (content["seconds"], content["spent"], content["phase"]) == ({"stage 1": 7.0}, 0.0, "")


def test_what_a_child_does_is_read_from_its_diary_and_the_log_beside_it(tmp_path):
    diary = tmp_path / "twin.json"
    assert state_of(diary) == State("starting")
    diary.write_text('{"pha')
    assert state_of(diary) == State("starting")
    diary.write_text('{"phase": ""}')
    assert state_of(diary) == State("")
    diary.write_text('{"phase": "stage 1"}')
    assert state_of(diary) == State("stage 1")
    (tmp_path / "stage1").mkdir()
    whole = {"step": 3, "steps": 9, "lm": 1.234, "cosine": 0.5}
    (tmp_path / "stage1/log.jsonl").write_text(json.dumps(whole) + '\n{"step": 4, "st')  # still being written
    assert state_of(diary) == State("stage 1", 3, 9, "caption loss 1.23  cosine 0.50")
    (tmp_path / "stage2").mkdir()
    (tmp_path / "stage2/log.jsonl").write_text(json.dumps(whole | {"cosine": None}) + "\n")
    diary.write_text('{"phase": "stage2"}')
    assert state_of(diary) == State("stage2", 3, 9, "answer loss 1.23")


def test_without_a_terminal_every_phase_is_said_once():
    console = Console(file=io.StringIO(), width=80)
    with Board(console) as board:
        for _ in range(2):
            board.show({"plain": State("stage 1"), "runs": State("", 1, 2)})
        board.show({"plain": State("stage 2")})
    assert console.file.getvalue() == "plain: stage 1\nplain: stage 2\n"


def test_on_a_terminal_there_is_a_line_for_each_child_at_work():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with Board(console) as board:
        board.show({"plain": State("stage 1", 3, 9, "caption loss 1.23"), "BASIC": State("starting")})
        board.show({"BASIC": State("stage 2", 1, 4, "answer loss 0.50")})
    last = console.file.getvalue().rsplit("BASIC", 1)[1]
    assert "stage 2" in last
    assert "1/4" in last
    assert "answer loss 0.50" in last
    assert "plain" not in last


@pytest.mark.parametrize(
    ("ends", "meaning"),
    [
        ("pass", True),
        ("sys.exit('no room')", False),
        ("os.kill(os.getpid(), signal.SIGKILL)", False),
        ("sys.exit(children.STOPPED)", KeyboardInterrupt),
        ("os.kill(os.getpid(), signal.SIGTERM)", KeyboardInterrupt),
    ],
)
def test_how_a_child_ended(ends, meaning):
    code = f"import os, signal, sys\nfrom basic_lite import children\n{ends}"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    process.wait()
    if meaning is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            processes.succeeded(process)
    else:
        assert processes.succeeded(process) is meaning


def test_a_stage_is_trained_to_its_end_or_the_child_ends_as_stopped(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files, "checkpoints", lambda folder: calls)

    def stage(out, resume, overwrite, *, finishes):
        calls.append((resume, overwrite))
        monkeypatch.setattr(files, "is_finished", lambda folder: finishes)

    with pytest.raises(SystemExit) as ended:
        processes.train(stage, tmp_path, finishes=False)
    assert ended.value.code == processes.STOPPED
    processes.train(stage, tmp_path, finishes=True)
    processes.train(stage, tmp_path, finishes=True)
    assert calls == [(False, True), (True, False)]
