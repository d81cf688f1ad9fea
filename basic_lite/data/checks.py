"""Checks of training data: all findings for `data check`, and those that matter at the start of a run."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial

import numpy as np

from basic_lite.data.archives import locate, nearest_name
from basic_lite.data.conversation import IMAGE
from basic_lite.data.dataset import TextEncoder, images_of
from basic_lite.data.findings import (
    caption_findings,
    in_order,
    note_findings,
    of_each_set,
    repeated_ids,
    text_findings,
)
from basic_lite.data.index import Progress, estimated_length, no_progress
from basic_lite.data.pictures import Depth, check_picture
from basic_lite.data.readers import Rows, image_ref
from basic_lite.data.rows import (
    CODES,
    MAX_LENGTH,
    PICTURE_NOTES,
    STILL_TRAINS,
    TOKENS_PER_IMAGE,
    WHITE,
    Finding,
    RowFault,
    normal_form,
    shown,
)
from basic_lite.data.tiles import Tiling
from basic_lite.data.workers import in_processes, mapped
from basic_lite.files import load_table, save_table, table_places

LENGTH_CHUNK: int = 128
"""Rows that one process counts at a time."""

TEMPLATE_TOKENS: int = 64
"""Most tokens that a template adds to a row, most of them its system text."""


def estimated_findings(
    rows: Rows, *, max_length: int, tokens_per_image: int, tiling: Tiling | None = None
) -> list[Finding]:
    """Return `too_long`, and `no_supervision`, by the estimates of the index.

    `max_length` includes images, which take `tokens_per_image` each, or with `tiling` as their sizes say.
    """
    of_images, findings = images_of(rows, tokens_per_image, tiling), []
    tokens = rows.batch_lengths(of_images)
    for row in np.flatnonzero(tokens > max_length).tolist():
        raw = rows.raw(row)
        length = f"about {int(tokens[row]):,} tokens (estimated)"
        taken = int(of_images[row])
        findings.append(_too_long(row, raw.id, length, len(raw.images), taken, max_length))
        try:
            turns = normal_form(raw).turns
        except RowFault:
            continue  # `text_findings` has it
        pictured = [place for place, (_, text) in enumerate(turns[::2]) if IMAGE in text]
        before = estimated_length(turns[: 2 * max(pictured, default=0) + 1])
        if before + taken > max_length:
            detail = f"{length}: its pictures, or its first question, do not fit into {max_length:,}"
            findings.append(Finding(row, raw.id, "no_supervision", detail))
    return findings


def counted_findings(
    rows: Rows,
    encoder: TextEncoder,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = no_progress,  # called with the rows done and their number
) -> list[Finding]:
    """Return `too_long`, and `no_supervision`, as training will find them: with its own tokenizer.

    The limit is the encoder's `max_length`. Rows whose estimate is below half of it are not counted: only a
    text that is mostly punctuation, estimated at a token for four characters, takes twice its estimate.
    """
    assert encoder.max_length is not None
    todo = np.flatnonzero(_may_exceed(rows, encoder, encoder.max_length))
    jobs = [todo[at : at + LENGTH_CHUNK].tolist() for at in range(0, len(todo), LENGTH_CHUNK)]
    counted = mapped(partial(_count, rows, encoder), jobs, workers)
    findings, done = [], 0
    for job, too_long in zip(jobs, counted, strict=True):
        findings += too_long
        done += len(job)
        progress(done, len(todo))
    return findings


def unfit_findings(rows: Rows, encoder: TextEncoder) -> list[Finding]:
    """Return the rows of which `max_length` would cut a picture or all answers; training leaves them out.

    They are counted by the tokenizer, and are those that `counted_findings` calls `no_supervision`. Of other
    rows the end of the text is cut.
    """
    length, findings = encoder.max_length, []
    if length is None:
        return findings
    images = encoder.image_tokens(rows)
    for row in np.flatnonzero(_may_exceed(rows, encoder, length)).tolist():
        sample = rows[row]
        pictured = [place for place, (_, text) in enumerate(sample.turns[::2]) if IMAGE in text]
        answer = next(place for place in range(1, len(sample.turns), 2) if place not in sample.silent)
        needed = sample.turns[: max(2 * max(pictured, default=0) + 1, answer)]
        if 2 * estimated_length(needed) + TEMPLATE_TOKENS + images[row] <= length:
            continue  # most long rows are long in their answers: not tokenised twice
        try:
            encoder(sample, rows.sizes_of(row))
        except RowFault as fault:
            findings.append(rows.named(Finding(row, sample.id, fault.code, fault.detail)))
    return findings


def _may_exceed(rows: Rows, encoder: TextEncoder, length: int) -> np.ndarray:
    """Return `(rows,)` bool, the usable rows that are not certain to fit; see `counted_findings`."""
    images = encoder.image_tokens(rows)
    return rows.usable & (2 * rows.index.tokens.astype(np.int64) + TEMPLATE_TOKENS + images > length)


def _too_long(row: int, name: str, length: str, images: int, taken: int, fit: int) -> Finding:
    of_them = f" {taken:,} of them for {images} image{'s' if images > 1 else ''}," if images else ""
    detail = f"{length},{of_them} and {fit:,} fit: its end is cut off"
    return Finding(row, name, "too_long", detail)


def _count(rows: Rows, encoder: TextEncoder, numbers: list[int]) -> list[Finding]:
    findings, whole, fit = [], replace(encoder, max_length=None), encoder.max_length
    assert fit is not None
    for row in numbers:
        sample, sizes = rows[row], rows.sizes_of(row)
        try:
            ids = whole(sample, sizes).input_ids
            if len(ids) > fit:
                taken, length = ids.count(encoder.image_token_id), f"{len(ids):,} tokens"
                findings.append(_too_long(row, sample.id, length, len(sample.images), taken, fit))
                encoder(sample, sizes)
        except RowFault as fault:
            findings.append(Finding(row, sample.id, fault.code, fault.detail))
    return findings


GOOD: int = 255
"""Status of a picture that was decoded; 0 is unknown, any other is 1 + the place in `CODES`."""

CHUNK: int = 64
SAVE_SECONDS: float = 20.0
COLUMNS: dict[str, type[np.generic]] = {"status": np.uint8, "stamp": np.int64}


class Pictures:
    """The different pictures of some rows, and what earlier checks found about each.

    That is kept beside the annotations with each file's size and time, so that a check that was stopped goes
    on where it was, and one that is run again opens only what has changed.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        counts = rows.index.images.astype(np.int64)
        # Of each image of the rows, `(sum(images),)`: its row, and which picture it is
        self.row_of = np.repeat(np.arange(len(counts)), counts)
        _, first, self.inverse = np.unique(rows.index.image_hash, return_index=True, return_inverse=True)
        # Of each picture, `(pictures,)`: the first row that shows it, and its place among that row's images
        self.row = self.row_of[first]
        self.place = first - (np.cumsum(counts) - counts)[self.row]
        self.status = np.zeros(len(first), np.uint8)  # `(pictures,)`, see `GOOD`
        self.stamp = np.zeros(len(first), np.int64)  # `(pictures,)`, of the bytes that `status` is about
        known = load_table(table_places(rows.path, "pictures"), self._key(), COLUMNS)
        if known is not None and len(known[1]["status"]) == len(first):
            self.status, self.stamp = known[1]["status"].copy(), known[1]["stamp"].copy()

    def save(self) -> None:
        columns = {"status": self.status, "stamp": self.stamp}
        save_table(table_places(self.rows.path, "pictures"), self._key(), columns)

    def _key(self) -> dict[str, str]:
        root = "" if self.rows.images is None else os.path.realpath(self.rows.images)
        key = {"format": "2", "sha256": self.rows.sha256, "root": root, "links": str(self.rows.follow_links)}
        return key if self.rows.background == WHITE else key | {"background": self.rows.background}

    def findings(self, details: dict[int, str]) -> list[Finding]:
        """Return a finding for every row that has one of the pictures in `details`."""
        faulty = np.isin(self.inverse, list(details))
        shown = zip(self.row_of[faulty].tolist(), self.inverse[faulty].tolist(), strict=True)
        return [
            Finding(row, self.rows.raw(row).id, CODES[int(self.status[picture]) - 1], details[picture])
            for row, picture in shown
        ]


def check_pictures(
    rows: Rows,
    *,
    # `"decode"` to the last byte, only the `"header"`, or whether the file is `"present"`
    depth: Depth = "decode",
    sample: int | None = None,  # how many pictures, spread evenly over the rows; `None` for all
    workers: int = 1,
    progress: Callable[[int, int], None] = no_progress,  # called with the pictures done and their number
) -> list[Finding]:
    """Check the pictures of `rows`, each once however many rows show it.

    Returns a finding for each row that shows a picture with a fault or a note.
    """
    pictures = Pictures(rows)
    todo = np.argsort(pictures.row, kind="stable")  # in the order of the file, which is that of the folders
    if sample is not None and sample < len(todo):
        todo = todo[np.linspace(0, len(todo) - 1, sample).astype(np.int64)]
    known = (todo, pictures.row[todo], pictures.place[todo], pictures.status[todo], pictures.stamp[todo])
    each = list(zip(*(column.tolist() for column in known), strict=True))
    jobs = [each[at : at + CHUNK] for at in range(0, len(each), CHUNK)]
    details: dict[int, str] = {}
    done, saved = 0, time.monotonic()
    try:
        examine = partial(_examine, rows, depth)
        serial = workers == 1 or len(jobs) < 2
        for results in map(examine, jobs) if serial else _examined(examine, jobs, workers):
            for picture, status, stamp, detail in results:
                pictures.status[picture], pictures.stamp[picture] = status, stamp
                if detail:
                    details[picture] = detail
            done += len(results)
            progress(done, len(todo))
            if depth == "decode" and time.monotonic() - saved > SAVE_SECONDS:
                pictures.save()
                saved = time.monotonic()
    finally:
        if depth == "decode":
            pictures.save()
    return _with_nearest(rows, pictures.findings(details))


def _with_nearest(rows: Rows, findings: list[Finding]) -> list[Finding]:
    """Add the nearest names to the first missing pictures, which often shows what all have in common."""
    missing = [place for place, finding in enumerate(findings) if finding.code == "missing_image"]
    for place in missing[:3]:
        finding = findings[place]
        images = rows.raw(finding.row).images
        refs = [image_ref(image, rows.images, rows.follow_links) for image in images]
        near = [nearest_name(ref) for ref in refs if shown(ref.name) in finding.detail]
        if any(near):
            name = shown(next(filter(None, near)))
            findings[place] = replace(finding, detail=f"{finding.detail}; the nearest name there is {name}")
    return findings


def known_bad_pictures(rows: Rows) -> list[Finding]:
    """Return the faults that earlier checks of the pictures found, without opening any."""
    pictures = Pictures(rows)
    still_fine = [0, GOOD, *(CODES.index(code) + 1 for code in STILL_TRAINS)]
    bad = np.flatnonzero(~np.isin(pictures.status, still_fine)).tolist()
    return pictures.findings(dict.fromkeys(bad, "found by `basic-lite data check`"))


Job = tuple[int, int, int, int, int]
"""Number of a picture, the row and the place that show it, its last known status and stamp."""

Result = tuple[int, int, int, str]
"""Number of a picture, its status, its stamp, and what is wrong with it."""


def _examine(rows: Rows, depth: Depth, jobs: list[Job]) -> list[Result]:
    results = []
    for picture, row, place, status, stamp in jobs:
        detail = ""
        try:
            ref = image_ref(rows.raw(row).images[place], rows.images, rows.follow_links)
            stored = locate(ref)
            if stored.stamp != stamp or status != GOOD:
                stamp = stored.stamp
                check_picture(ref, depth, rows.background)
                status = GOOD if depth == "decode" else 0
        except RowFault as fault:
            status, detail = CODES.index(fault.code) + 1, fault.detail
        results.append((picture, status, stamp, detail))
    return results


def _examined(
    examine: Callable[[list[Job]], list[Result]], jobs: list[list[Job]], workers: int, single: bool = False
) -> Iterator[list[Result]]:
    """Yield `examine(job)` of every job; a picture that kills the process that decodes it has a result too.

    `single` says that every job is one picture.
    """
    done = 0
    while done < len(jobs):
        try:
            for results in in_processes(examine, jobs[done:], workers):
                done += 1
                yield results
        except BrokenProcessPool:
            if single:
                code = CODES.index("undecodable_image") + 1
                yield [(jobs[done][0][0], code, 0, "decoding it ends the process")]
                done += 1
            else:  # find the picture, go on with the rest
                suspects = jobs[done : done + 2 * workers]
                done += len(suspects)
                yield from _examined(examine, [[picture] for job in suspects for picture in job], 1, True)


def check_data(
    rows: Rows,
    *,
    pictures: Depth | None = "decode",  # how much of them is checked; `None` for nothing
    max_length: int = MAX_LENGTH,  # of a row, images included
    tokens_per_image: int = TOKENS_PER_IMAGE,
    stage: int = 2,  # 1 takes only rows of one image and its caption
    encoder: TextEncoder | None = None,  # counts tokens, with the two limits above; `None` estimates them
    tiling: Tiling | None = None,  # grids of tiles; `rows` then know the sizes of their pictures
    workers: int = 1,
    # Called with what is being done, how much of it, and of how much
    progress: Progress = no_progress,
) -> list[Finding]:
    """Check every row's text, length and pictures; return the findings by row."""
    if encoder is not None:
        encoder = replace(encoder, tiling=tiling)

    def check(part: Rows) -> list[Finding]:
        findings = _stage_findings(part, stage) + note_findings(part) + repeated_ids(part)
        if encoder is None:
            limits = {"max_length": max_length, "tokens_per_image": tokens_per_image}
            findings += estimated_findings(part, **limits, tiling=tiling)
        else:
            findings += counted_findings(part, encoder, workers=workers, progress=partial(progress, "tokens"))
        if pictures is not None:
            images = partial(progress, "images")
            findings += check_pictures(part, depth=pictures, workers=workers, progress=images)
        return in_order(findings)

    return of_each_set(rows, check)


def check_rows(
    rows: Rows,
    stage: int = 2,  # 1 takes only rows of one image and its caption
    *,
    images: int | None = 2000,  # how many pictures must exist, spread evenly over the rows; `None` for all
    decoded: int | None = 100,  # how many are decoded; `None` for all
    say: Callable[[str], object] = lambda line: None,  # takes a line about pictures that are used, but odd
) -> list[Finding]:
    """Check every row's text and a sample of the pictures; takes a few seconds, at the start of every run.

    What `basic-lite data check` found about the pictures earlier counts too. Lengths, which are only
    estimates, do not: a row whose answers are all cut off is replaced when it is read. Returns only what
    keeps rows from training.
    """

    def check(part: Rows) -> list[Finding]:
        findings = _stage_findings(part, stage)
        findings += check_pictures(part, depth="present", sample=images)
        findings += check_pictures(part, depth="decode", sample=decoded)
        findings += known_bad_pictures(part)
        odd = Counter(code for _, code in {(f.row, f.code) for f in findings if f.code in PICTURE_NOTES})
        if odd:
            counts = ", ".join(f"{count:,} {code}" for code, count in odd.most_common())
            say(f"Among the pictures looked at: {counts}. `basic-lite data check {part.path}` says more.")
        return in_order(finding for finding in findings if finding.code not in STILL_TRAINS)

    return of_each_set(rows, check)


def _stage_findings(rows: Rows, stage: int) -> list[Finding]:
    return text_findings(rows) + (caption_findings(rows) if stage == 1 else [])


def check_budget(rows: Rows, budget: float = 0.005, stage: int = 2) -> None:
    """Raise ValueError if more rows of a data set are not `usable` than the share `budget` allows.

    The error counts them by code and names the first.
    """
    usable, start = rows.usable, 0
    for part in rows.parts:  # each alone: a small set with a wrong image folder must not go unnoticed
        stop = start + len(part)
        bad = int((~usable[start:stop]).sum())
        if bad > budget * len(part) or bad == len(part):
            _refuse(rows, part, range(start, stop), bad, budget, stage)
        start = stop


def _refuse(rows: Rows, part: Rows, numbers: range, bad: int, budget: float, stage: int) -> None:
    faults = in_order([*of_each_set(rows, text_findings), *rows.faults])
    faults = [fault for fault in faults if fault.code not in STILL_TRAINS and fault.row in numbers]
    counts = Counter({fault.row: fault.code for fault in reversed(faults)}.values()).most_common()
    # Lengths were counted with the LLM's tokenizer, which `data check` uses only if it is given.
    counted = " --tokenizer LLM --max-length N" if any("max_length" in f.detail for f in faults) else ""
    first = "; ".join(f"{f.where} (id {shown(f.id)}): {f.code}, {f.detail}" for f in faults[:3])
    raise ValueError(
        f"{bad:,} of {len(part):,} rows of {part.path} cannot be trained on "
        f"({', '.join(f'{count} {code}' for code, count in counts)}), more than the allowed {budget:.1%}: "
        f"{first}{', and more' if len(faults) > 3 else ''}. "
        f"Repair what `basic-lite data check {part.path} --stage {stage}{counted}` lists, or allow more"
    )
