"""Work on many things in several processes that share nothing, may be interrupted, and may die."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

AHEAD: int = 4
"""Jobs given out per process before the first of them is done: a list of all would grow with the data."""


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


def in_processes(
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int,
    start: Callable[..., None] | None = None,
    *given: Any,
) -> Iterator[Any]:
    """Yield `work(job)` for every job, in order.

    Processes are spawned, not forked: whoever calls may hold threads or a GPU. An interrupt is heard here
    alone, between two jobs; the processes finish what they are at.

    Args:
        work: done in another process; a function of a module.
        jobs: what to do it with.
        workers: how many processes.
        start: called once in each of them.
        given: what it is called with.

    Yields:
        The results. `BrokenProcessPool` after the n-th means that one of the next `AHEAD * workers` jobs took
        its process down.

    Raises:
        RuntimeError: If processes cannot be started at all.
        KeyboardInterrupt: After all processes have ended.
    """
    with _held_interrupts() as interrupted, _pool(workers, start, given) as pool:
        waiting: deque[Future] = deque()
        left = iter(jobs)
        try:
            with _deaf():
                ready = pool.submit(_nothing)
            try:
                _result(ready, interrupted)
            except BrokenProcessPool:
                raise RuntimeError(
                    "no worker process could be started: call this under `if __name__ == '__main__':`, "
                    "or use one worker"
                ) from None
            while True:
                while len(waiting) < AHEAD * workers and (job := next(left, _END)) is not _END:
                    with _deaf():
                        waiting.append(pool.submit(work, job))
                if not waiting:
                    return
                yield _result(waiting[0], interrupted)
                waiting.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_END = object()


def _nothing() -> None:
    """Show that a process can be started."""


def _pool(workers: int, start: Callable[..., None] | None, given: tuple) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start, given)


def _result(future: Future, interrupted: list[int]) -> Any:
    while True:
        if interrupted:
            raise KeyboardInterrupt
        try:
            return future.result(timeout=0.2)
        except TimeoutError:
            if future.done():  # the work itself timed out
                raise


@contextlib.contextmanager
def _held_interrupts() -> Iterator[list[int]]:
    """Collect interrupts instead of raising them anywhere: a pool that is half-started never ends."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Start processes in here and they never hear an interrupt: a process inherits what is blocked."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it starts with the first process otherwise, and unblocks
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
