"""Several data sets as one: how they are named, and which row is whose."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from basic_lite.data.hub import is_stored
from basic_lite.data.index import Index, Progress, joined, no_progress
from basic_lite.data.readers import Rows, open_rows
from basic_lite.data.rows import WHITE, Finding, RawRow, Sample, text_hash

MOST: float = 100
"""Largest weight."""

OWN: str = "-"
"""Stands for the data's own folder among several `--images`."""


@dataclass(frozen=True)
class Source:
    """A data set as it is named."""

    path: Path  # file, folder or hub id
    weight: float = 1.0  # the share of its rows that an epoch draws; above 1, how often it repeats them
    images: Path | None = None  # what its image paths are relative to; `None` for its own folder


def parse_source(text: str | Path) -> Source:
    """Read `PATH`, or `PATH:WEIGHT`.

    What exists under the whole text is that file, and only a number after the last colon is a weight: hub ids
    have a colon before their configuration, Windows paths one after the drive. Raises ValueError, in one
    line, if a weight is not above 0 and at most `MOST`, or if the name of an existing file is followed by a
    colon and no number.
    """
    path, colon, after = str(text).rpartition(":")
    if not colon or not path or Path(text).exists():
        return Source(Path(text))
    try:
        weight = float(after)
    except ValueError:
        if Path(path).is_file():
            raise ValueError(
                f"--data {text}: {after!r} is no weight; give a number above 0, such as {path}:0.5"
            ) from None
        return Source(Path(text))
    if not 0 < weight <= MOST:
        raise ValueError(f"--data {text}: a weight must be above 0 and at most {MOST:g}, got {after}")
    return Source(Path(path), weight)


def parse_sources(data: Sequence[str | Path], images: Sequence[str | Path] | None) -> tuple[Source, ...]:
    """Read several data sets, each with its image folder.

    `images` is one for all, or one for each in the same order. Raises ValueError as `parse_source`, and if
    the numbers do not match.
    """
    sources = [parse_source(text) for text in data]
    given = list(images or [OWN])
    if len(given) not in (1, len(sources)):
        raise ValueError(
            f"{len(given)} --images for {len(sources)} --data: give one for all, or one for each in the same "
            f"order ({OWN} for a set's own folder)"
        )
    given *= len(sources) // len(given)
    return tuple(
        replace(source, images=None if str(folder) == OWN else Path(folder))
        for source, folder in zip(sources, given, strict=True)
    )


def check_source(source: Source) -> None:
    """Raise ValueError if a data set exists nowhere and is no hub id, or if its images do not exist."""
    path, images = source.path, source.images
    if not path.is_file() and not path.is_dir() and not is_stored(path):
        raise ValueError(
            f"--data {path} does not exist; give a LLaVA JSON or JSONL file, a folder of Arrow or "
            "Parquet, or a hub id"
        )
    if images is not None and not images.exists():
        raise ValueError(f"--images {images} does not exist; give the folder that image paths start from")


class Mix(Rows):
    """Rows of several data sets, one after another, under numbers that go on."""

    def __init__(self, parts: Sequence[Rows], weights: Sequence[float]) -> None:
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        index = joined([_salted(part, number) for number, part in enumerate(parts)])
        super().__init__(Path(", ".join(str(part.path) for part in parts)), parts[0]._fetch, index)
        self._parts, self._starts, self.weights = tuple(parts), starts, tuple(weights)
        self.stored = any(part.stored for part in parts)

    @property
    def parts(self) -> tuple[Rows, ...]:
        return self._parts

    @property
    def sets(self) -> tuple[tuple[int, float], ...]:
        return tuple(zip(map(len, self._parts), self.weights, strict=True))

    def place(self, row: int) -> tuple[Rows, int]:
        """Return the set that a row is of, and its number there."""
        number = bisect.bisect_right(self._starts, row) - 1
        return self._parts[number], row - self._starts[number]

    def named(self, finding: Finding) -> Finding:
        """Return a finding with the file and the number of its row there."""
        part, row = self.place(finding.row)
        return replace(finding, file=str(part.path), row_in_file=row)

    def __getitem__(self, row: int) -> Sample:
        part, number = self.place(range(len(self))[row])
        return replace(part[number], where=f"row {number} of {part.path}")

    def raw(self, row: int) -> RawRow:
        part, number = self.place(row)
        return part.raw(number)

    def name(self, row: int) -> str:
        part, number = self.place(row)
        return part.name(number)


def _salted(part: Rows, number: int) -> Index:
    """Return a set's index with its pictures distinct from those of the same name in other folders."""
    salt = text_hash(f"{number}" if part.stored else str(part.images and Path(part.images).resolve()))
    return replace(part.index, image_hash=part.index.image_hash ^ np.uint64(salt))


def open_sources(
    sources: Sequence[Source],
    *,
    follow_links: bool = False,
    min_rating: int | None = None,
    background: str = WHITE,
    workers: int = 1,
    progress: Progress = no_progress,
) -> Rows:
    """Open data sets as one; see `open_rows` for the arguments.

    Returns the rows of a single set whose weight is 1, else a `Mix`. Raises ValueError if one cannot be
    opened, or is named twice: a weight repeats rows.
    """
    path, count = Counter(source.path for source in sources).most_common(1)[0]
    if count > 1:
        raise ValueError(f"--data {path} is given twice: a weight repeats its rows, as in {path}:2")
    given = {"follow_links": follow_links, "min_rating": min_rating, "workers": workers, "progress": progress}
    parts = [open_rows(source.path, source.images, **given) for source in sources]
    for part in parts:
        part.background = background
    weights = [source.weight for source in sources]
    return parts[0] if weights == [1.0] else Mix(parts, weights)


def named_sources(sources: Sequence[Source]) -> str:
    """Return data sets as they are written in a command."""
    return ", ".join(f"{s.path}:{s.weight:g}" if s.weight != 1 else str(s.path) for s in sources)
