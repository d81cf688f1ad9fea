"""Columns of numbers about a file, kept beside it or in the user's cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np


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
