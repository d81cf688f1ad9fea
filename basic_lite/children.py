"""Processes that train for a command: how they begin, and how they are stopped.

A command starts a child with `start`, inside `together`, which stops all of them whatever happens. The child
calls `begin` and trains with `train`. Between the two there are files (`basic_lite.progress`) and one number:
`STOPPED`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from basic_lite import loggers, run_lock
from basic_lite.run_folder import checkpoints, is_finished

STOPPED: int = 75
"""Exit code of a child that a signal stopped and that can go on where it was (EX_TEMPFAIL: try again)."""

PATIENCE: float = 120.0
"""Seconds that a child waits for an earlier one in its folder, whose parent is gone."""

ERRORS: str = "errors.txt"
"""What a child wrote to standard error, in its folder."""


def start(module: str, task: Mapping[str, Any], folder: Path, threads: int) -> subprocess.Popen:
    """Start a module in a process of its own.

    Args:
        module: What `python -m` runs; it reads `task` from its first argument.
        task: Plain JSON.
        folder: Of the child; made if it is not there.
        threads: Of the CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, json.dumps({**task, "threads": threads})]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (folder / ERRORS).open("w") as errors:
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which tells each child once.
        return subprocess.Popen(
            command, stdout=errors, stderr=errors, env=environment, start_new_session=True
        )


@contextlib.contextmanager
def together() -> Iterator[dict[str, subprocess.Popen]]:
    """Give a dict for running children; those in it at the end are told to stop and waited for.

    The end may have come by an exception.

    Raises:
        KeyboardInterrupt: Within, on Ctrl-C and on SIGTERM alike: neither may leave children behind.
    """
    running: dict[str, subprocess.Popen] = {}
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, old)


def succeeded(process: subprocess.Popen) -> bool:
    """Say whether a child that has ended did what it was started for.

    Raises:
        KeyboardInterrupt: If a signal stopped it. Somebody wants the work stopped: the other children's too.
    """
    if process.returncode in (STOPPED, -signal.SIGTERM):
        raise KeyboardInterrupt
    return process.returncode == 0


def last_words(folder: Path) -> str:
    """Return the last line that a child wrote to standard error, and where the others are."""
    log = folder / ERRORS
    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no message"]
    return f"{last[0]} (all of it in {log})"


@contextlib.contextmanager
def begin(folder: Path, threads: int) -> Iterator[None]:
    """Be a child: few threads, prints in `console.txt`, and an end when the parent is gone."""
    import torch

    torch.set_num_threads(threads)
    _follow_parent()
    # A child whose parent was killed stops after its step: the next one waits for that.
    with (
        run_lock.held(folder, wait=PATIENCE),
        (folder / "console.txt").open("a", encoding="utf-8") as console,
        contextlib.redirect_stdout(console),
        loggers.aside(),
    ):
        yield


def _follow_parent(interval: float = 2.0) -> None:
    """Stop this process, as a signal would, when the one that started it is gone (killed, say)."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()


def train(stage: Callable[..., None], folder: Path, **options: object) -> None:
    """Train a stage, or go on with it, unless it is finished.

    Raises:
        SystemExit: With `STOPPED`, if a signal stopped it with a checkpoint.
    """
    if is_finished(folder):
        return
    resume = bool(checkpoints(folder))
    stage(out=folder, resume=resume, overwrite=not resume, **options)
    if not is_finished(folder):
        sys.exit(STOPPED)
