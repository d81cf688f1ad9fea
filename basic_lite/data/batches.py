"""From rows to batches: encode a row, pad rows together, choose which rows go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from basic_lite.conversation import Template, encode
from basic_lite.data.images import ImageTransform, load_image
from basic_lite.data.order import batch_order
from basic_lite.data.samples import RowFault, Sample
from basic_lite.data.texts import shown
from basic_lite.layout import layout_of
from basic_lite.types import IGNORE_INDEX

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


class SupervisedRows(Dataset):
    """Rows as token ids, labels and pixels.

    Args:
        rows: the samples, by number; `open_rows` makes them.
        template: how the LLM's prompts are written.
        tokenizer: of the LLM.
        transform: from a picture to the tower's pixels.
        image_token_id: id that marks a patch.
        tokens_per_image: patches per image (`P`).
        max_length: most tokens of a row, image tokens included.
    """

    def __init__(
        self,
        rows: Sequence[Sample],
        *,
        template: Template | str,
        tokenizer: PreTrainedTokenizerBase,
        transform: ImageTransform,
        image_token_id: int,
        tokens_per_image: int,
        max_length: int | None = 2048,
    ) -> None:
        self.rows = rows
        self.template = template
        self.tokenizer = tokenizer
        self.transform = transform
        self.image_token_id = image_token_id
        self.tokens_per_image = tokens_per_image
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return one row, encoded.

        Args:
            row: its number.

        Returns:
            `input_ids` and `labels` as lists of the same length, `pixels` as a list of `(3, h, w)` uint8
            tensors, one per image, `row` and `id`.

        Raises:
            ValueError: If the row cannot be trained on; names the row and its id.
        """
        sample = self.rows[row]
        try:
            encoded = encode(
                self.template,
                self.tokenizer,
                sample.turns,
                image_token_id=self.image_token_id,
                tokens_per_image=self.tokens_per_image,
                max_length=self.max_length,
            )
            if all(label == IGNORE_INDEX for label in encoded.labels):
                raise RowFault(
                    "no_supervision", f"no supervised token is left within {self.max_length} tokens"
                )
            pixels = [self.transform(load_image(image)) for image in sample.images]
        except ValueError as error:
            code = error.code if isinstance(error, RowFault) else "malformed_row"
            raise RowFault(code, f"row {row} (id {shown(sample.id)}): {error}") from None
        return {
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "pixels": pixels,
            "row": row,
            "id": sample.id,
        }


class Collator:
    """Pad encoded rows to one length and find where everything stands.

    Padding is masked by length, never by id: a tokenizer whose padding token is its end token still learns
    to end.

    Args:
        pad_token_id: id written at padding.
        image_token_id: id that marks a patch.
        padding_side: `"right"` for training, `"left"` for generation.
    """

    def __init__(self, *, pad_token_id: int, image_token_id: int, padding_side: str = "right") -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side {padding_side!r} is not 'left' or 'right'")
        self.pad_token_id = pad_token_id
        self.image_token_id = image_token_id
        self.padding_side = padding_side

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            rows: items of `SupervisedRows`.

        Returns:
            `input_ids`, `attention_mask` and `labels`, `(B, S)` int64; `pixel_values` `(I, 3, h, w)` uint8
            if there is any image; `layout` of the batch; `rows`, the rows' numbers.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_token_id, dtype=torch.int64)
        labels = torch.full((len(rows), longest), IGNORE_INDEX, dtype=torch.int64)
        attention_mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            at = slice(0, length) if self.padding_side == "right" else slice(longest - length, longest)
            input_ids[place, at] = torch.tensor(row["input_ids"], dtype=torch.int64)
            labels[place, at] = torch.tensor(row["labels"], dtype=torch.int64)
            attention_mask[place, at] = 1
        pixels = [image for row in rows for image in row["pixels"]]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        batch["layout"] = layout_of(input_ids, attention_mask, self.image_token_id, len(pixels), labels)
        batch["rows"] = [row["row"] for row in rows]
        return batch


class Batches(torch.utils.data.Sampler[list[int]]):
    """Which rows go together: each once per epoch, the same for the same seed, the largest batch first.

    Args:
        lengths: tokens of each row, or an estimate; only their order matters.
        modality: which rows have an image.
        batch_size: rows per batch.
        seed: of the order.
        group: put rows of one modality and of similar length together (LLaVA's `group_by_modality_length`).
        accumulation: batches per optimizer step, which are then of one modality too.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        modality: Sequence[bool] | np.ndarray,
        *,
        batch_size: int,
        seed: int,
        group: bool,
        accumulation: int = 1,
    ) -> None:
        if len(lengths) != len(modality):
            raise ValueError(
                f"{len(lengths)} lengths for {len(modality)} rows: give one length and one modality each"
            )
        if batch_size < 1 or accumulation < 1:
            raise ValueError(f"batch_size {batch_size} and accumulation {accumulation} must be at least 1")
        self.lengths = lengths
        self.modality = modality
        self.batch_size = batch_size
        self.seed = seed
        self.group = group
        self.accumulation = accumulation
        self.drop_last = False  # accelerate asks for it
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def _order(self) -> list[list[int]]:
        return batch_order(
            self.lengths,
            self.modality,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=self.epoch,
            group=self.group,
            accumulation=self.accumulation,
        )

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._order())

    def __len__(self) -> int:
        size, images = self.batch_size, sum(map(bool, self.modality))
        if not self.group:
            return -(-len(self.lengths) // size)
        return -(-images // size) + -(-(len(self.lengths) - images) // size)
