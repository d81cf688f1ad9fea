"""Rows by number, from files that stay on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from basic_lite.data.archives import SUFFIXES, open_archive
from basic_lite.data.hub import Fetch, index_dataset, is_stored, open_dataset, stored_key, well_rated
from basic_lite.data.index import Index, Progress, open_index, parse_row
from basic_lite.data.rows import (
    STILL_TRAINS,
    ImageRef,
    RawRow,
    RowFault,
    Sample,
    normal_form,
    read_row,
    shown,
)

if TYPE_CHECKING:
    from basic_lite.data.rows import Finding


class Rows:
    """Rows that are read one by one when they are asked for.

    Holds the index, some 40 bytes a row, and nothing of the rows themselves; may be sent to workers.

    Attributes:
        faults: what checks found wrong with rows, which are then not `usable`; nothing at first.

    Args:
        path: the annotation file or folder, for messages.
        fetch: returns a row as stored, by its number; may raise `RowFault`.
        index: what is known of the rows.
        images: folder or archive that image paths are relative to.
        follow_links: whether links under it may lead out of it.
        stored: whether rows may hold pictures themselves, as those of `datasets` do.
    """

    def __init__(
        self,
        path: Path,
        fetch: Callable[[int], object],
        index: Index,
        *,
        images: Path | None = None,
        follow_links: bool = False,
        stored: bool = False,
    ) -> None:
        self.path = path
        self.index = index
        self.images = images
        self._fetch = fetch
        self.follow_links = follow_links
        self.stored = stored
        self.faults: Sequence[Finding] = ()

    @property
    def sha256(self) -> str:
        """Return the hash of the annotations, for a run's manifest."""
        return self.index.sha256

    @property
    def lengths(self) -> np.ndarray:
        """Return `(rows,)` int32, the estimated text tokens of each row, images not counted."""
        return self.index.tokens

    def batch_lengths(self, tokens_per_image: int, max_length: int | None = None) -> np.ndarray:
        """Return `(rows,)` int64, the estimated tokens that each row takes in a batch.

        Args:
            tokens_per_image: tokens of one image.
            max_length: where longer rows are cut.
        """
        tokens = self.index.tokens + self.index.images.astype(np.int64) * tokens_per_image
        return tokens if max_length is None else np.minimum(tokens, max_length)

    @property
    def has_image(self) -> np.ndarray:
        """Return `(rows,)` bool, which rows have an image."""
        return self.index.images > 0

    @property
    def usable(self) -> np.ndarray:
        """Return `(rows,)` bool, the rows that nothing is known against: neither in text nor in `faults`."""
        usable = self.index.fault == 0
        usable[[fault.row for fault in self.faults if fault.code not in STILL_TRAINS]] = False
        return usable

    def __len__(self) -> int:
        return len(self.index.fault)

    def __iter__(self) -> Iterator[Sample]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Sample:
        """Return a row in normal form.

        Args:
            row: the row's number, from 0; negative numbers count from the end.

        Returns:
            The sample.

        Raises:
            IndexError: If there is no such row.
            ValueError: If the row cannot be trained on; names the row, its id and the file.
        """
        row = range(len(self))[row]
        name = ""
        try:
            raw = self.raw(row)
            name = raw.id
            images, turns = normal_form(raw)
        except RowFault as fault:
            named = f" (id {shown(name)})" if name else ""
            raise RowFault(fault.code, f"row {row}{named} of {self.path}: {fault.detail}") from None
        return Sample(raw.id, tuple(self.image_ref(image) for image in images), turns, raw.source)

    def raw(self, row: int) -> RawRow:
        """Return what the layout's reader makes of row `row`, its turns unchecked.

        Raises:
            RowFault: `malformed_row` or `bad_roles`.
        """
        return read_row(self._fetch(row), stored=self.stored)

    def image_ref(self, image: object) -> ImageRef:
        """Return where the picture of an image entry is."""
        return image_ref(image, self.images, follow_links=self.follow_links)


class JsonFile:
    """Fetches rows of a JSON or JSONL file by their place in it.

    Read with `seek`, not mapped: pages of a mapped gigabyte would count as this process's memory, and a
    file cut short meanwhile would end the process instead of raising.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self.index = index

    def __call__(self, row: int) -> object:
        """Return row `row`, parsed."""
        with open(self.path, "rb") as file:
            file.seek(int(self.index.offset[row]))
            return parse_row(file.read(int(self.index.size[row])).strip())


def open_rows(
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    follow_links: bool = False,
    min_rating: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Rows:
    """Open training data for reading by row number.

    Args:
        annotations: a LLaVA `.json` (one array) or `.jsonl` file; or a data set in the layout of
            LLaVA-NeXT-Data, the_cauldron or FineVision: a folder or file of Arrow or Parquet, or a hub id.
        images: folder, zip or tar that image paths are relative to; `None` means the file's folder.
        follow_links: whether links in the image folder may lead out of it.
        min_rating: leave out rows that FineVision rates lower in anything.
        workers: processes for the pass over a JSON file that has no index yet.
        progress: told how far that pass is.

    Returns:
        The rows; `len(rows)`, `rows[i]` is a `Sample`.

    Raises:
        ValueError: If the file or the folder is missing, or there are no rows in it.
    """
    path = Path(annotations)
    if is_stored(annotations):
        dataset = open_dataset(annotations)
        if min_rating is not None:
            dataset = well_rated(dataset, min_rating)
        if not len(dataset):
            raise ValueError(f"{annotations} holds no rows")
        places, key = stored_key(annotations, dataset)
        index = index_dataset(dataset, places, key, progress)
        root = None if images is None else image_root(images)
        return Rows(path, Fetch(dataset), index, images=root, follow_links=follow_links, stored=True)
    if min_rating is not None:
        raise ValueError(
            f"{path} has no ratings: only data sets in FineVision's layout can be chosen by them"
        )
    root = image_root(path.parent if images is None else images)
    index = open_index(path, workers=workers, progress=progress)
    return Rows(path, JsonFile(path, index), index, images=root, follow_links=follow_links)


def image_ref(image: object, root: Path | None, *, follow_links: bool = False) -> ImageRef:
    """Return where the picture of an image entry is: bytes, a path, or `{"bytes", "path"}`."""
    if isinstance(image, Mapping):
        data, name = image.get("bytes"), image.get("path")
        if data is None:
            return image_ref(name or "", root, follow_links=follow_links)
        return ImageRef(name or "(in the row)", data=data)
    if isinstance(image, bytes):
        return ImageRef("(in the row)", data=image)
    return ImageRef(str(image), root=None if root is None else str(root), follow_links=follow_links)


def image_root(images: str | Path) -> Path:
    """Return the folder or archive that pictures are in.

    Raises:
        ValueError: If there is none.
    """
    root = Path(images)
    if root.is_dir():
        return root
    if not root.is_file():
        raise ValueError(
            f"no image folder at {root}: give the folder, zip or tar that image paths are relative to"
        )
    if root.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{root} holds no images: give a folder, a .zip or an uncompressed .tar")
    opened = open_archive(str(root))
    if isinstance(opened, str):
        raise ValueError(opened)
    return root


# The text of training rows alone, for what is fitted or measured without a picture.


def answers_of(rows: Rows) -> Iterator[str]:
    """Yield what the assistant says in the usable rows, in a mixed order that is always the same."""
    for row in np.random.default_rng(0).permutation(np.flatnonzero(rows.usable)):
        try:
            turns = rows[int(row)].turns
        except RowFault:
            continue  # such a row is left out or replaced while training
        yield from (text for role, text in turns if role == "assistant")
