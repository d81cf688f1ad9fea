"""Work on many things in several processes that share nothing, may be interrupted, and may die."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def shared_heap() -> Iterator[None]:
    """Let processes that are forked in here share what is in memory now.

    The collector writes into every object that it looks at, and a page that is written is copied: some 130 MB
    per process with torch and transformers loaded. Objects that exist now are not collected meanwhile.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def in_processes(work: Callable[..., Any], jobs: Sequence[Any], workers: int, *given: Any) -> Iterator[Any]:
    """Yield `work(job)` for every job, in order; raises RuntimeError if processes cannot be started at all.

    Processes are spawned, not forked: the caller may hold threads or a GPU; `work` is a function or class of
    a module. With `given`, the large things that the work needs, each process calls `work(*given)` once, and
    does with jobs what that returns. Only the caller hears an interrupt; the processes finish what they are
    at. `BrokenProcessPool` after the n-th result means that a later job took its process down, most likely
    one of the next few.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (work, given)) as pool:
        with _deaf():
            ready = pool.submit(os.getpid)
        try:
            ready.result()
        except BrokenProcessPool:
            raise RuntimeError(
                "no worker process could be started: call this under `if __name__ == '__main__':`, "
                "or use one worker"
            ) from None
        with _deaf():
            results = pool.map(_do, jobs)  # it cancels what is left where this generator is closed
        yield from results


_work: Callable[[Any], Any]


def _begin(work: Callable[..., Any], given: tuple) -> None:
    global _work
    _work = work(*given) if given else work


def _do(job: Any) -> Any:
    return _work(job)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Start processes in here, and they ignore interrupts from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
