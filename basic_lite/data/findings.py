"""What is wrong with the texts of rows: one finding per row and fault."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from basic_lite.data.readers import Rows
from basic_lite.data.roots import path_fault
from basic_lite.data.samples import CODES, RowFault, caption_fault, normal_form


@dataclass(frozen=True)
class Finding:
    """Something wrong with a row.

    Attributes:
        row: its number, from 0.
        id: its own name.
        code: one of `basic_lite.data.samples.CODES`.
        detail: one line for a person.
    """

    row: int
    id: str
    code: str
    detail: str

    def as_dict(self) -> dict[str, object]:
        """Return the finding as a JSON object; of an endless id, the start."""
        return asdict(self) | {"id": self.id[:1000]}


def text_findings(rows: Rows) -> list[Finding]:
    """Find what is wrong with the texts of all rows, but for their lengths; opens no picture.

    The texts were judged when the index was made; only faulty rows are read again, for the details.

    Args:
        rows: from `open_rows`.

    Returns:
        The findings, by row.
    """
    found = [_text_finding(rows, row) for row in np.flatnonzero(rows.index.fault).tolist()]
    return in_order(found + _duplicates(rows))


def caption_findings(rows: Rows) -> list[Finding]:
    """Find the rows that stage 1 cannot use: those that are not one image and its caption.

    Rows whose texts are faulty anyway are not named again. Reads only what it finds, for the ids.

    Args:
        rows: from `open_rows`.

    Returns:
        The findings, by row.
    """
    columns = rows.index
    odd = (columns.fault == 0) & ((columns.images != 1) | (columns.turns != 2))
    found = []
    for row in np.flatnonzero(odd).tolist():
        fault = caption_fault(int(columns.images[row]), int(columns.turns[row]))
        assert fault is not None, row
        found.append(Finding(row, rows.raw(row).id, fault.code, fault.detail))
    return found


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by row, each row and code once."""
    first = {(finding.row, finding.code): finding for finding in reversed(list(findings))}
    return [first[key] for key in sorted(first)]


def _text_finding(rows: Rows, row: int) -> Finding:
    name, code = "", CODES[int(rows.index.fault[row]) - 1]
    detail = "the row has changed since it was indexed"
    try:
        raw = rows.raw(row)
        name = raw.id
        normal_form(raw)
        detail = next((fault.detail for fault in map(path_fault, raw.images) if fault), detail)
    except RowFault as fault:
        detail = fault.detail
    return Finding(row, name, code, detail)


def _duplicates(rows: Rows) -> list[Finding]:
    hashes = rows.index.id_hash
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    fresh = np.r_[True, ordered[1:] != ordered[:-1]]
    first = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))]
    again = np.flatnonzero(~fresh & (ordered != 0))
    return [
        Finding(row, rows.raw(row).id, "duplicate_id", f"row {original} has the same id")
        for row, original in zip(order[again].tolist(), first[again].tolist(), strict=True)
    ]
