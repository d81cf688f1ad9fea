"""Every picture of a data set, looked at once, in parallel, and remembered.

What is found is kept beside the annotations with each file's size and time, so a check that was stopped
goes on where it was, and one that is run again looks only at what has changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from basic_lite.data.findings import Finding
from basic_lite.data.pictures import Depth, check_picture
from basic_lite.data.readers import Rows
from basic_lite.data.roots import locate
from basic_lite.data.samples import CODES, STILL_TRAINS, RowFault
from basic_lite.data.tables import load_table, save_table, table_places
from basic_lite.data.workers import AHEAD, in_processes

GOOD: int = 255
"""Status of a picture that was decoded; 0 is unknown, others are 1 + the place in `CODES`."""

CHUNK: int = 64
SAVE_SECONDS: float = 20.0
COLUMNS: dict[str, type[np.generic]] = {"status": np.uint8, "stamp": np.int64}


@dataclass
class Pictures:
    """The different pictures of some rows.

    Attributes:
        rows: the rows.
        inverse: `(sum(images),)` which picture each image of the rows is.
        row: `(pictures,)` the first row that has it.
        place: `(pictures,)` its place among that row's images.
        status: `(pictures,)` uint8, see `GOOD`.
        stamp: `(pictures,)` int64, of the bytes that `status` is about.
    """

    rows: Rows
    inverse: np.ndarray
    row: np.ndarray
    place: np.ndarray
    status: np.ndarray
    stamp: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> Pictures:
        """List the different pictures of `rows`, with what earlier checks found."""
        counts = rows.index.images.astype(np.int64)
        _, first, inverse = np.unique(rows.index.image_hash, return_index=True, return_inverse=True)
        row_of = np.repeat(np.arange(len(counts)), counts)
        place_of = np.arange(len(row_of)) - np.repeat(np.cumsum(counts) - counts, counts)
        made = cls(
            rows,
            inverse,
            row_of[first],
            place_of[first],
            np.zeros(len(first), np.uint8),
            np.zeros(len(first), np.int64),
        )
        found = load_table(table_places(rows.path, "pictures"), made._key(), COLUMNS)
        if found is not None and len(found[1]["status"]) == len(first):
            made.status, made.stamp = found[1]["status"].copy(), found[1]["stamp"].copy()
        return made

    def save(self) -> None:
        """Keep what is known beside the annotations."""
        save_table(
            table_places(self.rows.path, "pictures"),
            self._key(),
            {"status": self.status, "stamp": self.stamp},
        )

    def _key(self) -> dict[str, str]:
        root = "" if self.rows.images is None else os.path.realpath(self.rows.images)
        return {"format": "1", "sha256": self.rows.sha256, "root": root, "links": str(self.rows.follow_links)}

    def findings(self, details: dict[int, str]) -> list[Finding]:
        """Return a finding for every row that has one of the pictures in `details`."""
        faulty = np.isin(self.inverse, list(details))
        counts = self.rows.index.images.astype(np.int64)
        row_of = np.repeat(np.arange(len(counts)), counts)
        found = []
        for row, picture in zip(row_of[faulty].tolist(), self.inverse[faulty].tolist(), strict=True):
            code = CODES[int(self.status[picture]) - 1]
            found.append(Finding(row, self.rows.raw(row).id, code, details[picture]))
        return found


def check_pictures(
    rows: Rows,
    *,
    depth: Depth = "decode",
    sample: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Look at the pictures of `rows`, each file once however many rows show it.

    Args:
        rows: from `open_rows`.
        depth: `"decode"` to the last byte, only the `"header"`, or whether the file is `"present"`.
        sample: at how many pictures, spread evenly over the rows; `None` means all.
        workers: processes to do it.
        progress: called with the pictures done and their number.

    Returns:
        What is wrong, a finding for each row that shows a picture concerned; `wrong_suffix` among them.
    """
    pictures = Pictures.of(rows)
    todo = np.argsort(pictures.row, kind="stable")  # in the order of the file, which is that of the folders
    if sample is not None and sample < len(todo):
        todo = todo[np.linspace(0, len(todo) - 1, sample).astype(np.int64)]
    jobs = [
        [
            (
                int(i),
                int(pictures.row[i]),
                int(pictures.place[i]),
                int(pictures.status[i]),
                int(pictures.stamp[i]),
            )
            for i in part
        ]
        for part in np.split(todo, np.arange(CHUNK, len(todo), CHUNK))
        if len(part)
    ]
    details: dict[int, str] = {}
    done, saved = 0, time.monotonic()
    try:
        for results in _run(jobs, rows, depth, workers):
            for picture, status, stamp, detail in results:
                pictures.status[picture], pictures.stamp[picture] = status, stamp
                if detail:
                    details[picture] = detail
            done += len(results)
            if progress is not None:
                progress(done, len(todo))
            if depth == "decode" and time.monotonic() - saved > SAVE_SECONDS:
                pictures.save()
                saved = time.monotonic()
    finally:
        if depth == "decode":
            pictures.save()
    return pictures.findings(details)


def known_bad_pictures(rows: Rows) -> list[Finding]:
    """Return what earlier checks of the pictures found, without looking at any."""
    pictures = Pictures.of(rows)
    still_fine = [0, GOOD, *(CODES.index(code) + 1 for code in STILL_TRAINS)]
    bad = np.flatnonzero(~np.isin(pictures.status, still_fine)).tolist()
    return pictures.findings(dict.fromkeys(bad, "found by `basic-lite data check`"))


Job = tuple[int, int, int, int, int]
"""Number of a picture, the row and the place that show it, its last known status and stamp."""

Result = tuple[int, int, int, str]
"""Number of a picture, its status, its stamp, and what is wrong with it."""


class _Looker:
    """Looks at runs of pictures; one in every process."""

    def __init__(self, rows: Rows, depth: Depth) -> None:
        self.rows = rows
        self.depth = depth

    def __call__(self, jobs: list[Job]) -> list[Result]:
        return [self.look(*job) for job in jobs]

    def look(self, picture: int, row: int, place: int, status: int, stamp: int) -> Result:
        try:
            ref = self.rows.image_ref(self.rows.raw(row).images[place])
            stored = locate(ref)
            if stored.stamp == stamp and status == GOOD:
                return picture, GOOD, stamp, ""
            stamp = stored.stamp
            check_picture(ref, self.depth)
        except RowFault as fault:
            return picture, CODES.index(fault.code) + 1, stamp, fault.detail
        return picture, GOOD if self.depth == "decode" else 0, stamp, ""


_looker: _Looker | None = None


def _start(rows: Rows, depth: Depth) -> None:
    global _looker
    _looker = _Looker(rows, depth)


def _look(jobs: list[Job]) -> list[Result]:
    return _looker(jobs)


def _run(jobs: list[list[Job]], rows: Rows, depth: Depth, workers: int) -> Iterator[list[Result]]:
    if workers == 1 or len(jobs) < 2:
        yield from map(_Looker(rows, depth), jobs)
        return
    done = 0
    while done < len(jobs):
        try:
            for results in in_processes(_look, jobs[done:], workers, _start, rows, depth):
                done += 1
                yield results
        except BrokenProcessPool:  # a decoder took its process down: find the picture, go on with the rest
            suspects = jobs[done : done + AHEAD * workers]
            done += len(suspects)
            yield from _one_by_one([picture for job in suspects for picture in job], rows, depth)


def _one_by_one(pictures: list[Job], rows: Rows, depth: Depth) -> Iterator[list[Result]]:
    done = 0
    while done < len(pictures):
        try:
            for results in in_processes(_look, [[job] for job in pictures[done:]], 1, _start, rows, depth):
                done += 1
                yield results
        except BrokenProcessPool:
            code = CODES.index("undecodable_image") + 1
            yield [(pictures[done][0], code, 0, "decoding it ends the process")]
            done += 1
