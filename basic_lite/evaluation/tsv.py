"""Tables of tab-separated cells whose pictures are base64: MMBench's, and VLMEvalKit's of every benchmark.

Not by pandas: it fills a row that the end of a cut file left short, which here is an error.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from basic_lite.evaluation.files import AGAIN, Reader, Source, find_optional, main_file, unique

LONGEST_INDEX = 64  # a shorter image cell names the row that holds the picture

OPTIONS = "ABCDEFGHI"

PANDAS_NA = frozenset(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)
"""What pandas reads as missing, also inside quotes: an option that is "None" is lost, as in LLaVA."""


def tsv_rows(
    path: Path, needs: Iterable[str], what: str, missing: Collection[str] = ("",)
) -> list[dict[str, str | None]]:
    """Read the cells as text, those of `missing` as `None`; `what` is the benchmark, for errors.

    Raises ValueError if the file is no table, lacks columns or rows, or a row lacks cells.
    """
    csv.field_size_limit(sys.maxsize)  # a picture is one cell of up to some hundred thousand characters
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, delimiter="\t") if line]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give the path of a TSV.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason}): {AGAIN}, or unpack it.") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no table ({error}): {AGAIN}.") from None
    header = [name if name in OPTIONS else name.lower() for name in lines[0]] if lines else []
    absent = [name for name in needs if name not in header]
    if absent:
        raise ValueError(
            f"{path} is no {what} TSV: column {', '.join(absent)} is missing; "
            f"it has {', '.join(header) or 'none'}."
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise ValueError(
                f"{path} row {number} has {len(line)} of {len(header)} columns: the file is cut off or "
                "damaged, get it again."
            )
        rows.append(
            {name: None if cell in missing else cell for name, cell in zip(header, line, strict=True)}
        )
    if not rows:
        raise ValueError(f"{path} has a header and no rows: the file is cut off, get it again.")
    return rows


def picture_of(cell: str, where: str) -> bytes:
    """Decode a base64 cell and look at the header of the picture."""
    from basic_lite.data.pictures import open_header
    from basic_lite.data.rows import RowFault

    try:
        picture = base64.b64decode("".join(cell.split()), validate=True)
        open_header(picture, where.rsplit(" ", 1)[-1])
    except (binascii.Error, RowFault) as error:
        if isinstance(error, RowFault) and error.code == "oversized_image":
            raise ValueError(f"{where}: {error}.") from None
        reason = "base64" if isinstance(error, binascii.Error) else "picture"
        raise ValueError(
            f"{where}: the image cell does not decode ({reason}): the file is damaged, get it again."
        ) from None
    return picture


def find_tsv(source: Source, *patterns: str) -> Path | None:
    """Return the table that was named, whatever its name, or the folder's of one of these names."""
    data = Path(source.data)
    if data.is_file():
        return data if data.suffix == ".tsv" else None
    return find_optional(source, *patterns)


def listed(cell: str) -> list[str]:
    """Return the entries of a cell that holds a Python list, or the cell alone."""
    if cell.startswith("["):
        try:
            return [str(entry) for entry in ast.literal_eval(cell)]
        except (ValueError, SyntaxError):
            pass
    return [cell]


def answers_in(row: Mapping[str, Any]) -> list[str]:
    """Return a row's `answers`, or those in the `answer` of a table; none where labels are not public."""
    return row.get("answers") or (listed(str(row["answer"])) if "answer" in row else [])


def choices_in(row: Mapping[str, Any]) -> dict[str, str]:
    """Return letter -> text of a row's options: of its list `choices` or `options`, or a column for each."""
    given = row.get("choices") or row.get("options")
    if isinstance(given, list):
        return dict(zip(OPTIONS, map(str, given), strict=False))
    return {letter: str(row[letter]) for letter in OPTIONS if row.get(letter) is not None}


def picture_holders(cells: Mapping[str, str | None], where: str) -> dict[str, str]:
    """Return row -> the row with its picture; a cell is a picture, or the index of another row."""
    holders: dict[str, str] = {}
    for index, cell in cells.items():
        holder, seen = index, set[str]()
        while 0 < len(cells.get(holder) or "") <= LONGEST_INDEX and holder not in seen:
            seen.add(holder)
            holder = str(cells[holder]).strip()
        if len(cells.get(holder) or "") <= LONGEST_INDEX:
            raise ValueError(f"{where} row {index}: its image cell {cell!r} leads to no picture: {AGAIN}.")
        holders[index] = holder
    return holders


def tsv_table(source: Source, path: Path, needs: Iterable[str], what: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one of VLMEvalKit's tables, with `"image"` encoded and `"picture"` its row."""
    rows = tsv_rows(path, ("index", *needs, "image"), what)
    unique((str(row["index"]) for row in rows), str(path))
    cells = {str(row["index"]): row["image"] or "" for row in rows}
    holders = picture_holders(cells, str(path))
    decoded: dict[str, bytes] = {}
    for row in rows:
        index = str(row["index"])
        holder = holders[index]
        if source.with_images and holder not in decoded:
            decoded[holder] = picture_of(listed(cells[holder])[0], f"{path} row {holder}")
        yield {**row, "index": index, "picture": holder, "image": decoded.get(holder)}


def tsv_reader(
    what: str,  # the benchmark, for errors
    *patterns: str,  # names of the table
    needs: Iterable[str] = ("question", "answer"),  # columns besides the index and the picture
    split: str | None = None,  # the one split that the table holds; `None` where there are no others
    otherwise: Reader | None = None,  # reader of the original files, where there is no such table
    **names: str,  # name in the rows -> column that it is a copy of
) -> Reader:
    """Return a reader of one of VLMEvalKit's tables; the row's index is its `"id"`."""

    def read(source: Source) -> Iterator[dict[str, Any]]:
        path = find_tsv(source, *patterns) if split in (None, source.split) else None
        if path is None and otherwise:
            yield from otherwise(source)
            return
        for row in tsv_table(source, path or main_file(source, f"{what} TSV", *patterns), needs, what):
            yield {**row, "id": row["index"], **{name: row[column] for name, column in names.items()}}

    return read
