"""Many jobs in several processes that share nothing, may be interrupted, and may die."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def shared_heap() -> Iterator[None]:
    """Let processes that are forked in here share what is in memory now.

    The collector writes into every object that it visits, and a page that is written is copied: some 130 MB
    per process with torch and transformers loaded. Objects that exist now are not collected meanwhile.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def mapped(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """Yield `work(job)` for every job, in order: in this process for one worker or few jobs, else in several.

    See `in_processes`; starting a process takes seconds.
    """
    return map(work, jobs) if workers == 1 or len(jobs) < 4 else in_processes(work, jobs, workers)


def in_processes(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """Yield `work(job)` for every job, in order; raises RuntimeError if processes cannot be started at all.

    Processes are spawned, not forked: the caller may hold threads or a GPU. `work` is a function of a module,
    or a `functools.partial` of one that holds the large things it needs: each process receives it once. Only
    the caller receives an interrupt; the processes finish their jobs. `BrokenProcessPool` after the n-th
    result means that a later job killed its process, most likely one of the next few.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (work,)) as pool:
        with _interrupts_held():
            ready = pool.submit(os.getpid)
        try:
            ready.result()
        except BrokenProcessPool:
            raise RuntimeError(
                "no worker process could be started: call this under `if __name__ == '__main__':`, "
                "or use one worker"
            ) from None
        with _interrupts_held():
            results = pool.map(_do, jobs)  # it cancels what is left when this generator is closed
        yield from results


_work: Callable[[Any], Any]


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _do(job: Any) -> Any:
    return _work(job)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started in here receive no interrupts; the caller receives them afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
