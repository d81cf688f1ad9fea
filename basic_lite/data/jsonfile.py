"""Where each row of a JSON array or of a JSONL file starts and ends, found without parsing it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK: int = 1 << 24
"""Bytes looked at together: 16 MiB keeps the masks of one block near 100 MiB."""

QUOTE, BACKSLASH, COMMA, NEWLINE = b'"\\,\n'
_OPEN, _CLOSE = np.array([ord("["), ord("{")], np.uint8), np.array([ord("]"), ord("}")], np.uint8)
_KIND = np.zeros(256, np.int8)  # +1 opens, -1 closes, 2 separates
_KIND[_OPEN], _KIND[_CLOSE], _KIND[COMMA] = 1, -1, 2


def row_spans(data: memoryview, path: str, progress: Callable[[int], None] | None = None) -> np.ndarray:
    """Find the rows of an annotation file.

    A file that starts with `[` is an array whose elements are the rows; anything else is read as one row per
    line. Only strings and brackets are followed, so a row that is no JSON is still found and can be reported
    by its number.

    Args:
        data: the file's bytes.
        path: named in errors.
        progress: called with the number of bytes done.

    Returns:
        `(rows, 2)` int64: first byte and length of every row, without surrounding blanks.

    Raises:
        ValueError: If the array never ends, or something follows it.
    """
    start = 3 if bytes(data[:3]) == b"\xef\xbb\xbf" else 0
    head = bytes(data[start : start + 4096]).lstrip()
    if head.startswith(b"["):
        return _array_spans(data, start, path, progress or (lambda _: None))
    return _line_spans(data, start, progress or (lambda _: None))


def _line_spans(data: memoryview, start: int, progress: Callable[[int], None]) -> np.ndarray:
    ends = [np.array([start - 1])]
    for at in range(start, len(data), BLOCK):
        ends.append(at + np.flatnonzero(np.frombuffer(data[at : at + BLOCK], np.uint8) == NEWLINE))
        progress(min(at + BLOCK, len(data)))
    ends.append(np.array([len(data)]))
    edges = np.concatenate(ends).astype(np.int64)
    return _trimmed(data, edges[:-1] + 1, edges[1:], keep_empty=False)


def _array_spans(data: memoryview, start: int, path: str, progress: Callable[[int], None]) -> np.ndarray:
    in_string, escapes, depth = False, 0, 0  # state carried from block to block
    cuts: list[
        np.ndarray
    ] = []  # the array's opening bracket, the commas between its elements, its closing bracket
    for at in range(start, len(data), BLOCK):
        block = np.frombuffer(data[at : at + BLOCK], np.uint8)
        quotes, escapes = _real_quotes(block, escapes)
        kind = _KIND[block]
        marks = np.flatnonzero(kind)
        outside = (np.searchsorted(quotes, marks) % 2 == 1) == in_string
        marks = marks[outside]
        kind = kind[marks]
        in_string ^= bool(len(quotes) % 2)
        steps = np.where(kind == 2, 0, kind)
        after = depth + np.cumsum(steps, dtype=np.int64)
        before = after - steps
        top = ((kind == 2) & (after == 1)) | ((kind == 1) & (before == 0)) | ((kind == -1) & (after <= 0))
        cuts.append(at + marks[top])
        if len(after):
            depth = int(after[-1])
            ended = np.flatnonzero(after <= 0)
            if len(ended):
                end = at + int(marks[ended[0]])
                cuts[-1] = cuts[-1][cuts[-1] <= end]
                if bytes(data[end + 1 : end + 4097]).strip():
                    raise ValueError(
                        f"{path}: text follows the array that ends at byte {end}; expected one JSON array"
                    )
                break
        progress(min(at + BLOCK, len(data)))
    else:
        rows = max(sum(map(len, cuts)) - 1, 0)
        raise ValueError(
            f"{path} ends inside row {rows}: the JSON array has no end. The file is cut off: write it again."
        )
    edges = np.concatenate(cuts)
    return _trimmed(data, edges[:-1] + 1, edges[1:], keep_empty=len(edges) > 2)


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
    )  # first slash of each slash's run
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


def _trimmed(data: memoryview, first: np.ndarray, end: np.ndarray, *, keep_empty: bool) -> np.ndarray:
    """Take the blanks off both ends of each span; drop empty spans unless they stand for missing elements."""
    blank = np.zeros(256, bool)
    blank[list(b" \t\r\n")] = True
    whole = np.frombuffer(data, np.uint8)
    first, end = first.copy(), end.copy()
    for edge, step in ((first, 1), (end, -1)):
        active = np.flatnonzero(first < end)
        while len(active):
            looked = edge[active] if step == 1 else edge[active] - 1
            active = active[blank[whole[looked]]]
            edge[active] += step
            active = active[first[active] < end[active]]
    spans = np.stack([first, end - first], axis=1)
    return spans if keep_empty else spans[spans[:, 1] > 0]
