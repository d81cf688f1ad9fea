"""Rows by number, from files that stay on disk."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from basic_lite.data.index import Index, open_index, parse_row
from basic_lite.data.layouts import read_row, shown
from basic_lite.data.samples import CODES, ImageRef, RawRow, RowFault, Sample, normal_form


class Rows:
    """The rows of a LLaVA JSON or JSONL file, read one by one from the mapped file.

    Holds the index, 31 bytes a row, and nothing of the rows themselves; may be pickled and sent to workers.

    Attributes:
        path: the annotation file.
        sha256: of that file, for a run's manifest.
        index: its columns (`Index`), among them `tokens`, `images` and `fault`.
    """

    def __init__(self, path: Path, images: Path | None, index: Index) -> None:
        self.path = path
        self.images = images
        self.index = index
        self._mapped: mmap.mmap | None = None

    @property
    def sha256(self) -> str:
        """Return the hash of the annotation file."""
        return self.index.sha256

    @property
    def lengths(self) -> np.ndarray:
        """Return `(rows,)` int32, the estimated text tokens of each row, images not counted."""
        return self.index.tokens

    @property
    def image_counts(self) -> np.ndarray:
        """Return `(rows,)` uint16, how many images each row has."""
        return self.index.images

    @property
    def has_image(self) -> np.ndarray:
        """Return `(rows,)` bool, which rows have an image."""
        return self.index.images > 0

    def __len__(self) -> int:
        return len(self.index.offset)

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
            raise self.fault(row, name, fault) from None
        return Sample(raw.id, tuple(self.image_ref(image) for image in images), turns, raw.source)

    def raw(self, row: int) -> RawRow:
        """Return what the layout's reader makes of row `row`, its turns unchecked.

        Raises:
            RowFault: `malformed_row` or `bad_roles`.
        """
        if self._mapped is None:
            with open(self.path, "rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, size = int(self.index.offset[row]), int(self.index.size[row])
        return read_row(parse_row(self._mapped[start : start + size]))

    def fault(self, row: int, name: str, fault: RowFault) -> RowFault:
        """Return `fault` with the row's number, id and file in its text."""
        named = f" (id {shown(name)})" if name else ""
        return RowFault(fault.code, f"row {row}{named} of {self.path}: {fault.detail}")

    def image_ref(self, image: object) -> ImageRef:
        """Return where the picture of an image entry is."""
        if isinstance(image, bytes):
            return ImageRef("", data=image)
        if isinstance(image, Mapping):
            data, name = image.get("bytes"), image.get("path")
            return ImageRef(name or "", data=data) if data is not None else self.image_ref(name or "")
        return ImageRef(str(image), root=None if self.images is None else str(self.images))

    def known_fault(self, row: int) -> str | None:
        """Return the code of what is wrong with a row's text, `None` where nothing is."""
        code = int(self.index.fault[row])
        return CODES[code - 1] if code else None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": None}


def open_rows(
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Rows:
    """Open an annotation file for reading by row number.

    Args:
        annotations: a LLaVA `.json` (one array) or `.jsonl` file.
        images: the folder that the rows' image paths are relative to; `None` takes them relative to the
            file's folder.
        progress: told about the one pass over a file that has no index yet.

    Returns:
        The rows; `len(rows)`, `rows[i]` is a `Sample`.

    Raises:
        ValueError: If the file or the folder is missing, or the file is no array of rows.
    """
    path = Path(annotations)
    root = Path(images) if images is not None else path.parent
    if not root.exists():
        raise ValueError(
            f"no image folder at {root}: give the folder that the rows' image paths are relative to"
        )
    return Rows(path, root, open_index(path, progress=progress))
