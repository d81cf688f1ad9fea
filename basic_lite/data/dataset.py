"""Rows as token ids, labels and pixels, and the replacement of those that turn out bad."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from basic_lite.data.conversation import Encoded, encode
from basic_lite.data.lettering import lettering
from basic_lite.data.pictures import ImageTransform, load_image
from basic_lite.data.readers import Rows
from basic_lite.data.rows import MAX_LENGTH, Finding, RowFault, Sample, caption_fault, shown
from basic_lite.data.templates import Template, template_of
from basic_lite.data.tiles import Size, Tiling, image_tokens
from basic_lite.files import read_log


def images_of(rows: Rows, tokens_per_image: int, tiling: Tiling | None) -> np.ndarray:
    """Return `(rows,)` int64, the image tokens of every row.

    `tokens_per_image` are those of one square; with `tiling` they follow from the sizes in `rows.sizes`.
    """
    if tiling is None:
        return rows.index.images.astype(np.int64) * tokens_per_image
    assert rows.sizes is not None, "the pictures' sizes are read before tiles are counted"
    return image_tokens(rows.index.images, rows.sizes, tiling)


@dataclass(frozen=True)
class TextEncoder:
    """Makes ids and labels of a sample."""

    template: Template | str
    tokenizer: Any
    image_token_id: int  # marks a patch
    tokens_per_image: int  # patches per image (`P`)
    max_length: int | None  # of a row, image tokens included; `None` for no limit
    tiling: Tiling | None = None  # grids of tiles; an image's tokens then follow from its size

    def image_tokens(self, rows: Rows) -> np.ndarray:
        """Return `(rows,)` int64, the image tokens of every row."""
        return images_of(rows, self.tokens_per_image, self.tiling)

    def __call__(self, sample: Sample, sizes: Sequence[Sequence[int]] = ()) -> Encoded:
        """Return ids, labels and how many tokens were cut off; with tiles the pictures' `sizes` are needed.

        Raises RowFault: as `caption_fault` for the template of stage 1; `no_supervision` if the cut leaves
        none, else `malformed_row`.
        """
        if template_of(self.template).caption:
            fault = caption_fault(len(sample.images), len(sample.turns))
            if fault is not None:
                raise fault
        per_image = self.tokens_per_image
        if self.tiling is not None:
            per_image = [block.tokens for block in self.tiling.blocks(sizes)]
        try:
            return encode(
                self.template,
                self.tokenizer,
                sample.turns,
                image_token_id=self.image_token_id,
                tokens_per_image=per_image,
                max_length=self.max_length,
                silent=sample.silent,
            )
        except ValueError as error:
            code = "no_supervision" if "max_length" in str(error) else "malformed_row"
            raise RowFault(code, str(error)) from None


@dataclass(frozen=True)
class RowEncoder:
    """Makes ids, labels and pixels of a sample."""

    text: TextEncoder
    transform: ImageTransform  # from a picture to the tower's pixels
    lettering: int | None = None  # side of a patch in pixels, to find patches with text

    def __call__(self, sample: Sample, row: int) -> tuple[dict[str, Any], int]:
        """Return an item of `SupervisedRows` and how many tokens were cut off.

        A RowFault names the row and its id.
        """
        try:
            sizes: list[Size] = []
            if self.text.tiling is None:
                encoded = self.text(sample)
                pixels = [self.transform(load_image(image)) for image in sample.images]
            else:  # the size of a picture decides how many tokens it takes
                pictures = [self.transform.upright(load_image(image)) for image in sample.images]
                sizes = [(picture.height, picture.width) for picture in pictures]
                encoded = self.text(sample, sizes)
                pixels = [self.transform(picture) for picture in pictures]
        except RowFault as fault:
            where = sample.where or f"row {row}"
            raise RowFault(fault.code, f"{where} (id {shown(sample.id)}): {fault.detail}") from None
        item = {"input_ids": encoded.input_ids, "labels": encoded.labels, "pixels": pixels}
        if self.text.tiling is not None:
            item["sizes"] = sizes
        if self.lettering is not None:
            item["lettering"] = [self._lettered(*picture) for picture in zip_longest(pixels, sizes)]
        return {**item, "row": row, "id": sample.id}, encoded.truncated

    def _lettered(self, pixels: torch.Tensor, size: Size | None = None) -> torch.Tensor:
        """Return `(P,)` bool, which patches of a picture hold text."""
        assert self.lettering is not None
        if self.text.tiling is None or size is None:
            return lettering(pixels[None], self.lettering).flatten()
        return self.text.tiling.in_order(lettering(pixels, self.lettering), size)


SEEN, CUT, BAD = 1, 2, 4
"""Bits of a row's state."""


class SupervisedRows(Dataset):
    """Rows as token ids, labels and pixels.

    A row that turns out bad is replaced by a good row of its modality and length, always the same one; the
    first bad row beyond the budget raises.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        template: Template | str,
        tokenizer: Any,
        transform: ImageTransform,  # from a picture to the tower's pixels; with `tiling` a `TiledTransform`
        image_token_id: int,  # marks a patch
        tokens_per_image: int,  # patches per image (`P`)
        max_length: int | None = MAX_LENGTH,  # of a row, image tokens included
        bad_budget: float = 0.0,  # share of the rows that may be bad, including those that are not `usable`
        # File with a line for every row replaced: `row`, `id`, `code`, `detail`, `replaced_by`. Those in it
        # already, from before a run was resumed, count too
        bad_log: Path | None = None,
        # `(rows,)` bool, the rows that batches are made of and that may replace others; `None` for all
        usable: np.ndarray | None = None,
        tiling: Tiling | None = None,  # grids of tiles; `None` for one square per picture
        lettering: int | None = None,  # side of a patch in pixels, to find patches with text; `None` for none
    ) -> None:
        self.rows = rows
        text = TextEncoder(template, tokenizer, image_token_id, tokens_per_image, max_length, tiling)
        self.encoder = RowEncoder(text, transform, lettering)
        self.bad_budget, self.bad_log = bad_budget, bad_log
        self.usable = np.ones(len(rows), bool) if usable is None else usable
        # One byte a row, shared by all workers: a count would need a lock, a bit may be set twice.
        self.state = torch.zeros(len(rows), dtype=torch.uint8).share_memory_()
        for line in [] if bad_log is None else read_log(bad_log):
            if "replaced_by" in line:
                self.state[line["row"]] |= BAD

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return one row, encoded, or the row that replaces it if it is bad.

        It has `input_ids` and `labels` as lists of the same length, `pixels` as a list of `(3, h, w)` uint8
        tensors, one per image, `row` and `id`. With tiles `pixels` are `(squares, 3, h, w)`, and `sizes` has
        the pictures' heights and widths. `lettering`, if asked for, has `(P,)` bool per image: which patches
        hold text. Raises ValueError, naming row and id, if the row is bad and the budget is spent.
        """
        try:
            return self._encoded(row)
        except RowFault as fault:
            known = bool(self.state[row] & BAD)
            self.state[row] |= BAD
            allowed = int(self.bad_budget * len(self))
            bad = int(np.count_nonzero(~self.usable | (self.state.numpy() & BAD != 0)))
            if bad > allowed:
                if not self.bad_budget:
                    raise
                share = f"{bad} of {len(self)} rows turned out bad, {allowed} are allowed"
                raise RowFault(fault.code, f"{share}; the last: {fault}") from None
            for other in self._similar(row):
                try:
                    item = self._encoded(other)
                except RowFault:
                    continue
                if not known:  # each epoch meets it again
                    self._log(row, fault, other)
                return item
            raise

    def tally(self) -> dict[str, int]:
        """Return how many rows were `seen`, `truncated` and `replaced` so far, and are `left_out`."""
        bits = (("seen", SEEN), ("truncated", CUT), ("replaced", BAD))
        counts = {name: int((self.state & bit).ne(0).sum()) for name, bit in bits}
        return {**counts, "left_out": int((~self.usable).sum())}

    def _encoded(self, row: int) -> dict[str, Any]:
        item, truncated = self.encoder(self.rows[row], row)
        self.state[row] |= SEEN | (CUT if truncated else 0)
        return item

    def _similar(self, row: int, tries: int = 20) -> Iterator[int]:
        """Yield rows of the same modality and about the same length, always in the same order."""
        same = self.rows.has_image == self.rows.has_image[row]
        same &= self.usable & (self.rows.index.fault == 0) & ~self.rows.held_out
        same[row] = False
        candidates = np.flatnonzero(same)
        lengths = self.rows.lengths[candidates]
        order = np.argsort(lengths, kind="stable")
        first = int(np.searchsorted(lengths[order], self.rows.lengths[row]))
        for step in range(min(tries, len(order))):
            yield int(candidates[order[(first + step) % len(order)]])

    def _log(self, row: int, fault: RowFault, other: int) -> None:
        if self.bad_log is None:
            return
        finding = self.rows.named(Finding(row, self.rows.name(row), fault.code, fault.detail))
        append_line(self.bad_log, finding.as_dict() | {"replaced_by": other})


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a JSON object to a file in one write: lines of several workers do not mix.

    It begins with a newline where the last line was cut off, or it would be lost with that one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        os.lseek(file, max(end - 1, 0), os.SEEK_SET)
        cut = os.read(file, 1) not in (b"", b"\n")
        os.write(file, ("\n" * cut + json.dumps(line) + "\n").encode())
    finally:
        os.close(file)
