"""What is wrong with a data set, found before the first step."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import numpy as np

from basic_lite.data.images import inside
from basic_lite.data.readers import Rows
from basic_lite.data.samples import ImageRef, RowFault, normal_form


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
        """Return the finding as a JSON object."""
        return asdict(self)


def check_rows(rows: Rows, *, images: int | None = 2000) -> list[Finding]:
    """Check every row's text, and whether pictures are there; opens no picture.

    The text was judged when the index was made, so this is quick enough for the start of every training.

    Args:
        rows: from `open_rows`.
        images: of how many rows, spread evenly over the file, the pictures are looked for; `None` means all.

    Returns:
        The findings, by row number.
    """
    findings = [text_finding(rows, row) for row in np.flatnonzero(rows.index.fault).tolist()]
    pictured = np.flatnonzero((rows.index.images > 0) & (rows.index.fault == 0))
    if images is not None and len(pictured) > images:
        pictured = pictured[np.linspace(0, len(pictured) - 1, images).astype(np.int64)]
    for row in pictured.tolist():
        sample = rows[row]
        for ref in sample.images:
            fault = absent(ref)
            if fault is not None:
                findings.append(Finding(row, sample.id, fault.code, fault.detail))
    return sorted(findings, key=lambda finding: finding.row)


def text_finding(rows: Rows, row: int) -> Finding:
    """Return what is wrong with the text of a row that the index marks as faulty."""
    name = ""
    try:
        raw = rows.raw(row)
        name = raw.id
        normal_form(raw)
    except RowFault as fault:
        return Finding(row, name, fault.code, fault.detail)
    raise AssertionError(
        f"the index calls row {row} of {rows.path} {rows.known_fault(row)}, reading it does not"
    )


def absent(ref: ImageRef) -> RowFault | None:
    """Return why a picture's file is not there or is empty, `None` if it is; the file is not opened."""
    if ref.data is not None:
        return None
    try:
        path = inside(ref)
        if os.path.getsize(path) == 0:
            raise RowFault("undecodable_image", f"image {ref.name!r} is empty (0 bytes)")
    except OSError:
        return RowFault("missing_image", f"image {ref.name!r} is not under {ref.root}")
    except RowFault as fault:
        return fault
    return None
