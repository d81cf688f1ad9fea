"""Build several parts at the same time, a process and its threads for each."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.queues import Queue

Losses = dict[str, float]
Build = Callable[[Callable[[int, Losses], None]], dict[str, float]]
"""Builds a part, calls what it is given after every step, and returns the part's probe."""


def build_beside(
    parts: Mapping[str, Build], threads: int, progress: Callable[[str, int, Losses], None]
) -> dict[str, dict[str, float]]:
    """Build parts beside one another. What comes out is what each gives alone, seeded as it is.

    Args:
        parts: How to build each; functions of modules, that can be pickled.
        threads: CPU threads of each.
        progress: Called with a part, its step and its losses, now and then.

    Returns:
        The probe of each part.

    Raises:
        RuntimeError: If a part's process fails; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    running = {
        name: context.Process(target=_build, args=(name, build, threads, told), daemon=True)
        for name, build in parts.items()
    }
    probes: dict[str, dict[str, float]] = {}
    try:
        for process in running.values():
            process.start()
        while len(probes) < len(parts):
            try:
                name, step, figures = told.get(timeout=1.0)
            except queue.Empty:
                dead = [name for name in running.keys() - probes.keys() if running[name].exitcode]
                if dead:
                    raise RuntimeError(f"building the {dead[0]} failed; its message is above") from None
                continue
            if step is None:
                probes[name] = figures
            else:
                progress(name, step, figures)
    finally:
        for process in running.values():
            process.terminate()
    return probes


def _build(name: str, build: Build, threads: int, told: Queue) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    torch.set_num_threads(threads)
    told.put((name, None, build(partial(_tell, name, told, [0.0]))))


def _tell(name: str, told: Queue, last: list[float], step: int, losses: Losses) -> None:
    """Tell of a step, but not oftener than the eye sees; of every 250th in any case, for a log."""
    if step % 250 == 249 or time.monotonic() - last[0] > 0.25:
        last[0] = time.monotonic()
        told.put((name, step, losses))
