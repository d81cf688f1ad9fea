"""One command at a time writes a run folder; a second one is told in one line which process the first is.

The lock is the kernel's (`filelock`): it is released when its process dies, however that happens.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from basic_lite.console import rank_and_count
from basic_lite.writing import write_json

LOCK: str = ".lock"
HOLDER: str = ".lock.json"
"""What is locked, and who holds it: a file of its own, since Windows lets nobody read a locked one."""

GRACE: float = 10.0
"""Seconds in which the kernel has released the lock of a process that is gone.

Workers that a training process forked notice its death within five seconds.
"""


@contextmanager
def held(folder: Path, *, beside: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Keep other commands from writing a folder until the block ends.

    Of the processes of one run (`accelerate launch`) the first holds the lock for all. The lock lies inside
    the folder, so that it is the same one wherever the folder is mounted.

    Args:
        folder: Run folder; made if it is missing, and removed again if nothing was written into it.
        beside: Put the lock beside the folder, which must not exist before it is complete.
        wait: Seconds to wait for a process that holds the lock.

    Raises:
        ValueError: In one line, if another process holds it (names that process), or if the folder cannot be
            written to.
    """
    if rank_and_count()[0] > 0:
        yield
        return
    place, prefix = (folder.absolute().parent, f".{folder.name}") if beside else (folder, "")
    path, holder = place / f"{prefix}{LOCK}", place / f"{prefix}{HOLDER}"
    made = [one for one in (place, *place.absolute().parents) if not one.exists()]
    lock = FileLock(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, holder, wait)
        write_json(holder, _this_process())
    except OSError as error:
        lock.release()
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror or error}); choose another --out"
        ) from error
    try:
        yield
    finally:
        # Before the release: whoever opened the file already sees that it has no name, and opens anew.
        for leftover in (holder, path):
            with suppress(OSError):  # Windows removes an open file when it is closed
                leftover.unlink()
        lock.release()
        for one in made:
            with suppress(OSError):  # not empty: something was written
                one.rmdir()


def contents(folder: Path) -> list[Path]:
    """Return what stands in a folder, apart from its lock; nothing where there is no folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name not in (LOCK, HOLDER)]


def _acquire(lock: FileLock, folder: Path, holder: Path, wait: float) -> None:
    begun = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout:
            other = _read(holder)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            # NFS without its lock service, say: no reason to refuse a run.
            print(
                f"{folder} is on a file system without locks: nothing keeps a second command out of it",
                file=sys.stderr,
            )
            return
        patience = wait if _runs(other) else max(GRACE, wait)
        if time.monotonic() - begun >= patience:
            raise ValueError(
                f"{folder} is being written by {_named(other)}; wait until it ends, or choose another --out"
            )
        time.sleep(0.1)


def _this_process() -> dict[str, object]:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(words),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "began": _began(os.getpid()),
    }


def _began(pid: int) -> float | None:
    """Return when a process began: another one may have its number later. `None` if it is gone."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _read(holder: Path) -> dict:
    try:
        return json.loads(holder.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _runs(other: dict) -> bool:
    """Say whether a holder can be alive; one that was killed may have left its name behind."""
    if not other:
        return False  # it is about to write its name, or to let go
    if other["host"] != socket.gethostname():
        return True
    began = _began(other["pid"])
    return began is not None and abs(began - other["began"]) < 1


def _named(other: dict) -> str:
    if not other:
        return "another process"
    command = other["command"] if len(other["command"]) <= 200 else f"{other['command'][:197]}..."
    where = "" if other["host"] == socket.gethostname() else f" on {other['host']}"
    return f"process {other['pid']}{where} ({command}, since {other['since']})"
