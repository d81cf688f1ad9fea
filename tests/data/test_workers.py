import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from data.deadly_jobs import double

from basic_lite.data import workers
from basic_lite.data.workers import in_processes, shared_heap


def test_results_come_in_order() -> None:
    assert list(in_processes(double, range(40), 2)) == list(range(0, 80, 2))
    assert list(in_processes(double, [], 2)) == []


def test_a_process_that_dies_is_told_by_its_place() -> None:
    done = []
    with pytest.raises(BrokenProcessPool):
        done.extend(in_processes(double, [1, 2, 3, -1, 5], 1))  # `extend` keeps what came before
    assert done == [2, 4, 6]


def test_what_the_work_raises_comes_through() -> None:
    with pytest.raises(TimeoutError, match="from the work itself"):
        list(in_processes(double, [1, -2], 1))


def test_an_interrupt_ends_all_processes() -> None:
    handler = signal.getsignal(signal.SIGINT)
    results = in_processes(double, range(10_000), 2)
    assert next(results) == 0
    assert len(multiprocessing.active_children()) >= 2
    # Of the whole group, as a terminal sends it; the processes do not hear it.
    for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
        threading.Timer(0.2, os.kill, (process.pid, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(results)
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from basic_lite.data.workers import in_processes\nprint(list(in_processes(abs, [-1], 1)))\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert "if __name__ == '__main__':" in run.stderr.splitlines()[-1]
    script.write_text(
        "from basic_lite.data.workers import in_processes\n"
        "if __name__ == '__main__':\n    print(list(in_processes(abs, [-1], 1)))\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert run.stdout == "[1]\n"


def test_what_is_in_memory_is_shared_and_then_collected_again(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(workers, "gc", gc)
    request.addfinalizer(gc.freeze)  # as for all tests
    gc.unfreeze()

    def fail() -> None:
        with shared_heap():
            assert gc.get_freeze_count() > 10_000
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert gc.get_freeze_count() == 0


def test_an_interrupt_while_processes_start_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = ProcessPoolExecutor.submit

    def interrupted(self: ProcessPoolExecutor, *job: Callable) -> object:
        signal.raise_signal(signal.SIGINT)
        return submit(self, *job)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(in_processes(double, [1, 2], 1))
