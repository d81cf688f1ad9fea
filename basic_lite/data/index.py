"""The index of an annotation file: where each row is, how long, and what is wrong with it.

665,298 rows take 31 bytes each, 20 MB, kept next to the file, so that starting a run parses nothing.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from basic_lite.data.jsonfile import row_spans
from basic_lite.data.layouts import read_row
from basic_lite.data.samples import CODES, RowFault, normal_form

FORMAT: str = "2"
"""Raise it when the meaning of a column changes: older index files are then built anew."""

COLUMNS: dict[str, type[np.generic]] = {
    "offset": np.int64,
    "size": np.int64,
    "tokens": np.int32,
    "images": np.uint16,
    "fault": np.uint8,
    "id_hash": np.uint64,
}


@dataclass(frozen=True)
class Index:
    """Columns over the rows of one annotation file.

    Attributes:
        sha256: of the whole file.
        offset: `(rows,)` int64, first byte of each row.
        size: `(rows,)` int64, bytes of each row.
        tokens: `(rows,)` int32, estimated text tokens (see `estimated_tokens`).
        images: `(rows,)` uint16, pictures of each row.
        fault: `(rows,)` uint8, 0 or 1 + the place in `CODES` of what is wrong with the row's text.
        id_hash: `(rows,)` uint64, to find repeated ids; 0 for rows without an id.
    """

    sha256: str
    offset: np.ndarray
    size: np.ndarray
    tokens: np.ndarray
    images: np.ndarray
    fault: np.ndarray
    id_hash: np.ndarray


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text without a tokenizer: one per 4 letters, or per Chinese or Korean sign.

    Bytes beyond one per character tell the script apart: 0 for ASCII, 1 for Cyrillic, 2 for Chinese.
    """
    characters = len(text)
    if text.isascii():
        return characters // 4 + 1
    wide = (len(text.encode("utf-8", "surrogatepass")) - characters) / 2
    return int((characters - min(wide, characters)) / 4 + wide) + 1


def parse_row(line: bytes | memoryview) -> object:
    """Parse one row; NaN, Infinity, broken UTF-8 and nesting beyond the parser's depth are faults.

    Raises:
        RowFault: `malformed_row`.
    """
    try:
        return json.loads(str(line, "utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RowFault("malformed_row", f"broken UTF-8 at byte {error.start} of the row") from None
    except json.JSONDecodeError as error:
        raise RowFault("malformed_row", f"no JSON: {error.msg} at character {error.pos} of the row") from None
    except (RecursionError, ValueError) as error:  # ValueError: a number of more than 4300 digits
        raise RowFault("malformed_row", f"no JSON: {str(error)[:120]}") from None


def _refuse_constant(name: str) -> None:
    raise RowFault("malformed_row", f"{name} is no JSON value")


def inspect_row(line: bytes | memoryview) -> tuple[int, int, int, int]:
    """Return the columns `tokens, images, fault, id_hash` of one row."""
    try:
        raw = read_row(parse_row(line))
    except RowFault as fault:
        return 0, 0, CODES.index(fault.code) + 1, 0
    fault_code = 0
    try:
        normal_form(raw)
    except RowFault as fault:
        fault_code = CODES.index(fault.code) + 1
    tokens = sum(estimated_tokens(text) for _, text in raw.turns)
    name = raw.id.encode("utf-8", "surrogatepass")
    id_hash = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") if name else 0
    return min(tokens, 2**31 - 1), min(len(raw.images), 2**16 - 1), fault_code, id_hash


def open_index(path: Path, *, progress: Callable[[str, int, int], None] | None = None) -> Index:
    """Load the index of an annotation file, or build and keep it.

    It is kept beside the file, or in the user's cache folder where that place cannot be written; it is used
    again as long as the file's size and time of change are the same.

    Args:
        path: the annotation file.
        progress: called with what is being done, how much of it is done, and of how much.

    Returns:
        The index.

    Raises:
        ValueError: If the file is missing, empty, or no JSON array or JSONL.
    """
    if not path.is_file():
        raise ValueError(f"no annotation file at {path}: give a LLaVA .json or .jsonl file")
    stat = path.stat()
    key = {"format": FORMAT, "bytes": str(stat.st_size), "mtime_ns": str(stat.st_mtime_ns)}
    places = _places(path)
    for place in places:
        found = _load(place, key)
        if found is not None:
            return found
    index = build_index(path, progress=progress)
    for place in places:
        if _save(index, place, key):
            break
    return index


def build_index(path: Path, *, progress: Callable[[str, int, int], None] | None = None) -> Index:
    """Read the whole annotation file once and describe its rows; see `open_index` for the arguments."""
    tell = progress or (lambda *_: None)
    total = path.stat().st_size
    if not total:
        raise ValueError(f"{path} is empty: expected a JSON array of rows, or one row per line")
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    spans = row_spans(data, str(path), lambda done: tell("finding rows", done, total))
    if not len(spans):
        raise ValueError(f"{path} holds no rows: expected a JSON array of rows, or one row per line")
    digest = hashlib.sha256(data).hexdigest()
    rest = np.empty((len(spans), 4), np.uint64)
    for row, (offset, size) in enumerate(spans.tolist()):
        rest[row] = inspect_row(data[offset : offset + size])
        if row % 4096 == 0:
            tell("reading rows", row, len(spans))
    columns = [spans[:, 0], spans[:, 1], *rest.T]
    made = {
        name: np.ascontiguousarray(c.astype(t)) for (name, t), c in zip(COLUMNS.items(), columns, strict=True)
    }
    return Index(digest, **made)


def _places(path: Path) -> list[Path]:
    """Return where an index may be kept, best first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "basic_lite"
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return [path.with_name(f"{path.name}.index"), cache / f"{name}.index"]


def _load(place: Path, key: dict[str, str]) -> Index | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="np") as file:
            meta = file.metadata() or {}
            if {name: meta.get(name) for name in key} != key:
                return None
            columns = {name: file.get_tensor(name) for name in COLUMNS}
    except (OSError, SafetensorError):
        return None
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or any(columns[name].dtype != kind for name, kind in COLUMNS.items()):
        return None
    return Index(meta["sha256"], **columns)


def _save(index: Index, place: Path, key: dict[str, str]) -> bool:
    from safetensors.numpy import save_file

    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: getattr(index, name) for name in COLUMNS}, part, metadata={**key, "sha256": index.sha256}
        )
        os.replace(part, place)  # a reader sees the old index or the new one, never a half
    except OSError:
        part.unlink(missing_ok=True)
        return False
    return True
