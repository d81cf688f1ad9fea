"""Files and folders that are either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError


@contextmanager
def complete(target: Path) -> Iterator[Path]:
    """Give a path to write a file or folder at; it takes `target`'s place only when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part")
    remove(draft)
    try:
        yield draft
        for path in draft.rglob("*") if draft.is_dir() else [draft]:
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
    except BaseException:  # a full disk, say: what is half written would only take room
        remove(draft)
        raise
    if target.is_dir():  # a folder cannot be renamed onto a full one
        old = target.with_name(f".{target.name}.old")
        remove(old)
        target.rename(old)
        draft.rename(target)
        remove(old)
    else:
        draft.replace(target)


@contextmanager
def locked(target: Path, wait: bool = False) -> Iterator[bool]:
    """Keep other processes from writing `target`, and say whether this is the one that may.

    The lock is a file beside it; the kernel lets go of it when the process dies.

    Args:
        target: A file or folder, there or not.
        wait: For another process to let go; otherwise `False` is given at once where one holds it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def told(what: Path) -> Iterator[None]:
    """Say in one line that something could not be written, whichever library noticed.

    Raises:
        OSError: Of safetensors' own error for a full disk, torch's, or the system's.
    """
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(mark in reason for mark in _TORCH_WRITER):
            raise
        if reason.endswith(_UNTOUCHED):  # a file's error has passed the folder that it belongs to
            raise
        raise OSError(f"{what} could not be written ({reason[:160]}); {_UNTOUCHED}") from error


_TORCH_WRITER = (
    "PytorchStreamWriter",
    "inline_container",
)  # names in torch.save's errors, which have no class
_UNTOUCHED = "what was complete before is untouched: free some disk, and go on with --resume"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    with complete(path) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
