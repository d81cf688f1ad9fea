"""Many runs in processes of their own, as many at a time as the machine holds."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from basic_lite import children
from basic_lite.ablation.measures import path_of


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
    return children.start("basic_lite.recipes.arm", run.task, run.folder, threads)


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
        KeyboardInterrupt: On Ctrl-C or SIGTERM, here or in a run, when all runs have saved and stopped.
        ValueError: If runs failed, when the others are done; says where the first one's output is.
    """
    waiting = [run for run in runs if not run.finished]
    done, failed = len(runs) - len(waiting), []
    started: dict[str, Run] = {}
    with children.together() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                started[run.name], running[run.name] = run, start(run, threads)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if children.succeeded(process) and started[name].finished:
                    done += 1
                else:
                    failed.append(started[name])
            look([started[name] for name in running], done, len(failed))
            if running:
                time.sleep(interval)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed, first {failed[0].name}: "
            f"{children.last_words(failed[0].folder)}; the same command tries them again"
        )
