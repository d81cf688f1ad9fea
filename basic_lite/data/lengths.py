"""Which rows are too long: estimated from their letters, or counted by the tokenizer of the LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from basic_lite.data.encoding import TextEncoder
from basic_lite.data.findings import Finding
from basic_lite.data.index import estimated_length
from basic_lite.data.readers import Rows
from basic_lite.data.samples import RowFault
from basic_lite.data.workers import in_processes

CHUNK: int = 128
"""Rows that one process counts at a time."""

TEMPLATE_TOKENS: int = 64
"""What a template may add to a row, its system text above all."""


def estimated_findings(rows: Rows, *, max_length: int, tokens_per_image: int) -> list[Finding]:
    """Return `too_long`, and `no_supervision`, by the estimates of the index.

    Args:
        rows: from `open_rows`.
        max_length: most tokens of a row, images included.
        tokens_per_image: tokens that an image takes.
    """
    tokens, found = rows.batch_lengths(tokens_per_image), []
    for row in np.flatnonzero(tokens > max_length).tolist():
        raw = rows.raw(row)
        length = f"about {int(tokens[row]):,} tokens (estimated)"
        found.append(_too_long(row, raw.id, length, len(raw.images), tokens_per_image, max_length))
        answers = [place for place, (role, _) in enumerate(raw.turns) if role == "assistant" and place]
        before = estimated_length(raw.turns[: answers[0]]) if answers else 0
        if before + len(raw.images) * tokens_per_image > max_length:
            detail = f"{length}: its first answer starts behind the {max_length:,} that fit"
            found.append(Finding(row, raw.id, "no_supervision", detail))
    return found


def counted_findings(
    rows: Rows,
    encoder: TextEncoder,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Return `too_long`, and `no_supervision`, as training will find them: with its own tokenizer.

    Rows whose estimate is below half of the limit are not counted: no text takes twice its estimate but one
    of mostly signs, four of which are taken for one token.

    Args:
        rows: from `open_rows`.
        encoder: the LLM's, with the limit as its `max_length`.
        workers: processes to do it.
        progress: called with the rows done and their number.
    """
    images = rows.index.images.astype(np.int64) * encoder.tokens_per_image
    most = 2 * rows.index.tokens.astype(np.int64) + TEMPLATE_TOKENS + images
    todo = np.flatnonzero(rows.usable & (most > encoder.max_length))
    jobs = [part.tolist() for part in np.split(todo, np.arange(CHUNK, len(todo), CHUNK)) if len(part)]
    found, done = [], 0
    for number, findings in enumerate(_counted(jobs, rows, encoder, workers)):
        found += findings
        done += len(jobs[number])
        if progress is not None:
            progress(done, len(todo))
    return found


def _too_long(row: int, name: str, length: str, images: int, tokens_per_image: int, fit: int) -> Finding:
    detail = f"{length} with {images} images of {tokens_per_image}; {fit:,} fit: its end is cut off"
    return Finding(row, name, "too_long", detail)


class _Counter:
    """Counts the tokens of runs of rows; one in every process."""

    def __init__(self, rows: Rows, encoder: TextEncoder) -> None:
        self.rows = rows
        self.encoder = encoder

    def __call__(self, numbers: list[int]) -> list[Finding]:
        return [finding for row in numbers for finding in self.look(row)]

    def look(self, row: int) -> Iterator[Finding]:
        sample, fit = self.rows[row], self.encoder.max_length
        whole = replace(self.encoder, max_length=None)
        try:
            tokens = len(whole(sample).input_ids)
            if tokens > fit:
                images, per_image = len(sample.images), self.encoder.tokens_per_image
                yield _too_long(row, sample.id, f"{tokens:,} tokens", images, per_image, fit)
                self.encoder(sample)
        except RowFault as fault:
            yield Finding(row, sample.id, fault.code, fault.detail)


_counter: _Counter | None = None


def _start(rows: Rows, encoder: TextEncoder) -> None:
    global _counter
    _counter = _Counter(rows, encoder)


def _count(numbers: list[int]) -> list[Finding]:
    return _counter(numbers)


def _counted(
    jobs: list[list[int]], rows: Rows, encoder: TextEncoder, workers: int
) -> Iterator[list[Finding]]:
    if workers == 1 or len(jobs) < 4:
        yield from map(_Counter(rows, encoder), jobs)
    else:
        yield from in_processes(_count, jobs, workers, _start, rows, encoder)
