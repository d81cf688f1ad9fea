"""Many processes: what is finished stays, what fails is said, what is told to stop stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from basic_lite.experiments import comparison, processes
from basic_lite.experiments.measure import path_of

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
    """Return a function that makes a run, whose process does what its arm's name says."""

    def start(run: processes.Run, threads: int) -> subprocess.Popen:
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", CHILD, str(run.folder), run.arm]
        with (run.folder / "errors.txt").open("w") as errors:
            return subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)

    monkeypatch.setattr(processes, "start_run", start)
    return lambda how, seed=0: processes.Run(how, seed, tmp_path / f"{how}-{seed}", ("stage1",), {})


def look(*_: object) -> None:
    pass


def test_finished_runs_are_never_repeated(made):
    todo = [made("ends", seed) for seed in range(3)]
    todo[0].folder.mkdir()
    path_of(todo[0].folder, "stage1").write_text("[]")
    seen = []
    processes.run_all(todo, 2, 1, lambda running, done, failed: seen.append((len(running), done)), 0.01)
    assert not (todo[0].folder / "starts").exists()
    assert seen[-1] == (0, 3)
    assert max(count for count, _ in seen) <= 2
    processes.run_all(todo, 2, 1, look, 0.01)
    assert (todo[1].folder / "starts").read_text() == "x"


def test_a_run_that_fails_leaves_the_others_and_is_said_in_one_line(made):
    todo = [made("fails"), made("ends")]
    with pytest.raises(ValueError, match="1 of 2 runs failed, first fails, seed 0: no room left"):
        processes.run_all(todo, 1, 1, look, 0.01)
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
        processes.run_all(todo, 2, 1, look, 0.01)
    assert all((run.folder / "saved").exists() for run in todo)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_to_one_child_stops_the_others_too(made, monkeypatch):
    waits, is_stopped = made("waits"), made("is stopped")
    begin = processes.start_run

    def start(run: processes.Run, threads: int) -> subprocess.Popen:
        while run is is_stopped and not (waits.folder / "ready").exists():
            time.sleep(0.01)
        return begin(run, threads)

    monkeypatch.setattr(processes, "start_run", start)
    with pytest.raises(KeyboardInterrupt):
        processes.run_all([waits, is_stopped], 2, 1, look, 0.01)
    assert (waits.folder / "saved").exists()


def test_jobs_by_cores_and_memory(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 8)
    monkeypatch.setattr(processes, "free_bytes", lambda: 10 * 2**30)
    assert processes.jobs_for(20, 2 * 2**30, on_gpu=False) == 4
    assert processes.jobs_for(3, 2 * 2**30, on_gpu=False) == 3
    assert processes.jobs_for(20, 2**28, on_gpu=False) == 8
    assert processes.jobs_for(20, 2**40, on_gpu=False) == 1
    assert processes.jobs_for(20, 1, on_gpu=True) == 1
    monkeypatch.undo()
    assert processes.free_bytes() > 2**27


def test_a_folder_belongs_to_one_set_up(tmp_path):
    out = tmp_path / "out"
    comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": False})
    comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": False})
    with pytest.raises(ValueError, match=r'another stage1: \{"max_steps": 3\}, now \{"max_steps": 4\}'):
        comparison.claim(out, {"stage1": {"max_steps": 4}, "quick": False})
    with pytest.raises(ValueError, match="another quick"):
        comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": True})
    comparison.claim(out, {"quick": False, "stage2": {"lora": True}})
    with pytest.raises(ValueError, match="another stage2"):
        comparison.claim(out, {"stage1": {"max_steps": 3}, "stage2": {}})
    with pytest.raises(ValueError, match="another stage1"):
        comparison.claim(out, {"stage1": {}})
    (tmp_path / "else").mkdir()
    (tmp_path / "else/file").touch()
    with pytest.raises(ValueError, match="holds no ablation"):
        comparison.claim(tmp_path / "else", {})
