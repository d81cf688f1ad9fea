"""Files that are either whole or not there, and the run folder: its names, manifest, hashes and lock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import socket
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

if TYPE_CHECKING:
    import numpy as np

from basic_lite.console import rank_and_count


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
    """Keep other processes from writing `target`, and yield whether this one may, at once or after a `wait`.

    The lock is a file beside it; the kernel lets go of it when the process dies.
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
def write_errors(what: Path) -> Iterator[None]:
    """Turn any library's error of writing into one line that names what could not be written."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = one_line(error, 1000)
        if isinstance(error, RuntimeError) and not any(mark in reason for mark in _TORCH_WRITER):
            raise
        if reason.endswith(_UNTOUCHED):  # a file's error has passed the folder that it belongs to
            raise
        raise OSError(f"{what} could not be written ({reason[:160]}); {_UNTOUCHED}") from error


_TORCH_WRITER = ("PytorchStreamWriter", "inline_container")  # in torch.save's errors, which have no class
_UNTOUCHED = "what was complete before is untouched: free some disk, and go on with --resume"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text so that a reader sees the old file or the new one, never half of it; return its path."""
    with complete(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: object) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log of JSON lines, which may be growing; none where there is no file yet.

    Lines that a kill or a full disk cut off are left out: the last one, and those that a resumed run went on
    after.
    """
    rows = []
    # They may be cut inside a character, and `splitlines` would split at some that JSON does not escape.
    for line in path.read_text("utf-8", "replace").split("\n") if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an error's text on one line, its kind where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


MANIFEST: str = "manifest.json"
"""Says which LLM, tower, template, stage, k, embedding convention and data a run folder belongs to: nothing
is guessed from a path or a name."""

PROJECTOR: str = "projector.safetensors"
ADAPTER: str = "adapter_config.json"
ADAPTER_WEIGHTS: str = "adapter_model.safetensors"
DECODER: str = "decoder.safetensors"  # weights of a decoder that was tuned as a whole, with its head
TOWER: str = "tower.safetensors"
"""Weights of a vision tower that was trained, as far as its features depend on them."""

WEIGHTS: tuple[str, ...] = ("*.safetensors",)
STATE: tuple[str, ...] = ("*.pt", "*.pth", "stream.json", "unlogged.json")
"""Files whose hashes a manifest holds: under `weights`, and a checkpoint's of the Trainer under `state`."""

CHECKED: str = ".checked.json"
"""Files that were checked, with size and times: one that has not changed since is not read again."""

FORMAT: int = 1  # version of the manifest; a reader refuses one that it does not know

EMBEDDING_SPACE: str = "first decoder layer's input; E = raw embed_tokens.weight"
"""The convention of `v`, `v^` and `E` (for Gemma it moves the logits by 45x): a run of another one is
refused."""


def read_manifest(folder: str | Path) -> dict:
    """Read a run's manifest; ValueError if it is missing, damaged, or of another format or convention."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (Path(folder) / "config.json").is_file():
            raise ValueError(
                f"{folder} is a model, no run (no {MANIFEST}): name the run that it was exported from; eval "
                "--model asks a model, and stage2 --start trains it"
            ) from error
        raise ValueError(
            f"{folder} holds no run (no {MANIFEST}); run the stage before, or name its folder"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of format {manifest.get('format')!r}; this version of basic-lite reads format "
            f"{FORMAT}"
        )
    if manifest["method"]["embedding_space"] != EMBEDDING_SPACE:
        raise ValueError(f"{path} was trained with another embedding convention and cannot be continued here")
    return manifest


def versions() -> dict[str, str]:
    names = "basic-lite torch transformers tokenizers peft accelerate bitsandbytes datasets pillow numpy"
    installed = {"python": platform.python_version()}
    for name in names.split():
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def file_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hashes(folder: Path, patterns: tuple[str, ...] = WEIGHTS) -> dict[str, str]:
    """Return the SHA-256 of a folder's own files by name, in order; drafts are left out."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {path.name: file_hash(path) for path in paths if not path.name.startswith(".")}


def check_files(folder: str | Path, *kinds: str) -> None:
    """Compare a run's files with the hashes in its manifest; one of an older version has none.

    `kinds` are `"weights"` and, for a checkpoint, `"state"`. Every file is read once: the results stand in
    `.checked.json`, and a file of the same size and times (of which ctime cannot be set back) is believed.
    """
    folder = Path(folder)
    manifest, before, after = read_manifest(folder), {}, {}
    with suppress(OSError, ValueError):
        before = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    wanted: Mapping[str, str] = {name: sha for kind in kinds for name, sha in manifest.get(kind, {}).items()}
    for name, sha in wanted.items():
        path = folder / name
        try:
            state = _state(path)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: {_remedy(folder, name, sha)}") from None
        entry = [sha, *state]
        if before.get(name) != entry:
            now = _hash_in(path, state)
            if now != sha:
                raise ValueError(
                    f"{path} is not what the run wrote (its SHA-256 begins with {now[:8]}, {MANIFEST} says "
                    f"{sha[:8]}): {_remedy(folder, name, sha)}"
                )
        after[name] = entry
    if not after.items() <= before.items():
        with suppress(OSError):  # a folder that cannot be written is read anew each time
            write_json(folder / CHECKED, before | after)


def _state(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


@lru_cache
def _hash_in(path: Path, state: tuple[int, int, int]) -> str:
    """Return a file's hash, once for each state of it."""
    return file_hash(path)


def _remedy(folder: Path, name: str, sha: str) -> str:
    """Return what to do to have a file again."""
    if folder.name.startswith("checkpoint-"):
        return (
            f"remove {folder}, and --resume goes on from the checkpoint before; or --overwrite starts again"
        )
    for path in reversed([checkpoint / name for checkpoint in checkpoints(folder)]):
        if path.is_file() and file_hash(path) == sha:
            return f"copy {path} over it, which is whole"
    return "bring it back from a copy, or train the stage again with --overwrite"


def is_finished(folder: str | Path) -> bool:
    """Return whether a folder holds a run that reached its last step; `False` without a manifest."""
    return (Path(folder) / MANIFEST).is_file() and read_manifest(folder)["finished"]


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    whole = [
        path
        for path in Path(folder).glob("checkpoint-*")
        if path.name[11:].isdigit() and (path / "trainer_state.json").is_file()
    ]
    return sorted(whole, key=lambda path: int(path.name[11:]))


def check_archives(checkpoint: Path) -> None:
    """Check every file that `torch.save` wrote into a checkpoint against the sums that it holds of itself."""
    for path in sorted(checkpoint.glob("*.pt*")):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            broken = str(error)
        if broken is not None:
            raise ValueError(
                f"{path} is damaged ({broken}); remove {checkpoint.name}, and --resume goes on from the one "
                "before"
            )


def table_places(path: Path, kind: str) -> list[Path]:
    """Return where columns of numbers about `path` may be kept: beside it, else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "basic_lite"
    name = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    beside = [path.with_name(f"{path.name}.{kind}")] if path.exists() else []  # a hub id is no path
    return [*beside, cache / f"{name}.{kind}"]


def load_table(
    places: list[Path], key: Mapping[str, str], columns: Mapping[str, type[np.generic]]
) -> tuple[dict[str, str], dict[str, np.ndarray]] | None:
    """Load the first of `places` that was saved with `key` and has columns of these kinds.

    Returns all that was saved as text, and the columns; `None` if there is no such table or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    for place in places:
        try:
            with safe_open(place, framework="np") as file:
                meta = file.metadata() or {}
                table = {name: file.get_tensor(name) for name in columns}
        except (OSError, SafetensorError):
            continue
        same = all(meta.get(name) == value for name, value in key.items())
        if same and all(table[name].dtype == kind for name, kind in columns.items()):
            return meta, table
    return None


def save_table(places: list[Path], meta: Mapping[str, str], columns: Mapping[str, np.ndarray]) -> Path | None:
    """Save a table at the first place that can be written; return it, or `None` if there is none."""
    import numpy as np
    from safetensors.numpy import save_file

    for place in places:
        # Not `complete`: workers of one run may save the same table at once, each its own draft.
        part = place.with_name(f"{place.name}.{os.getpid()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: np.ascontiguousarray(c) for name, c in columns.items()}, part, metadata=dict(meta)
            )
            os.replace(part, place)  # a reader sees the old table or the new one, never a half
            return place
        except OSError:
            part.unlink(missing_ok=True)
    return None


LOCK: str = ".lock"
HOLDER: str = ".lock.json"
"""What is locked, and who holds it: a file of its own, since Windows lets nobody read a locked one."""

GRACE: float = 10.0
"""Seconds in which the kernel has released the lock of a process that is gone.

Workers that a training process forked notice its death within five seconds.
"""


@contextmanager
def held(folder: Path, *, beside: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Keep other commands from writing a folder until the block ends; their error names this one.

    The kernel releases the lock when its process dies. Of the processes of one run (`accelerate launch`) the
    first holds it for all. It lies inside the folder, so that it is the same one wherever that is mounted;
    with `beside` it does not, as the folder must not exist before it is complete. The folder is made if it is
    missing, and removed again if nothing was written. Raises ValueError if another process holds it after
    `wait` seconds, or the folder cannot be written to.
    """
    if rank_and_count()[0] > 0:
        yield
        return
    place, prefix = (folder.absolute().parent, f".{folder.name}") if beside else (folder, "")
    path, holder = place / f"{prefix}{LOCK}", place / f"{prefix}{HOLDER}"
    made = [parent for parent in (place, *place.absolute().parents) if not parent.exists()]
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
        for parent in made:
            with suppress(OSError):  # not empty: something was written
                parent.rmdir()


def contents(folder: Path) -> list[Path]:
    """Return what stands in a folder, apart from its lock; nothing where there is no folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return [path for path in paths if path.name not in (LOCK, HOLDER)]


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
    """Return whether a holder can be alive; a killed one may have left its name."""
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
