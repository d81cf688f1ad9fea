"""What stands in a run's folder, as far as it can be read without torch.

Nothing is ever guessed from a path or a name: `manifest.json` says which LLM, tower, template, stage, k,
embedding convention and data a folder belongs to. Scorers and checks read it in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from basic_lite import repository, writing, zoo

MANIFEST: str = "manifest.json"
PROJECTOR: str = "projector.safetensors"
ADAPTER: str = "adapter_config.json"
ADAPTER_WEIGHTS: str = "adapter_model.safetensors"
DECODER: str = "decoder.safetensors"
"""Weights of a decoder that was tuned as a whole, with its head."""

WEIGHTS: tuple[str, ...] = ("*.safetensors",)
STATE: tuple[str, ...] = ("*.pt", "*.pth")
"""Files whose hashes a manifest holds: under `weights`, and a checkpoint's of the Trainer under `state`."""

CHECKED: str = ".checked.json"
"""Files that were found whole, with size and times: one that has not changed since is not read again."""

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
    """Versions of what decides the numbers."""
    names = (
        "basic-lite",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "bitsandbytes",
        "datasets",
        "pillow",
    )
    return {name: version(name) for name in names}


def identity(source: str, config: object) -> dict[str, object]:
    """Say which weights a folder or hub id stands for.

    Returns:
        The hub's commit, and for a folder a hash of its configuration with names and sizes of its weights.
    """
    folder, found = Path(zoo.located(source)), {"revision": getattr(config, "_commit_hash", None)}
    if folder.is_dir():
        digest = hashlib.sha256((folder / "config.json").read_bytes())
        files = (path for path in repository.weight_files(folder) if path.is_file())
        for path in sorted({*folder.glob("*.safetensors"), *files}):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
        found["fingerprint"] = digest.hexdigest()[:16]
    return found


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hashes(folder: Path, patterns: tuple[str, ...] = WEIGHTS) -> dict[str, str]:
    """Return the SHA-256 of a folder's own files by name, in order; drafts are left out."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {path.name: file_hash(path) for path in paths if not path.name.startswith(".")}


def check_files(folder: str | Path, *kinds: str) -> None:
    """Compare a run's files with the hashes in its manifest; one of an older version has none.

    Every file is read once. What was found stands in `.checked.json` beside the manifest, and a file of
    the same size and times is believed from then on. (The time of an inode's last change cannot be set back.)

    Args:
        folder: Of a run, or a checkpoint.
        kinds: `"weights"`, and for a checkpoint `"state"`.

    Raises:
        ValueError: If a file is missing or has changed; names it, and says what to do.
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
            found = _hash_in(path, state)
            if found != sha:
                raise ValueError(
                    f"{path} is not what the run wrote (its SHA-256 begins with {found[:8]}, {MANIFEST} says "
                    f"{sha[:8]}): {_remedy(folder, name, sha)}"
                )
        after[name] = entry
    if not after.items() <= before.items():
        with suppress(OSError):  # a folder that cannot be written is read anew each time
            writing.write_json(folder / CHECKED, before | after)


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache
def _hash_in(path: Path, state: tuple[int, int, int]) -> str:
    """Return a file's hash, once for each state of it."""
    return file_hash(path)


def _remedy(folder: Path, name: str, sha: str) -> str:
    """Say how a file can be had again."""
    if folder.name.startswith("checkpoint-"):
        return (
            f"remove {folder}, and --resume goes on from the checkpoint before; or --overwrite starts again"
        )
    whole = next((path / name for path in reversed(checkpoints(folder)) if _is(path / name, sha)), None)
    if whole is not None:
        return f"copy {whole} over it, which is whole"
    return "bring it back from a copy, or train the stage again with --overwrite"


def _is(path: Path, sha: str) -> bool:
    return path.is_file() and file_hash(path) == sha


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


def check_archives(checkpoint: Path) -> None:
    """Read every file that `torch.save` wrote into a checkpoint against the sums that it holds of itself.

    Raises:
        ValueError: If one is cut off or a byte of it has changed.
    """
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
