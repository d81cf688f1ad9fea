"""Findings about the texts of rows, one per row and fault, and the reports of a check."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from basic_lite.console import progress_bar
from basic_lite.data.archives import path_fault
from basic_lite.data.index import Progress
from basic_lite.data.readers import Rows
from basic_lite.data.rows import (
    CODES,
    NOTES,
    ROW_NOTES,
    STILL_TRAINS,
    Finding,
    RowFault,
    caption_fault,
    normal_form,
)
from basic_lite.files import complete


def text_findings(rows: Rows) -> list[Finding]:
    """Return the faults in the texts of all rows, lengths apart; opens no picture.

    The texts were checked when the index was built; only faulty rows are read again, for the details.
    """
    return [_text_finding(rows, row) for row in np.flatnonzero(rows.index.fault).tolist()]


NOTED: dict[str, str] = {
    "no_placeholder": "no <image> in its questions: its pictures come in front of the first, and another "
    "mark, such as <image_1>, stays text",
    "dropped_turn": "it starts with an answer, which is dropped",
    "weight_ignored": "a weight other than 0 and 1, or one of a question, is not used",
    "not_used": "tools, tool calls, reasoning, boxes, choices, a context, further answers or another "
    "column of turns are not used",
}
"""The text of each note about a row."""

NAMED: int = 100
"""Most rows of a note that are read for their ids; half a million may have it."""


def note_findings(rows: Rows) -> list[Finding]:
    """Return the notes about rows that train, but not as they say; see `ROW_NOTES`."""
    findings = []
    for code, noted in _noted(rows).items():
        names = [rows.raw(row).id for row in noted[:NAMED]] + [""] * len(noted[NAMED:])
        findings += [Finding(row, name, code, NOTED[code]) for row, name in zip(noted, names, strict=True)]
    return findings


def note_lines(rows: Rows) -> list[str]:
    """Return a line for each kind of note, with its count, for the start of a run."""
    return [
        f"{len(noted):,} row{'s' * (len(noted) > 1)}: {NOTED[code]}."
        for code, noted in _noted(rows).items()
        if noted
    ]


def _noted(rows: Rows) -> dict[str, list[int]]:
    notes = np.where(rows.index.fault == 0, rows.index.notes, 0)
    return {code: np.flatnonzero(notes >> place & 1).tolist() for place, code in enumerate(ROW_NOTES)}


def caption_findings(rows: Rows) -> list[Finding]:
    """Return the rows that stage 1 cannot use: those that are not one image and its caption.

    Rows with faulty texts are left to `text_findings`. Only the rows returned are read, for their ids.
    """
    columns, findings = rows.index, []
    for row in np.flatnonzero((columns.images != 1) | (columns.turns != 2)).tolist():
        fault = caption_fault(int(columns.images[row]), int(columns.turns[row]))
        if fault is not None and not columns.fault[row]:
            findings.append(Finding(row, rows.raw(row).id, fault.code, fault.detail))
    return findings


def of_each_set(rows: Rows, check: Callable[[Rows], list[Finding]]) -> list[Finding]:
    """Return `check(part)` of each data set of a mix, with the mix's row numbers."""
    findings, start = [], 0
    for part in rows.parts:
        findings += [rows.named(replace(finding, row=finding.row + start)) for finding in check(part)]
        start += len(part)
    return findings


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by row, each row and code once."""
    first = {(finding.row, finding.code): finding for finding in reversed(list(findings))}
    return [first[key] for key in sorted(first)]


def _text_finding(rows: Rows, row: int) -> Finding:
    code, detail = CODES[int(rows.index.fault[row]) - 1], "the row has changed since it was indexed"
    try:
        raw = rows.raw(row)
        normal_form(raw)
        detail = next((fault.detail for fault in map(path_fault, raw.images) if fault), detail)
    except RowFault as fault:
        detail = fault.detail
    return Finding(row, rows.name(row), code, detail)


def repeated_ids(rows: Rows) -> list[Finding]:
    """Return the rows with the id of an earlier one; each of these is read, once, for the id."""
    hashes = rows.index.id_hash
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    original = first[inverse]
    again = np.flatnonzero((hashes != 0) & (original != np.arange(len(hashes))))
    ids = {row: rows.raw(row).id for row in np.unique(original[again]).tolist()}
    pairs = zip(again.tolist(), original[again].tolist(), strict=True)
    return [Finding(row, ids[other], "duplicate_id", f"row {other} has the same id") for row, other in pairs]


def write_report(path: Path, rows: int, findings: Sequence[Finding], **more: object) -> None:
    """Write `rows`, their number, `findings` and `more` as one JSON object, and `bad.jsonl` beside it."""
    body = {**more, "rows": rows, "findings": [finding.as_dict() for finding in findings]}
    _write(path, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    write_bad_rows(path.with_name("bad.jsonl"), findings)


def write_bad_rows(path: Path, findings: Iterable[Finding]) -> int:
    """Write one line for every row that training leaves out; return how many.

    Rows that turn out bad while training are added to the file, with `replaced_by`.
    """
    bad: dict[int, Finding] = {}
    for finding in findings:
        if finding.code not in STILL_TRAINS:
            bad.setdefault(finding.row, finding)
    lines = [json.dumps(finding.as_dict(), ensure_ascii=False) + "\n" for finding in bad.values()]
    _write(path, "".join(lines))
    return len(bad)


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Yield a `Progress` that shows a bar for each pass over the data, on a terminal."""
    with progress_bar(console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(f"{what:13}", total=total, note="")
            bars.update(tasks[what], completed=done)

        yield show


def faulty_rows(findings: Iterable[Finding]) -> int:
    """Return how many rows have more than notes."""
    return len({finding.row for finding in findings if finding.code not in NOTES})


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return a table with a line per code: how many rows, what training does with them, and an example."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("code", "rows", "training", "example"):
        table.add_column(title, justify="right" if title == "rows" else "left", overflow="fold")
    for code in CODES:
        of_code = [finding for finding in findings if finding.code == code]
        if of_code:
            fate = "uses" if code in NOTES else "keeps" if code in STILL_TRAINS else "leaves out"
            example = f"{of_code[0].where}: {of_code[0].detail}"
            table.add_row(code, f"{len(of_code):,}", fate, example.encode("utf-8", "replace").decode())
    return table


def _write(path: Path, text: str) -> None:
    with complete(path) as draft:  # ids may hold lone surrogates
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
