"""The cells of an MMBench TSV, read as LLaVA's pandas call reads them, but all as text.

Source: LLaVA `llava/eval/model_vqa_mmbench.py`; the image cell that names another row is VLMEvalKit's.
"""

from __future__ import annotations

import base64
import binascii
import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from basic_lite.benchmarks.files import AGAIN
from basic_lite.scoring.circular import LETTERS, is_missing

COLUMNS = ("index", "question", "A", "B", "C", "D", "image")
LABELS = ("answer", "category")
OPTIONAL = ("hint", "source", "l2-category", "comment", "split")
_LONGEST_INDEX = 64  # a shorter image cell names the row that holds the picture

# What pandas reads as missing, also inside quotes: an option that is literally "None" is lost, as in LLaVA.
_PANDAS_NA = frozenset(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)


def tsv_rows(path: Path, needs: Iterable[str]) -> list[dict[str, str | None]]:
    """Read the cells as text, missing ones as `None`; every row must have all columns."""
    csv.field_size_limit(sys.maxsize)  # a picture is one cell of up to some hundred thousand characters
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, delimiter="\t") if line]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give the path of an MMBench TSV.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason}): {AGAIN}, or unpack it.") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no table ({error}): {AGAIN}.") from None
    header = [name if name in LETTERS else name.lower() for name in lines[0]] if lines else []
    missing = [name for name in needs if name not in header]
    if missing:
        raise ValueError(
            f"{path} is no MMBench TSV: column {', '.join(missing)} is missing; "
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
            {name: None if cell in _PANDAS_NA else cell for name, cell in zip(header, line, strict=True)}
        )
    return rows


def _picture(cell: str, row: str) -> bytes:
    """Decode a base64 cell and look at the header of the picture."""
    from basic_lite.data.pictures import open_header
    from basic_lite.data.samples import RowFault

    try:
        picture = base64.b64decode("".join(cell.split()), validate=True)
        open_header(picture, row)
    except (binascii.Error, RowFault) as error:
        if isinstance(error, RowFault) and error.code == "oversized_image":
            raise ValueError(f"MMBench row {row}: {error}.") from None
        reason = "base64" if isinstance(error, binascii.Error) else "picture"
        raise ValueError(
            f"MMBench row {row}: the image cell does not decode ({reason}): the file is damaged, get it "
            "again."
        ) from None
    return picture


def pictures(cells: Mapping[int, str | None]) -> dict[int, bytes]:
    """Decode each picture once and share it with the rows that point at it."""
    decoded: dict[int, bytes] = {}

    def find(index: int, via: int, seen: tuple[int, ...] = ()) -> bytes:
        if index in seen or is_missing(cells.get(index)):
            raise ValueError(
                f"MMBench row {via}: its image cell points at row {index}, which holds no picture: the file "
                "is damaged or cut off."
            )
        if index not in decoded:
            cell = str(cells[index]).strip()
            if len(cell) > _LONGEST_INDEX:
                decoded[index] = _picture(cell, str(index))
            elif cell.isdigit():
                decoded[index] = find(int(cell), index, (*seen, index))
            else:
                raise ValueError(
                    f"MMBench row {index}: image cell {cell!r} is neither base64 nor a row index."
                )
        return decoded[index]

    return {index: find(index, index) for index in cells}


def row_index(row: Mapping[str, Any]) -> int:
    """Return the row's index; "7.0" comes from files that went through a float column."""
    try:
        number = float(row["index"])
        if number.is_integer():
            return int(number)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"MMBench row index {row.get('index')!r} is no whole number.")
