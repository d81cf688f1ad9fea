"""Rows by number, from files that stay on disk."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from basic_lite.data.archives import SUFFIXES, open_archive, unpacked
from basic_lite.data.formats import read_row, row_id
from basic_lite.data.hub import index_dataset, is_stored, open_dataset, stored_row, well_rated
from basic_lite.data.index import SHARDS, Index, Progress, no_progress, open_index, parse_row, shard_row
from basic_lite.data.rows import STILL_TRAINS, WHITE, ImageRef, RawRow, RowFault, Sample, normal_form, shown

if TYPE_CHECKING:
    from datasets import Dataset

    from basic_lite.data.rows import Finding


class Rows:
    """Rows that are read one by one when they are asked for.

    Holds the index, some 40 bytes a row, and nothing of the rows themselves; may be sent to workers.
    """

    def __init__(
        self,
        path: Path,  # the annotation file or folder, for messages
        fetch: Callable[[int], object],  # returns a row as stored, by its number; may raise `RowFault`
        index: Index,
        *,
        images: Path | None = None,  # folder or archive that image paths are relative to
        follow_links: bool = False,  # whether links under it may lead out of it
        stored: bool = False,  # whether rows may hold pictures themselves, as those of `datasets` do
    ) -> None:
        self.path, self.index, self._fetch = path, index, fetch
        self.images, self.follow_links, self.stored = images, follow_links, stored
        self.faults: Sequence[Finding] = ()  # findings of checks; rows that they rule out are not `usable`
        # `(sum(images), 2)` height and width of the pictures, once tiles need them (see `data.tiles`)
        self.sizes: np.ndarray | None = None
        self.background = WHITE  # of transparent pictures, for checks of their colours
        self.held_out = np.zeros(len(index.fault), bool)  # `(rows,)`, kept from training for validation

    @property
    def sha256(self) -> str:
        """Return the hash of the annotations, for a run's manifest."""
        return self.index.sha256

    @property
    def parts(self) -> tuple[Rows, ...]:
        """Return the data sets that the rows are from: itself alone, unless it is a `Mix`."""
        return (self,)

    @property
    def sets(self) -> tuple[tuple[int, float], ...]:
        """Return of each data set its rows and its weight."""
        return ((len(self), 1.0),)

    def named(self, finding: Finding) -> Finding:
        """Return a finding with the file of its row, which only a `Mix` has to name."""
        return finding

    @property
    def lengths(self) -> np.ndarray:
        """Return `(rows,)` int32, the estimated text tokens of each row, images not counted."""
        return self.index.tokens

    def sizes_of(self, row: int) -> list[list[int]]:
        """Return height and width of a row's pictures; nothing if `sizes` were not read."""
        if self.sizes is None:
            return []
        end = int(self._image_ends[row])
        return self.sizes[end - int(self.index.images[row]) : end].tolist()

    @cached_property
    def _image_ends(self) -> np.ndarray:
        return np.cumsum(self.index.images, dtype=np.int64)

    def batch_lengths(self, tokens_per_image: int | np.ndarray, max_length: int | None = None) -> np.ndarray:
        """Return `(rows,)` int64, the estimated tokens that each row takes in a batch, cut at `max_length`.

        `tokens_per_image` are those of one image, or `(rows,)` those of all images of each row.
        """
        if isinstance(tokens_per_image, int):
            tokens_per_image = self.index.images.astype(np.int64) * tokens_per_image
        tokens = self.index.tokens + tokens_per_image
        return tokens if max_length is None else np.minimum(tokens, max_length)

    @property
    def has_image(self) -> np.ndarray:
        """Return `(rows,)` bool, which rows have an image."""
        return self.index.images > 0

    @property
    def usable(self) -> np.ndarray:
        """Return `(rows,)` bool, the rows without a known fault, in their texts or in `faults`."""
        usable = self.index.fault == 0
        usable[[fault.row for fault in self.faults if fault.code not in STILL_TRAINS]] = False
        return usable

    @property
    def trained(self) -> np.ndarray:
        """Return `(rows,)` bool, the rows to train on: usable, and not held out."""
        return self.usable & ~self.held_out

    def __len__(self) -> int:
        return len(self.index.fault)

    def __iter__(self) -> Iterator[Sample]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Sample:
        """Return a row in normal form; negative numbers count from the end.

        Raises IndexError if there is no such row, and ValueError, naming row, id and file, if it cannot be
        trained on.
        """
        row = range(len(self))[row]
        try:
            return sample_of(self.raw(row), self.images, self.follow_links)
        except RowFault as fault:
            named = f" (id {shown(name)})" if (name := self.name(row)) else ""
            raise RowFault(fault.code, f"row {row}{named} of {self.path}: {fault.detail}") from None

    def raw(self, row: int) -> RawRow:
        """Return what the layout's reader makes of a row, its turns unchecked.

        Raises RowFault `malformed_row` or `bad_roles`.
        """
        return read_row(self._fetch(row), stored=self.stored)

    def name(self, row: int) -> str:
        """Return a row's id, even if nothing else of it can be read; empty if it has none."""
        try:
            stored = self._fetch(row)
            return row_id(stored) if isinstance(stored, Mapping) else ""
        except RowFault:
            return ""

    def answers(self) -> Iterator[str]:
        """Yield the assistant's texts in the rows to train on, in a fixed shuffled order."""
        for row in np.random.default_rng(0).permutation(np.flatnonzero(self.trained)):
            try:
                turns = self[int(row)].turns
            except RowFault:
                continue  # such a row is left out or replaced while training
            yield from (text for role, text in turns if role == "assistant")


class Files:
    """Fetches rows of JSON files or WebDataset shards by their place in them.

    The files are not mapped: pages of a mapped gigabyte would count as this process's memory, and a file that
    is cut short meanwhile would kill the process instead of raising.
    """

    def __init__(self, paths: Sequence[Path], index: Index) -> None:
        self.paths = [unpacked(path) for path in paths]
        self.index = index

    def __call__(self, row: int) -> object:
        path = self.paths[bisect.bisect_right(self.index.starts, row) - 1]
        with open(path, "rb") as file:
            file.seek(int(self.index.offset[row]))
            stored = file.read(int(self.index.size[row]))
        return shard_row(stored) if path.name.endswith(SHARDS) else parse_row(stored.strip())


JSON_FILES: tuple[str, ...] = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def row_files(path: Path) -> list[Path]:
    """Return the JSON files, else the shards, that `path` is or holds, by name; none for a data set."""
    if path.is_file():
        return [] if path.suffix in (".arrow", ".parquet") else [path]
    inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    if any(file.suffix in (".arrow", ".parquet") for file in inside):
        return []
    for suffixes in (JSON_FILES, SHARDS):
        files = [file for file in inside if file.name.endswith(suffixes) and not file.name.startswith(".")]
        if files:
            return files
    return []


def open_rows(
    annotations: str | Path,
    # Folder, zip or tar that image paths are relative to; `None` means the file's folder
    images: str | Path | None = None,
    *,
    follow_links: bool = False,  # whether links in the image folder may lead out of it
    min_rating: int | None = None,  # leave out rows that FineVision rates lower in anything
    workers: int = 1,  # for the pass over a JSON file that has no index yet
    progress: Progress = no_progress,  # called during that pass
) -> Rows:
    """Open training data: `len(rows)` rows, `rows[i]` a `Sample`.

    `annotations` is a `.json` (an array, or `{"data": [...]}`) or `.jsonl` file, or either as `.gz`; a folder
    of them; a WebDataset `.tar` or a folder of them; a folder or file of Arrow or Parquet; a hub id.
    `formats.FORMATS` says what the rows may look like. Raises ValueError if the file or the folder is
    missing, or there are no rows in it.
    """
    path = Path(annotations)
    files = row_files(path)
    if not files and is_stored(annotations):
        dataset = cast("Dataset", open_dataset(annotations))
        if min_rating is not None:
            dataset = well_rated(dataset, min_rating)
        if not len(dataset):
            raise ValueError(f"{annotations} holds no rows")
        index, fetch = index_dataset(annotations, dataset, progress), partial(stored_row, dataset)
        root = None if images is None else image_root(images)
        return Rows(path, fetch, index, images=root, follow_links=follow_links, stored=True)
    if min_rating is not None:
        raise ValueError(
            f"{path} has no ratings: only data sets in FineVision's layout can be chosen by them"
        )
    if not files:
        raise ValueError(f"no annotation file at {path}: give a LLaVA .json or .jsonl file")
    shards = files[0].name.endswith(SHARDS)
    beside = None if shards else path if path.is_dir() else path.parent
    root = beside if images is None else image_root(images)
    index = open_index(path, files, workers=workers, progress=progress)
    return Rows(path, Files(files, index), index, images=root, follow_links=follow_links, stored=shards)


def sample_of(raw: RawRow, root: Path | None, follow_links: bool = False) -> Sample:
    """Return a row in normal form; raises as `normal_form`."""
    raw = normal_form(raw)
    images = tuple(image_ref(image, root, follow_links) for image in raw.images)
    return Sample(raw.id, images, raw.turns, raw.source, raw.silent, notes=raw.notes)


def image_ref(image: object, root: Path | None, follow_links: bool) -> ImageRef:
    """Return where the picture of an image entry is: bytes, a path, or `{"bytes", "path"}`."""
    if isinstance(image, Mapping):
        data, name = image.get("bytes"), image.get("path")
    else:
        data, name = (image, None) if isinstance(image, bytes) else (None, image)
    if data is not None:
        return ImageRef(str(name or "(in the row)"), data=data)
    return ImageRef(str(name or ""), root=None if root is None else str(root), follow_links=follow_links)


def image_root(images: str | Path) -> Path:
    """Return the folder or archive that pictures are in; raises ValueError if there is none."""
    root = Path(images)
    if root.is_dir():
        return root
    if not root.is_file():
        raise ValueError(
            f"no image folder at {root}: give the folder, zip or tar that image paths are relative to"
        )
    if not root.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{root} holds no images: give a folder, or one of {', '.join(SUFFIXES)}")
    opened = open_archive(str(root))
    if isinstance(opened, str):
        raise ValueError(opened)
    return root
