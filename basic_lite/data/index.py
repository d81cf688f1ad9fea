"""The index of an annotation file: where each row is, how long, and what is wrong with it.

A row takes 33 bytes and each of its images 8 more, 27 MB for 665,298 rows. The index is kept next to the
file, so that starting a run parses nothing. `datasets.load_dataset("json")` (5.2) is no way to have this: one
broken line or a cut array makes it refuse the whole file, and it names no row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from basic_lite.data.archives import path_fault
from basic_lite.data.conversation import Turn
from basic_lite.data.rows import CODES, RawRow, RowFault, normal_form, read_row, text_hash
from basic_lite.data.workers import in_processes
from basic_lite.files import load_table, save_table, table_places

# Where each row of a JSON array or of a JSONL file starts and ends, found without parsing it.

BLOCK: int = 1 << 24
"""Bytes looked at together: 16 MiB keeps the masks of one block near 100 MiB."""

BYTE_ORDER_MARK: bytes = b"\xef\xbb\xbf"
QUOTE, BACKSLASH, COMMA, NEWLINE = b'"\\,\n'
_KIND = np.zeros(256, np.int8)  # +1 opens, -1 closes, 2 separates
_IS_MARK = bytes(sign in b"[{]}," for sign in range(256))
_KIND[list(b"[{")], _KIND[list(b"]}")], _KIND[COMMA] = 1, -1, 2


def row_spans(file: BinaryIO, *, progress: Callable[[int], None] | None = None) -> np.ndarray:
    """Find the rows of an annotation file.

    A file that starts with `[` is an array whose elements are the rows; anything else is read as one row per
    line, blank lines included. Only strings and brackets are followed, so a row that is no JSON is still
    found and can be reported by its number.

    Args:
        file: open for reading bytes; its `name` is named in errors.
        progress: called with the number of bytes done.

    Returns:
        `(rows, 2)` int64: first byte and length of every row, with the blanks around it.

    Raises:
        ValueError: If the array never ends, or something follows it.
    """
    file.seek(0)
    head = file.read(4096)
    start = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    blocks = _blocks(file, start, progress or (lambda _: None))
    return (
        _array_spans(blocks, file) if head[start:].lstrip().startswith(b"[") else _line_spans(blocks, start)
    )


def _blocks(file: BinaryIO, start: int, progress: Callable[[int], None]) -> Iterator[tuple[int, np.ndarray]]:
    file.seek(start)
    while data := file.read(BLOCK):
        yield start, np.frombuffer(data, np.uint8)
        start += len(data)
        progress(start)


def _line_spans(blocks: Iterator[tuple[int, np.ndarray]], start: int) -> np.ndarray:
    ends, end = [np.array([start - 1])], start
    for at, block in blocks:
        ends.append(at + np.flatnonzero(block == NEWLINE))
        end = at + len(block)
    edges = np.concatenate([*ends, np.array([end])]).astype(np.int64)
    return np.stack([edges[:-1] + 1, np.diff(edges) - 1], axis=1)


def _array_spans(blocks: Iterator[tuple[int, np.ndarray]], file: BinaryIO) -> np.ndarray:
    in_string, escapes, depth = False, 0, 0  # state carried from block to block
    cuts: list[np.ndarray] = []  # the opening bracket, the commas between elements, the closing bracket
    for at, block in blocks:
        quotes, escapes = _real_quotes(block, escapes)
        # `translate` looks a byte up five times as fast as indexing with an array does.
        marks = np.flatnonzero(np.frombuffer(block.tobytes().translate(_IS_MARK), bool))
        marks = marks[(np.searchsorted(quotes, marks) % 2 == 1) == in_string]  # those outside strings
        kind = _KIND[block[marks]]
        in_string ^= bool(len(quotes) % 2)
        steps = np.where(kind == 2, 0, kind)
        after = depth + np.cumsum(steps, dtype=np.int64)
        top = ((kind != -1) & (after == 1)) | ((kind == -1) & (after <= 0))
        cuts.append(at + marks[top])
        if len(after):
            depth = int(after[-1])
            ended = np.flatnonzero(after <= 0)
            if len(ended):
                end = at + int(marks[ended[0]])
                cuts[-1] = cuts[-1][cuts[-1] <= end]
                file.seek(end + 1)
                if file.read(4096).strip():
                    raise ValueError(
                        f"{file.name}: text follows the array that ends at byte {end}; give one array"
                    )
                break
    else:
        raise ValueError(
            f"{file.name} ends inside row {max(sum(map(len, cuts)) - 1, 0)}: the JSON array has no end. "
            "The file is cut off: download or write it again."
        )
    edges = np.concatenate(cuts)
    return np.stack([edges[:-1] + 1, np.diff(edges) - 1], axis=1)


def _real_quotes(block: np.ndarray, escapes: int) -> tuple[np.ndarray, int]:
    """Return the quotes that no backslash escapes, and the backslashes (mod 2) that the block ends with."""
    quotes = np.flatnonzero(block == QUOTE)
    slashes = np.flatnonzero(block == BACKSLASH)
    if not len(slashes):
        return (quotes[1:] if escapes and len(quotes) and quotes[0] == 0 else quotes), 0
    fresh = np.ones(len(slashes), bool)
    fresh[1:] = np.diff(slashes) != 1
    first = np.maximum.accumulate(
        np.where(fresh, np.arange(len(slashes)), 0)
    )  # first slash of each one's run
    run = slashes - slashes[first] + 1
    if escapes and slashes[0] == 0:
        run[first == 0] += escapes
    place = np.searchsorted(slashes, quotes) - 1  # last slash before each quote
    behind = (place >= 0) & (slashes[place] == quotes - 1)
    escaped = behind & (run[place] % 2 == 1)
    if escapes and len(quotes) and quotes[0] == 0:
        escaped[0] = True
    trailing = int(run[-1]) % 2 if slashes[-1] == len(block) - 1 else 0
    return quotes[~escaped], trailing


FORMAT: str = "5"
"""Raise it when the meaning of a column changes: older index files are then built anew."""

COLUMNS: dict[str, type[np.generic]] = {
    "offset": np.int64,
    "size": np.int64,
    "tokens": np.int32,
    "images": np.uint16,
    "turns": np.uint16,
    "fault": np.uint8,
    "id_hash": np.uint64,
    "image_hash": np.uint64,
}
MOST_TURNS: int = 2**16 - 1
"""What a column can count to; rows with more say so many."""

CHUNK: int = 1 << 23
"""Bytes of rows that one worker describes at a time."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Index:
    """Columns over the rows of one annotation file.

    Attributes:
        sha256: of the whole file.
        offset: `(rows,)` int64, first byte of each row.
        size: `(rows,)` int64, bytes of each row.
        tokens: `(rows,)` int32, estimated text tokens (see `estimated_length`).
        images: `(rows,)` uint16, pictures of each row.
        turns: `(rows,)` uint16, turns of each row in normal form, 0 where it has none.
        fault: `(rows,)` uint8, 0 or 1 + the place in `CODES` of what is wrong with the row's text.
        id_hash: `(rows,)` uint64, to find repeated ids; 0 for rows without an id.
        image_hash: `(sum(images),)` uint64, to find pictures that several rows share.
    """

    sha256: str
    offset: np.ndarray
    size: np.ndarray
    tokens: np.ndarray
    images: np.ndarray
    turns: np.ndarray
    fault: np.ndarray
    id_hash: np.ndarray
    image_hash: np.ndarray


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text without a tokenizer: one per digit, Chinese or Korean sign, or 4 others.

    Bytes beyond one per character tell the script apart: 0 for ASCII, 1 for Cyrillic, 2 for Chinese.
    """
    characters = len(text)
    digits = sum(map(text.count, "0123456789"))  # LLaMA, Gemma and Phi-3 cut numbers into digits
    if text.isascii():
        return (characters + 3 * digits) // 4 + 1
    wide = (len(text.encode("utf-8", "surrogatepass")) - characters) / 2
    return int((characters + 3 * digits - min(wide, characters)) / 4 + wide) + 1


def estimated_length(turns: Sequence[Turn]) -> int:
    """Estimate the tokens of a conversation, its images apart: its texts, and some 4 around each."""
    tokens = estimated_tokens("".join([text for _, text in turns])) + 4 * len(turns)
    return min(tokens, 2**31 - 1)


def parse_row(line: bytes) -> object:
    """Parse one row; NaN, Infinity, broken UTF-8 and nesting beyond the parser's depth are faults.

    Raises:
        RowFault: `malformed_row`.
    """
    try:
        return json.loads(str(line, "utf-8"), parse_constant=_refuse_constant)
    except RowFault:
        raise
    except UnicodeDecodeError as error:
        raise RowFault("malformed_row", f"broken UTF-8 at byte {error.start} of the row") from None
    except json.JSONDecodeError as error:
        raise RowFault("malformed_row", f"no JSON: {error.msg} at character {error.pos} of the row") from None
    except (RecursionError, ValueError) as error:  # ValueError: a number of more than 4300 digits
        raise RowFault("malformed_row", f"no JSON: {str(error)[:120]}") from None


def _refuse_constant(name: str) -> None:
    raise RowFault("malformed_row", f"{name} is no JSON value")


def describe(raw: RawRow) -> tuple[int, int, RowFault | None]:
    """Return a row's estimated tokens, its turns, and what is wrong with its text, `None` if nothing is."""
    tokens = estimated_length(raw.turns)
    try:
        _, turns = normal_form(raw)
        return tokens, min(len(turns), MOST_TURNS), next(filter(None, map(path_fault, raw.images)), None)
    except RowFault as fault:
        return tokens, 0, fault


def open_index(path: Path, *, workers: int = 1, progress: Progress | None = None) -> Index:
    """Load the index of an annotation file, or build and keep it.

    It is kept beside the file, or in the user's cache folder where that place cannot be written; it is used
    again as long as the file's size and time of change are the same.

    Args:
        path: the annotation file.
        workers: processes that read the rows where there is no index yet.
        progress: told how far a new index is.

    Returns:
        The index.

    Raises:
        ValueError: If the file is missing, empty, or no JSON array or JSONL.
    """
    if not path.is_file():
        raise ValueError(f"no annotation file at {path}: give a LLaVA .json or .jsonl file")
    stat = path.stat()
    key = {"format": FORMAT, "bytes": str(stat.st_size), "mtime_ns": str(stat.st_mtime_ns)}
    places = table_places(path, "index")
    found = load_table(places, key, COLUMNS)
    if found is not None:
        meta, columns = found
        if int(columns["images"].sum()) == len(columns["image_hash"]):
            return Index(meta["sha256"], **columns)
    index = build_index(path, workers=workers, progress=progress)
    save_table(places, {**key, "sha256": index.sha256}, {name: getattr(index, name) for name in COLUMNS})
    return index


def build_index(path: Path, *, workers: int = 1, progress: Progress | None = None) -> Index:
    """Read the whole annotation file once and describe its rows; see `open_index` for the arguments."""
    tell = progress or (lambda *_: None)
    total = path.stat().st_size
    if not total:
        raise ValueError(f"{path} is empty: expected a JSON array of rows, or one row per line")
    with open(path, "rb") as file, ThreadPoolExecutor(1) as thread:
        digest = thread.submit(_sha256, path)  # beside the scan: hashing lets go of the interpreter
        spans = row_spans(file, progress=lambda done: tell("finding rows", done, total))
        file.seek(0)
        is_array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        sha256 = digest.result()
    parts = []
    for part in _described(path, spans, is_array and len(spans) > 1, workers):
        parts.append(part)
        tell("reading rows", sum(len(done["fault"]) for done in parts), len(spans))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    if not len(columns["offset"]):
        raise ValueError(f"{path} holds no rows: expected a JSON array of rows, or one row per line")
    lines = is_array or path.suffix == ".jsonl"
    if not lines and (columns["fault"] == CODES.index("malformed_row") + 1).all():
        raise ValueError(f"{path} is neither a JSON array of rows nor one row per line: no line is a row")
    return Index(sha256, **columns)


def _described(path: Path, spans: np.ndarray, keep_blank: bool, workers: int) -> Iterator[dict]:
    """Yield the columns of one run of rows after another."""
    ends = np.cumsum(spans[:, 1])
    cuts = np.searchsorted(ends, np.arange(CHUNK, ends[-1], CHUNK), side="right") if len(ends) else []
    jobs = [(path, part, keep_blank) for part in np.split(spans, np.unique(cuts)) if len(part)]
    if workers == 1 or len(jobs) < 4:
        yield from map(_describe_run, jobs)
        return
    yield from in_processes(_describe_run, jobs, workers)


def _describe_run(job: tuple[Path, np.ndarray, bool]) -> dict[str, np.ndarray]:
    path, spans, keep_blank = job
    columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
    with open(path, "rb") as file:
        file.seek(int(spans[0, 0]))
        data = file.read(int(spans[-1].sum() - spans[0, 0]))
    for offset, size in spans.tolist():
        first = offset - int(spans[0, 0])
        line = data[first : first + size].strip()
        if not line and not keep_blank:
            continue
        tokens, turns, images, name, fault = 0, 0, [], "", None
        try:
            raw = read_row(parse_row(line))
            images, name = raw.images, raw.id
            tokens, turns, fault = describe(raw)
        except RowFault as found:
            fault = found
        columns["offset"].append(offset)
        columns["size"].append(size)
        columns["tokens"].append(tokens)
        columns["images"].append(len(images))
        columns["turns"].append(turns)
        columns["fault"].append(0 if fault is None else CODES.index(fault.code) + 1)
        columns["id_hash"].append(text_hash(name))
        columns["image_hash"] += [text_hash(image) for image in images]
    return {name: np.array(columns[name], kind) for name, kind in COLUMNS.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
