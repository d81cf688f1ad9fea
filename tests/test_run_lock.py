"""The second command in a run folder is refused in one line; a killed one leaves nothing to tidy up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import run
from kills import command, lines, write_rows

from basic_lite import files
from basic_lite.console import rank_and_count
from basic_lite.experiments import processes

HOLD = """
import sys, time
from pathlib import Path
from basic_lite.files import held
with held(Path(sys.argv[1]), beside="--beside" in sys.argv):
    print("held", flush=True)
    if "--fork" in sys.argv:
        import os
        if os.fork() == 0:
            time.sleep(1)  # as a worker that has not yet noticed that its parent is gone
            os._exit(0)
    time.sleep(60)
"""


def holding(folder: Path, *options: str) -> subprocess.Popen:
    """Start a process that holds a folder's lock, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(files, "GRACE", 0.3)


@pytest.mark.parametrize("options", [(), ("--beside",)])
def test_a_second_process_is_told_who_the_first_is(tmp_path, options):
    out = tmp_path / "runs/out"
    process = holding(out, *options)
    try:
        assert out.is_dir() == (not options)
        with (
            pytest.raises(ValueError, match="is being written by") as refused,
            files.held(out, beside=bool(options)),
        ):
            pass
        said = str(refused.value)
        assert f"{out} is being written by process {process.pid} (-c " in said
        assert f", since {time.strftime('%Y-%m-%d')}" in said
        assert said.endswith("; wait until it ends, or choose another --out")
        assert "\n" not in said
        with files.held(tmp_path / "runs/other"):  # another folder is nobody's business
            pass
        with files.held(out / "part"):  # a run inside it, as the demo's, has a lock of its own
            pass
    finally:
        process.kill()
        process.communicate()
    with files.held(out, beside=bool(options)):
        pass
    assert list((tmp_path / "runs").rglob(".*")) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_kill_leaves_nothing_to_remove_even_while_workers_live(tmp_path):
    process = holding(tmp_path, "--fork")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((tmp_path / files.HOLDER).read_text())["pid"] == process.pid
    with files.held(tmp_path):
        assert json.loads((tmp_path / files.HOLDER).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_on_another_host_is_named_with_it(tmp_path, quick):
    with files.held(tmp_path):
        entry = json.loads((tmp_path / files.HOLDER).read_text())
        (tmp_path / files.HOLDER).write_text(json.dumps(entry | {"host": "node7", "pid": 1}))
        with pytest.raises(ValueError, match=r"by process 1 on node7 \("), files.held(tmp_path):
            pass
        # A name that a killed process left, before the one that holds the lock has written its own.
        (tmp_path / files.HOLDER).write_text(json.dumps(entry | {"began": entry["began"] - 60}))
        begun = time.monotonic()
        with pytest.raises(ValueError, match="is being written by"), files.held(tmp_path):
            pass
        assert time.monotonic() - begun >= files.GRACE


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path):
    with files.held(tmp_path / "runs/new"):
        assert (tmp_path / "runs/new" / files.LOCK).is_file()
        assert files.contents(tmp_path / "runs/new") == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"), files.held(tmp_path / "file/run"):
        pass


def test_processes_of_one_run_do_not_refuse_each_other(tmp_path, monkeypatch):
    with files.held(tmp_path):
        monkeypatch.setenv("RANK", "1")
        assert rank_and_count()[0] == 1
        with files.held(tmp_path):
            pass
        assert (tmp_path / files.LOCK).is_file()


def test_a_child_waits_for_the_one_that_its_killed_parent_left(tmp_path):
    process = holding(tmp_path)
    child = "from basic_lite.experiments import processes; from pathlib import Path\n"
    child += f"with processes.begin(Path({str(tmp_path)!r}), 1): pass"
    second = subprocess.Popen([sys.executable, "-c", child])
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=8)
    process.kill()
    process.communicate()
    assert second.wait(timeout=60) == 0
    assert processes.PATIENCE > 8


def started(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_two_starts_and_a_kill(tmp_path):
    """The commands themselves: refused while the first trains, whatever is given; resumed after kill -9."""
    out = tmp_path / "run"
    arguments = command(write_rows(tmp_path), out, 2000)
    process = started(arguments)
    try:
        while process.poll() is None and lines(out) < 2:
            time.sleep(0.05)
        typed = arguments[3:]
        for flags in ([], ["--overwrite"], ["--resume"]):
            said = run(*typed, *flags, cwd=tmp_path, expect=2).stderr
            assert f"is being written by process {process.pid} (-c stage1 " in said
            assert said.count("\n") == 1
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (out / files.LOCK).is_file()
        refused = run(*typed, cwd=tmp_path, expect=2).stderr  # not for the lock: the run is there to resume
        assert "already holds a run; go on with --resume" in refused
        again = started([*arguments, "--resume"])
        begun = lines(out)
        while again.poll() is None and lines(out) <= begun + 1:
            time.sleep(0.05)
        assert again.poll() is None, again.stderr.read()
        again.terminate()
        again.communicate(timeout=120)
    finally:
        process.kill()
    assert not list(out.glob(".lock*"))
