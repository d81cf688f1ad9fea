"""Many runs in processes of their own, as many at a time as the machine holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from basic_lite.ablation.measures import path_of

STOPPED: int = 3
"""Exit code of a run that a signal stopped, with a checkpoint to go on from."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm: its key.
        seed: of the world, the projector and the order of rows.
        folder: of its stages and measures.
        steps: what is to be done, in order; each leaves a file of measures.
        task: what the process is told, plain JSON.
    """

    arm: str
    seed: int
    folder: Path
    steps: tuple[str, ...]
    task: dict[str, object]

    @property
    def finished(self) -> bool:
        """Whether every step has been measured."""
        return all(path_of(self.folder, step).is_file() for step in self.steps)

    @property
    def name(self) -> str:
        """For a display."""
        return f"{self.arm}, seed {self.seed}"


def free_bytes() -> int:
    """Return the memory that the system says can be taken now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def jobs_for(runs: int, needed: int, on_gpu: bool) -> int:
    """Return how many runs to have at a time: a core each within nine tenths of the memory; one on a GPU.

    Args:
        runs: how many there are.
        needed: bytes that one takes.
        on_gpu: they share one card.
    """
    if on_gpu:
        return 1
    return max(1, min(runs, cores(), int(0.9 * free_bytes()) // needed))


def start(run: Run, threads: int) -> subprocess.Popen:
    """Start a run's process; what it prints goes to files in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "basic_lite.recipes.arm", json.dumps(run.task | {"threads": threads})]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (run.folder / "errors.txt").open("w") as errors:
        # A session of its own: Ctrl-C reaches the parent alone, which tells each child once.
        return subprocess.Popen(
            command, stdout=errors, stderr=errors, env=environment, start_new_session=True
        )


def run_all(
    runs: Sequence[Run],
    jobs: int,
    threads: int,
    look: Callable[[Sequence[Run], int, int], None],
    interval: float = 0.5,
) -> None:
    """Do all runs that are not finished, and stop them all when this process is told to stop.

    Args:
        runs: finished ones among them are left alone.
        jobs: how many at a time.
        threads: of the CPU, each.
        look: called every `interval` seconds with the running ones, how many are done and how many failed.
        interval: seconds.

    Raises:
        KeyboardInterrupt: On Ctrl-C or SIGTERM, when all runs have saved and stopped.
        ValueError: If runs failed, when the others are done; says where the first one's output is.
    """
    waiting = [run for run in runs if not run.finished]
    done, failed = len(runs) - len(waiting), []
    running: dict[str, tuple[Run, subprocess.Popen]] = {}
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run.name] = (run, start(run, threads))
            for name, (run, process) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[name]
                if code == 0 and run.finished:
                    done += 1
                else:
                    failed.append(run)
            look([run for run, _ in running.values()], done, len(failed))
            if running:
                time.sleep(interval)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, old)
    if failed:
        log = failed[0].folder / "errors.txt"
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no message"]
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed, first {failed[0].name}: {last[0]} (all of it in "
            f"{log}); the same command tries them again"
        )


def follow_parent(interval: float = 2.0) -> None:
    """Stop this process, as a signal would, when the one that started it is gone (killed, say)."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
