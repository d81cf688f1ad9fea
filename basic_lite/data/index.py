"""The index of an annotation file: where each row is, how long, and what is wrong with it.

A row takes 34 bytes and each of its images 8 more, 27 MB for 665,298 rows. The index is kept next to the
file, so that starting a run parses nothing. `datasets.load_dataset("json")` (5.2) is no way to have this: one
broken line or a cut array makes it refuse the whole file, and it names no row.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from basic_lite.data.archives import PICTURE_SUFFIXES, path_fault, unpacked
from basic_lite.data.conversation import Turn
from basic_lite.data.formats import IMAGE_COLUMNS, format_of, read_row
from basic_lite.data.rows import CODES, ROW_NOTES, RawRow, RowFault, normal_form, text_hash
from basic_lite.data.workers import mapped
from basic_lite.files import file_hash, load_table, one_line, save_table, table_places

BLOCK: int = 1 << 24
"""Bytes that are scanned together: 16 MiB keeps the masks of one block near 100 MiB."""

BYTE_ORDER_MARK: bytes = b"\xef\xbb\xbf"
QUOTE, BACKSLASH, COMMA, NEWLINE = b'"\\,\n'
_KIND = np.zeros(256, np.int8)  # +1 opens, -1 closes, 2 separates
_KIND[list(b"[{")], _KIND[list(b"]}")], _KIND[COMMA] = 1, -1, 2
_IS_MARK = bytes(sign in b"[{]}," for sign in range(256))

_WRAPPED = re.compile(
    rb"\s*\{\s*(?:\"[^\"]*\"\s*:\s*(?:\"[^\"]*\"|[-+.\w]+)\s*,\s*)*"
    rb"\"(?:data|rows|train|samples|examples|annotations|instances)\"\s*:\s*(?=\[)"
)
"""The start of an object that holds the array of rows, with only simple values before it."""


def array_start(file: BinaryIO) -> tuple[int, bool] | None:
    """Return where a file's array of rows starts and whether an object holds it; `None` for lines of rows."""
    file.seek(0)
    head = file.read(4096)
    start = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    start += len(head[start:]) - len(head[start:].lstrip())
    if head[start : start + 1] == b"[":
        return start, False
    wrapped = _WRAPPED.match(head, start)
    return None if wrapped is None else (wrapped.end(), True)


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


def no_progress(*_: object) -> None:
    """Show nothing."""


def row_spans(file: BinaryIO, *, progress: Callable[[int], None] = no_progress) -> np.ndarray:
    """Find an annotation file's rows: `(rows, 2)` int64, first byte and length, blanks included.

    A file that starts with `[` is an array whose elements are the rows, and so is `{"data": [...]}`; anything
    else is read as one row per line, blank lines included. Only strings and brackets are followed, so a row
    that is no JSON is still found and can be reported by its number. `progress` is called with the bytes
    done. Raises ValueError, naming the file, if the array never ends, or something follows it.
    """
    array = array_start(file)
    if array is not None:
        return _array_spans(_blocks(file, array[0], progress), file, wrapped=array[1])
    file.seek(0)
    start = len(BYTE_ORDER_MARK) if file.read(3) == BYTE_ORDER_MARK else 0
    return _line_spans(_blocks(file, start, progress), start)


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


def _array_spans(blocks: Iterator[tuple[int, np.ndarray]], file: BinaryIO, *, wrapped: bool) -> np.ndarray:
    in_string, escapes, depth = False, 0, 0  # state carried from block to block
    cuts: list[np.ndarray] = []  # the opening bracket, the commas between elements, the closing bracket
    for at, block in blocks:
        quotes, escapes = _real_quotes(block, escapes)
        # `translate` is five times as fast as indexing an array of flags.
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
                if not wrapped and file.read(4096).strip():
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
    fresh = np.r_[True, np.diff(slashes) != 1]
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(slashes)), 0))  # of each slash's run
    run = slashes - slashes[first] + 1
    if escapes and slashes[0] == 0:
        run[first == 0] += escapes
    place = np.searchsorted(slashes, quotes) - 1  # last slash before each quote
    follows = (place >= 0) & (slashes[place] == quotes - 1)
    escaped = follows & (run[place] % 2 == 1)
    if escapes and len(quotes) and quotes[0] == 0:
        escaped[0] = True
    trailing = int(run[-1]) % 2 if slashes[-1] == len(block) - 1 else 0
    return quotes[~escaped], trailing


FORMAT: str = "10"
"""Raise it when the meaning of a column changes: older index files are then built again."""

COLUMNS: dict[str, type[np.generic]] = {
    "offset": np.int64,
    "size": np.int64,
    "tokens": np.int32,
    "images": np.uint16,
    "turns": np.uint16,
    "fault": np.uint8,
    "notes": np.uint8,
    "id_hash": np.uint64,
    "image_hash": np.uint64,
}
MOST_TURNS: int = 2**16 - 1
"""The largest number that the column holds; it stands for more turns, too."""

CHUNK: int = 1 << 23
"""Bytes of rows that one worker describes at a time."""


@dataclass(frozen=True)
class Index:
    """Columns over the rows of one annotation file."""

    sha256: str  # of the whole file; of several files, of their hashes
    starts: tuple[int, ...]  # first row of each file
    offset: np.ndarray  # `(rows,)` int64, first byte of each row
    size: np.ndarray  # `(rows,)` int64, bytes of each row
    tokens: np.ndarray  # `(rows,)` int32, estimated text tokens (see `estimated_length`)
    images: np.ndarray  # `(rows,)` uint16, pictures of each row
    turns: np.ndarray  # `(rows,)` uint16, turns of each row in normal form, 0 where it has none
    fault: np.ndarray  # `(rows,)` uint8, 0 or 1 + the place in `CODES` of what is wrong with the text
    notes: np.ndarray  # `(rows,)` uint8, a bit for each of `ROW_NOTES` that holds of the row
    id_hash: np.ndarray  # `(rows,)` uint64, to find repeated ids; 0 for rows without an id
    image_hash: np.ndarray  # `(sum(images),)` uint64, to find pictures that several rows share


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text without a tokenizer.

    One for each digit and each Chinese or Korean character, and one for four others. The script is known by
    the bytes beyond one per character: 0 for ASCII, 1 for Cyrillic, 2 for Chinese.
    """
    characters = len(text)
    digits = sum(map(text.count, "0123456789"))  # LLaMA, Gemma and Phi-3 cut numbers into digits
    if text.isascii():
        return (characters + 3 * digits) // 4 + 1
    wide = (len(text.encode("utf-8", "surrogatepass")) - characters) / 2
    return int((characters + 3 * digits - min(wide, characters)) / 4 + wide) + 1


def estimated_length(turns: Sequence[Turn]) -> int:
    """Estimate the text tokens of a conversation: its texts, and some 4 around each."""
    tokens = estimated_tokens("".join([text for _, text in turns])) + 4 * len(turns)
    return min(tokens, 2**31 - 1)


def parse_row(line: bytes) -> object:
    """Parse one row; raises RowFault `malformed_row`.

    NaN, Infinity, broken UTF-8 and nesting beyond the parser's depth are faults.
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


class Columns:
    """Columns of an index, filled row by row."""

    def __init__(self) -> None:
        self.values: dict[str, list[int]] = {name: [] for name in COLUMNS}

    def add(
        self, read: Callable[[Any], RawRow], stored: Any, offset: int = 0, size: int = 0
    ) -> RawRow | RowFault:
        """Describe the row `read(stored)`, except for the hashes of its images; return it or its fault.

        The row is at byte `offset` and has `size` bytes.
        """
        tokens = images = id_hash = turns = notes = 0
        row = fault = None
        try:
            row = read(stored)
            tokens, images, id_hash = estimated_length(row.turns), len(row.images), text_hash(row.id)
            normal = normal_form(row)
            turns = min(len(normal.turns), MOST_TURNS)
            notes = sum(1 << ROW_NOTES.index(note) for note in normal.notes)
            fault = next(filter(None, map(path_fault, row.images)), None)
        except RowFault as error:
            fault = error
        code = 0 if fault is None else CODES.index(fault.code) + 1
        values = (offset, size, tokens, images, turns, code, notes, id_hash)
        for name, value in zip(COLUMNS, values, strict=False):  # all but `image_hash`
            self.values[name].append(value)
        result = row or fault
        assert result is not None
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(self.values[name], kind) for name, kind in COLUMNS.items()}


def open_index(
    path: Path, files: Sequence[Path], *, workers: int = 1, progress: Progress = no_progress
) -> Index:
    """Load the index of annotation files, JSON or WebDataset shards, or build and keep it.

    It is kept beside `path`, or in the user's cache folder if that place cannot be written; it is used
    again as long as the files' sizes and times of change are the same. `path` is the annotation file, or the
    folder of the files. `progress` is called with what is being done, how much of it, and of how much. Raises
    ValueError if a file is empty, no JSON array or JSONL, or a damaged tar.
    """
    key = {"format": FORMAT, "files": files_hash(files)}
    places = table_places(path, "index")
    loaded = load_table(places, key, COLUMNS)
    if loaded is not None:
        meta, columns = loaded
        if int(columns["images"].sum()) == len(columns["image_hash"]):
            return Index(meta["sha256"], tuple(map(int, meta["starts"].split())), **columns)
    index = joined([build_index(file, workers=workers, progress=progress) for file in files])
    meta = {"sha256": index.sha256, "starts": " ".join(map(str, index.starts))}
    save_table(places, {**key, **meta}, {name: getattr(index, name) for name in COLUMNS})
    return index


def files_hash(files: Iterable[Path]) -> str:
    """Return a hash of files' names, sizes and times of change."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode("utf-8", "surrogateescape")).hexdigest()


def joined(parts: Sequence[Index]) -> Index:
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(len(part.fault) for part in parts)])
    sha256 = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return Index(sha256, tuple(ends[:-1].tolist()), **columns)


_REMEDIES = (
    (b"PK\3\4", "it is a zip: unpack it"),
    (b"PAR1", "it is Parquet: name it .parquet"),
    *((magic, "it is UTF-16: save it as UTF-8") for magic in (b"\xff\xfe", b"\xfe\xff")),
)


def build_index(path: Path, *, workers: int = 1, progress: Progress = no_progress) -> Index:
    """Read the whole annotation file once and describe its rows; see `open_index` for the arguments."""
    if path.name.endswith(SHARDS):
        columns = shard_columns(unpacked(path))
        if not len(columns["offset"]):
            raise ValueError(
                f"{path} holds no rows: expected a .json, or a .txt caption, beside each picture"
            )
        return Index(file_hash(path), (0,), **columns)
    given, path = path, unpacked(path)
    total = path.stat().st_size
    if not total:
        raise ValueError(f"{given} is empty: expected a JSON array of rows, or one row per line")
    with open(path, "rb") as file, ThreadPoolExecutor(1) as thread:
        digest = thread.submit(file_hash, path)  # beside the scan: hashing lets go of the interpreter
        spans = row_spans(file, progress=lambda done: progress("finding rows", done, total))
        is_array = array_start(file) is not None
        if not is_array and total <= MAX_SINGLE and _single_row(file):
            spans = np.array([[0, total]], np.int64)
        sha256 = digest.result()
    parts = []
    ends = np.cumsum(spans[:, 1])
    cuts = np.searchsorted(ends, np.arange(CHUNK, ends[-1], CHUNK), side="right") if len(ends) else []
    jobs = [part for part in np.split(spans, np.unique(cuts)) if len(part)]
    for part in mapped(partial(_describe, path, is_array and len(spans) > 1), jobs, workers):
        parts.append(part)
        progress("reading rows", sum(len(done["fault"]) for done in parts), len(spans))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    if not len(columns["offset"]):
        raise ValueError(f"{given} holds no rows: expected a JSON array of rows, or one row per line")
    lines = is_array or path.suffix == ".jsonl"
    if not lines and (columns["fault"] == CODES.index("malformed_row") + 1).all():
        with open(path, "rb") as file:
            start = file.read(4)
        remedy = next((f"; {text}" for magic, text in _REMEDIES if start.startswith(magic)), "")
        raise ValueError(
            f"{given} is neither a JSON array of rows nor one row per line: no line is a row{remedy}"
        )
    return Index(sha256, (0,), **columns)


def _single_row(file: BinaryIO) -> bool:
    """Return whether a whole file is one row, as in folders of one file for each picture."""
    file.seek(0)
    try:
        read_row(parse_row(file.read().strip()))
    except RowFault:
        return False
    return True


MAX_SINGLE: int = 1 << 20
"""Largest file that is tried as one row."""


def _describe(path: Path, keep_blank: bool, spans: np.ndarray) -> dict[str, np.ndarray]:
    columns = Columns()
    with open(path, "rb") as file:
        file.seek(int(spans[0, 0]))
        data = file.read(int(spans[-1].sum() - spans[0, 0]))
    for offset, size in spans.tolist():
        first = offset - int(spans[0, 0])
        line = data[first : first + size].strip()
        if not line and not keep_blank:
            continue
        row = columns.add(lambda line: read_row(parse_row(line)), line, offset, size)
        if isinstance(row, RawRow):
            columns.values["image_hash"] += [text_hash(image) for image in row.images]
    return columns.arrays()


SHARDS: tuple[str, ...] = (".tar", ".tar.gz", ".tgz")
"""WebDataset's tar files, in which the members of a sample share their name up to its first dot."""

TEXT_SUFFIXES: tuple[str, ...] = (".json", ".txt", ".caption")


def shard_row(chunk: bytes) -> dict[str, Any]:
    """Read a sample of a shard, its pictures as bytes; raises RowFault `malformed_row`.

    The row is what its `.json` says, or its `.txt` or `.caption` as the caption; its pictures are the members
    with a picture's suffix, in order. `chunk` goes from its first member's header to its last member's end.
    """
    members = {}
    with tarfile.open(fileobj=io.BytesIO(chunk), mode="r:") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                members[member.name] = file.read()
    return sample_row(members)


def sample_row(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that is made of a shard's members, by name; texts may be bytes or parsed already.

    Raises RowFault `malformed_row`.
    """
    row: dict[str, Any] = {}
    caption = None
    for name, content in members.items():
        if name.endswith(".json"):
            parsed = parse_row(content.strip()) if isinstance(content, bytes) else content
            row |= parsed if isinstance(parsed, dict) else {"conversations": parsed}
        elif name.endswith((".txt", ".caption")):
            caption = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
            caption = caption.strip()
    if caption is not None and format_of(row) is None:
        row["caption"] = caption
    pictures = []
    for name, content in members.items():
        if name.lower().endswith(PICTURE_SUFFIXES):
            pictures += content if isinstance(content, list) else [content]
    if pictures:
        row = {name: value for name, value in row.items() if name not in IMAGE_COLUMNS} | {"images": pictures}
    return {"id": posixpath.basename(next(iter(members))).partition(".")[0], **row}


def shard_columns(path: Path) -> dict[str, np.ndarray]:
    """Describe the rows of a shard, without decoding a picture; raises ValueError if it is no tar."""
    columns = Columns()
    try:
        with tarfile.open(path, "r:") as archive:
            for _, sample in groupby(filter(tarfile.TarInfo.isreg, archive), _sample_name):
                members = list(sample)
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else all stay in memory
                contents = dict.fromkeys((member.name for member in members), b"")
                for member in members:
                    if member.name.endswith(TEXT_SUFFIXES) and (file := archive.extractfile(member)):
                        contents[member.name] = file.read()
                if not any(name.endswith(TEXT_SUFFIXES) for name in contents):
                    continue
                start, last = members[0].offset, members[-1]
                size = last.offset_data + -(-last.size // 512) * 512 - start
                row = columns.add(
                    lambda parts: read_row(sample_row(parts), stored=True), contents, start, size
                )
                if isinstance(row, RawRow):
                    places = range(len(row.images))
                    columns.values["image_hash"] += [text_hash(f"{path}:{start}:{place}") for place in places]
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} is no tar of samples: {one_line(error)}") from None
    return columns.arrays()


def _sample_name(member: tarfile.TarInfo) -> str:
    folder, name = posixpath.split(member.name)
    return posixpath.join(folder, name.partition(".")[0])
