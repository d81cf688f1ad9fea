"""Runs in processes of their own: their progress file, their display, and how they end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from rich.console import Console

from basic_lite.experiments import processes
from basic_lite.experiments.measure import path_of
from basic_lite.experiments.processes import ProgressFile, Run, State, progress_board, state_of


def test_a_phase_counts_its_interrupted_attempts(tmp_path, monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr(processes.time, "monotonic", lambda: next(clock))
    path = tmp_path / "run.json"
    with pytest.raises(SystemExit), ProgressFile.open(path).during("stage 1"):
        raise SystemExit(75)
    assert json.loads(path.read_text())["spent"] == 3.0
    with ProgressFile.open(path).during("stage 1"):
        assert json.loads(path.read_text())["phase"] == "stage 1"
    content = json.loads(path.read_text())
    assert (content["seconds"], content["spent"], content["phase"]) == ({"stage 1": 7.0}, 0.0, "")


def test_a_state_is_read_from_the_progress_file_and_from_what_the_run_writes(tmp_path):
    run = Run("plain", 0, tmp_path, (), {"measure": {"world": str(tmp_path / "world")}})
    progress = tmp_path / "run.json"
    assert state_of(run) == State("starting")
    progress.write_text('{"pha')
    assert state_of(run) == State("starting")
    progress.write_text('{"phase": ""}')
    assert state_of(run) == State("")
    progress.write_text('{"phase": "stage 1"}')
    assert state_of(run) == State("stage 1")
    (tmp_path / "stage1").mkdir()
    whole = {"step": 3, "steps": 9, "lm": 1.234, "cosine": 0.5}
    (tmp_path / "stage1/log.jsonl").write_text(json.dumps(whole) + '\n{"step": 4, "st')  # still being written
    assert state_of(run) == State("stage 1", 3, 9, "caption loss 1.23  cosine 0.50")
    (tmp_path / "stage2/eval/mmbench").mkdir(parents=True)
    (tmp_path / "stage2/log.jsonl").write_text(json.dumps(whole | {"cosine": None}) + "\n")
    progress.write_text('{"phase": "stage 2"}')
    assert state_of(run) == State("stage 2", 3, 9, "answer loss 1.23")
    (tmp_path / "world").mkdir()
    for name, rows in (("en", 3), ("cn", 2)):
        (tmp_path / f"world/mmbench_{name}.tsv").write_text("head\n" + "row\n" * rows)
    (tmp_path / "stage2/eval/mmbench/predictions.jsonl").write_text('{"a": 1}\n{"b": 2}\n{"c')
    progress.write_text(json.dumps({"phase": processes.phase_of("questions", measuring=True)}))
    assert state_of(run) == State("measuring questions", 2, 5)


def test_without_a_terminal_every_phase_is_printed_once():
    console = Console(file=io.StringIO(), width=80)
    with progress_board(console) as show:
        for _ in range(2):
            show({"runs": State("", 1, 2), "plain": State("stage 1")})
        show({"plain": State("stage 2")})
    assert console.file.getvalue() == "runs: 1 of 2 done\nplain: stage 1\nplain: stage 2\n"


def test_on_a_terminal_there_is_a_line_for_each_child_at_work():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with progress_board(console) as show:
        show({"plain": State("stage 1", 3, 9, "caption loss 1.23"), "BASIC": State("starting")})
        show({"BASIC": State("stage 2", 1, 4, "answer loss 0.50")})
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
        (f"sys.exit({processes.STOPPED})", KeyboardInterrupt),
        ("os.kill(os.getpid(), signal.SIGTERM)", KeyboardInterrupt),
    ],
)
def test_how_a_child_ended(ends, meaning):
    code = f"import os, signal, sys\n{ends}"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    process.wait()
    if meaning is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            processes.succeeded(process)
    else:
        assert processes.succeeded(process) is meaning


def test_a_stage_is_trained_to_its_end_or_the_child_ends_as_stopped(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "checkpoints", lambda folder: calls)

    def stage(out, resume, overwrite, *, finishes):
        calls.append((resume, overwrite))
        monkeypatch.setattr(processes, "is_finished", lambda folder: finishes)

    with pytest.raises(SystemExit) as ended:
        processes.train(stage, tmp_path, finishes=False)
    assert ended.value.code == processes.STOPPED
    processes.train(stage, tmp_path, finishes=True)
    processes.train(stage, tmp_path, finishes=True)
    assert calls == [(False, True), (True, False)]


CHILD = """
import json, signal, sys, time
from pathlib import Path
folder, how = Path(sys.argv[1]), sys.argv[2]
with (folder / "starts").open("a") as file:
    file.write("x")
if how == "fails":
    sys.exit("no room left")
if how == "is stopped":
    sys.exit(75)
if how == "waits":
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(75)))
    (folder / "ready").touch()
    time.sleep(60)
(folder / "measured-stage1.json").write_text("[]")
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a function that makes a run, whose process does what its variant's name says."""

    def start(run: Run, threads: int) -> subprocess.Popen:
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", CHILD, str(run.folder), run.variant]
        with (run.folder / "errors.txt").open("w") as errors:
            return subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)

    monkeypatch.setattr(processes, "start", start)
    return lambda how, seed=0: Run(how, seed, tmp_path / f"{how}-{seed}", ("stage1",), {})


def ignore(states: dict[str, State]) -> None:
    pass


def test_finished_runs_are_never_repeated(made):
    todo = [made("ends", seed) for seed in range(3)]
    todo[0].folder.mkdir()
    path_of(todo[0].folder, "stage1").write_text("[]")
    seen = []
    processes.run_all(todo, 2, 1, seen.append, interval=0.01)
    assert not (todo[0].folder / "starts").exists()
    assert seen[-1] == {"runs": State("", 3, 3)}
    assert max(len(states) for states in seen) <= 1 + 2
    processes.run_all(todo, 2, 1, ignore, interval=0.01)
    assert (todo[1].folder / "starts").read_text() == "x"


def test_a_run_that_fails_leaves_the_others_and_is_said_in_one_line(made):
    todo = [made("fails"), made("ends")]
    with pytest.raises(
        ValueError,
        match=r"^1 of 2 runs failed, first fails, seed 0: no room left \(all of it in .*; the same command",
    ):
        processes.run_all(todo, 1, 1, ignore, interval=0.01)
    assert todo[1].finished


def test_a_signal_stops_all_children_and_waits_for_them(made):
    todo = [made("waits", seed) for seed in range(2)]

    def interrupt() -> None:
        while not all((run.folder / "ready").exists() for run in todo):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        processes.run_all(todo, 2, 1, ignore, interval=0.01)
    assert all((run.folder / "saved").exists() for run in todo)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_to_one_child_stops_the_others_too(made, monkeypatch):
    waits, is_stopped = made("waits"), made("is stopped")
    begin = processes.start

    def start(run: Run, threads: int) -> subprocess.Popen:
        while run is is_stopped and not (waits.folder / "ready").exists():
            time.sleep(0.01)
        return begin(run, threads)

    monkeypatch.setattr(processes, "start", start)
    with pytest.raises(KeyboardInterrupt):
        processes.run_all([waits, is_stopped], 2, 1, ignore, interval=0.01)
    assert (waits.folder / "saved").exists()


def test_jobs_by_cores_and_memory(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 8)
    free = psutil.virtual_memory()._replace(available=10 * 2**30)
    monkeypatch.setattr(processes.psutil, "virtual_memory", lambda: free)
    assert processes.jobs_for(20, 2 * 2**30, on_gpu=False) == 4
    assert processes.jobs_for(3, 2 * 2**30, on_gpu=False) == 3
    assert processes.jobs_for(20, 2**28, on_gpu=False) == 8
    assert processes.jobs_for(20, 2**40, on_gpu=False) == 1
    assert processes.jobs_for(20, 1, on_gpu=True) == 1
