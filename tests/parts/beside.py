"""Build several parts at the same time, in a process or a few for each."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path

Losses = dict[str, float]


@dataclass(frozen=True)
class Part:
    """A part and how it is built.

    Attributes:
        build: Builds it, calls what it is given after every step, and returns the part's probe; a function of
            a module, so that it can be pickled.
        processes: How many run it, joined by `torch.distributed` where they are several.
    """

    build: Callable[[Callable[[int, Losses], None]], dict[str, float]]
    processes: int = 1


def build_beside(
    parts: Mapping[str, Part], progress: Callable[[str, int, Losses], None]
) -> dict[str, dict[str, float]]:
    """Build parts beside one another, on one CPU thread a process.

    Args:
        parts: What to build. What comes out is what each gives alone, seeded as it is.
        progress: Called with a part, its step and its losses, now and then.

    Returns:
        The probe of each part, from the first of its processes.

    Raises:
        RuntimeError: If a process fails; all others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    probes: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as meeting:
        running = {
            (name, rank): context.Process(
                target=_build, args=(name, part, rank, Path(meeting) / name, told), daemon=True
            )
            for name, part in parts.items()
            for rank in range(part.processes)
        }
        try:
            for process in running.values():
                process.start()
            while len(probes) < len(parts):
                try:
                    name, step, figures = told.get(timeout=1.0)
                except queue.Empty:
                    dead = [name for (name, _), process in running.items() if process.exitcode]
                    if dead:
                        raise RuntimeError(f"building the {dead[0]} failed; its message is above") from None
                    continue
                if step is None:
                    probes[name] = figures
                else:
                    progress(name, step, figures)
            for process in running.values():
                process.join(timeout=10.0)
        finally:
            for process in running.values():
                process.terminate()
    return probes


def _build(name: str, part: Part, rank: int, meeting: Path, told: Queue) -> None:
    import torch
    from torch import distributed

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    torch.set_num_threads(1)
    if part.processes > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=part.processes
        )
    progress = partial(_tell, name, told, [0.0]) if rank == 0 else lambda step, losses: None
    probe = part.build(progress)
    if part.processes > 1:
        distributed.barrier()  # nobody leaves, or is ended, before all have finished
    if rank == 0:
        told.put((name, None, probe))


def _tell(name: str, told: Queue, last: list[float], step: int, losses: Losses) -> None:
    """Tell of a step, but not oftener than the eye sees; of every 250th in any case, for a log."""
    if step % 250 == 249 or time.monotonic() - last[0] > 0.25:
        last[0] = time.monotonic()
        told.put((name, step, losses))
