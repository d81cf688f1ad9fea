"""Files and folders that are either whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError


@contextmanager
def complete(target: Path) -> Iterator[Path]:
    """Give a path to write a file or folder at; it takes `target`'s place only when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part")
    _remove(draft)
    try:
        yield draft
        for path in draft.rglob("*") if draft.is_dir() else [draft]:
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
    except BaseException:  # a full disk, say: what is half written would only take room
        _remove(draft)
        raise
    if target.is_dir():  # a folder cannot be renamed onto a full one
        old = target.with_name(f".{target.name}.old")
        _remove(old)
        target.rename(old)
        draft.rename(target)
        _remove(old)
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
    with target.with_name(f".{target.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


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


def _remove(path: Path) -> None:
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


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an error's text on one line, its kind where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


# What stands in a run's folder, as far as it can be read without torch.
#
# Nothing is ever guessed from a path or a name: `manifest.json` says which LLM, tower, template, stage, k,
# embedding convention and data a folder belongs to. Scorers and checks read it in milliseconds.

MANIFEST: str = "manifest.json"
PROJECTOR: str = "projector.safetensors"
ADAPTER: str = "adapter_config.json"
ADAPTER_WEIGHTS: str = "adapter_model.safetensors"
DECODER: str = "decoder.safetensors"
"""Weights of a decoder that was tuned as a whole, with its head."""

FORMAT: int = 1
"""Version of the manifest; a reader refuses one that it does not know."""

EMBEDDING_SPACE: str = "first decoder layer's input; E = raw embed_tokens.weight"
"""The convention of `v`, `v^` and `E` (for Gemma it moves the logits by 45x): a run of another one is
refused."""


def read_manifest(folder: str | Path) -> dict:
    """Read a run's manifest.

    Raises:
        ValueError: In one line, if there is none, it is damaged, or it is of another format or convention.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
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
    """Return the versions of what decides the numbers and is installed; nothing is imported."""
    names = "basic-lite torch transformers tokenizers peft accelerate bitsandbytes datasets pillow numpy"
    installed = {"python": platform.python_version()}
    for name in names.split():
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_finished(folder: str | Path) -> bool:
    """Say whether a folder holds a run that reached its last step; `False` without a manifest.

    Raises:
        ValueError: As `read_manifest`, if there is one that cannot be read.
    """
    return (Path(folder) / MANIFEST).is_file() and read_manifest(folder)["finished"]


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = [
        path
        for path in Path(folder).glob("checkpoint-*")
        if path.name[11:].isdigit() and (path / "trainer_state.json").is_file()
    ]
    return sorted(found, key=lambda path: int(path.name[11:]))


# Columns of numbers about a file, kept beside it or in the user's cache.


def table_places(path: Path, kind: str) -> list[Path]:
    """Return where a table about `path` may be kept, best first: beside it, else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "basic_lite"
    name = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    beside = [path.with_name(f"{path.name}.{kind}")] if path.exists() else []  # a hub id is no path
    return [*beside, cache / f"{name}.{kind}"]


def load_table(
    places: list[Path], key: Mapping[str, str], columns: Mapping[str, type[np.generic]]
) -> tuple[dict[str, str], dict[str, np.ndarray]] | None:
    """Load the first table that was saved with `key`.

    Args:
        places: from `table_places`.
        key: what must be the same as when it was saved.
        columns: names and kinds of the columns it must have.

    Returns:
        All that was saved as text, and the columns; `None` if there is no such table or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    for place in places:
        try:
            with safe_open(place, framework="np") as file:
                meta = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in columns}
        except (OSError, SafetensorError):
            continue
        same = all(meta.get(name) == value for name, value in key.items())
        if same and all(found[name].dtype == kind for name, kind in columns.items()):
            return meta, found
    return None


def save_table(places: list[Path], meta: Mapping[str, str], columns: Mapping[str, np.ndarray]) -> Path | None:
    """Save a table at the first place that can be written; return it, or `None` if there is none."""
    from safetensors.numpy import save_file

    for place in places:
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
