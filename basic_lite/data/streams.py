"""Rows one after another, from a data set that is not on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from basic_lite.data.hub import RATINGS, open_dataset
from basic_lite.data.readers import image_ref, image_root
from basic_lite.data.rows import RowFault, Sample, normal_form, read_row, shown


class Stream:
    """The rows of a Hugging Face data set, read as they come.

    Args:
        source: as for `open_rows`, data sets only.
        images: folder, zip or tar that image paths are relative to.
        shuffle_rows: how many rows are held to be shuffled; 0 keeps the order.
        seed: of the shuffle.
        min_rating: leave out rows that FineVision rates lower in anything.
        skip: rows to leave out at the start, to go on where a run was stopped.

    Raises:
        ValueError: If there is no such data set.
    """

    def __init__(
        self,
        source: str | Path,
        images: str | Path | None = None,
        *,
        shuffle_rows: int = 0,
        seed: int = 0,
        min_rating: int | None = None,
        skip: int = 0,
    ) -> None:
        self.source = source
        self.root = None if images is None else image_root(images)
        self.min_rating = min_rating
        dataset = open_dataset(source, streaming=True)
        if shuffle_rows:
            dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_rows)
        self.dataset = dataset.skip(skip) if skip else dataset

    def __iter__(self) -> Iterator[Sample | RowFault]:
        """Yield a sample for every good row, and what is wrong with every other."""
        for number, row in enumerate(self.dataset):
            ratings = [row[column] for column in RATINGS if row.get(column) is not None]
            if self.min_rating is not None and (not ratings or min(ratings) < self.min_rating):
                continue
            name = ""
            try:
                raw = read_row(row, stored=True)
                name = raw.id
                images, turns = normal_form(raw)
                refs = tuple(image_ref(image, self.root) for image in images)
                yield Sample(raw.id, refs, turns, raw.source)
            except RowFault as fault:
                named = f" (id {shown(name)})" if name else ""
                yield RowFault(fault.code, f"row {number}{named} of {self.source}: {fault.detail}")
