"""Index tensors of the patches, the text and the supervised tokens of a batch, made once per batch.

The collator makes the layout from CPU tensors, so that a training step never asks the GPU for a position
(each `nonzero()` or `tolist()` on a CUDA tensor stops the host until the GPU has caught up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from basic_lite.data.conversation import IGNORE_INDEX
from basic_lite.data.tiles import Block


@dataclass(frozen=True)
class Layout:
    """Index tensors over the flattened `(B * S)` token positions of a batch."""

    patch: torch.Tensor  # `(N,)` int64, flat positions of the patches: all image tokens but newlines
    image: torch.Tensor  # `(N,)` int64, the image of each patch, from 0
    patch_count: torch.Tensor  # `(I,)` fp32, patches of each image
    # `(B, T)` int64, positions *in the row* of the text after its first image, padded with 0
    text: torch.Tensor
    is_text: torch.Tensor  # `(B, T)` bool, which entries of `text` are real
    text_after: torch.Tensor  # `(I,)` fp32, text tokens after each image in its row (at least 1: a divisor)
    predicting: torch.Tensor  # `(M,)` int64, flat positions whose next token is supervised
    targets: torch.Tensor  # `(M,)` int64, those next tokens
    predicting_rows: torch.Tensor  # `(B, T)` int64, the same *in the row*, padded with 0; at least one column
    slot: torch.Tensor  # `(M,)` int64, place of each of them in the flattened `predicting_rows`
    # `(F,)` int64, flat positions of the image tokens, newlines included; `None` without newlines
    feature: torch.Tensor | None
    kept: torch.Tensor | None  # `(N,)` int64, places of the patches among those; `None` without newlines
    spared: torch.Tensor | None  # `(N,)` bool, which `L_sds` leaves out, set by the collator; `None` for none
    images: int  # `I`; this and the rest is on the host
    rows: int  # `B`
    images_in_row: tuple[int, ...]  # images of each row
    targets_in_row: tuple[int, ...]  # supervised tokens of each row
    blocks: tuple[Block, ...]  # what each image takes; pictures of one square are a block of patches each
    right_padded: bool  # no padding before a real token, so causality alone hides all padding

    @property
    def places(self) -> torch.Tensor:
        """`(F,)` int64, flat positions of all image tokens."""
        return self.patch if self.feature is None else self.feature

    def to(self, device: torch.device | str) -> Layout:
        """Return the layout with its tensors on `device`, copied without waiting."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Layout:
        """Return the layout in page-locked memory; `torch.utils.data.DataLoader` calls this."""
        return self._map(torch.Tensor.pin_memory)

    def part(self, start: int, stop: int, width: int) -> Layout:
        """Return the layout of rows `start` to `stop` (excluded) of `width` tokens, by slices alone."""
        image, end = (sum(self.images_in_row[:row]) for row in (start, stop))
        target, last = (sum(self.targets_in_row[:row]) for row in (start, stop))
        before, inside = self.blocks[:image], self.blocks[image:end]
        first = sum(block.patches for block in before)
        patches = slice(first, first + sum(block.patches for block in inside))
        feature, kept = self.feature, self.kept
        if feature is not None and kept is not None:
            first = sum(block.tokens for block in before)
            feature = feature[first : first + sum(block.tokens for block in inside)] - start * width
            kept = kept[patches] - first
        return replace(
            self,
            patch=self.patch[patches] - start * width,
            image=self.image[patches] - image,
            patch_count=self.patch_count[image:end],
            feature=feature,
            kept=kept,
            spared=None if self.spared is None else self.spared[patches],
            blocks=inside,
            text=self.text[start:stop],
            is_text=self.is_text[start:stop],
            text_after=self.text_after[image:end],
            predicting=self.predicting[target:last] - start * width,
            targets=self.targets[target:last],
            predicting_rows=self.predicting_rows[start:stop],
            slot=self.slot[target:last] - start * self.predicting_rows.shape[1],
            images=end - image,
            rows=stop - start,
            images_in_row=self.images_in_row[start:stop],
            targets_in_row=self.targets_in_row[start:stop],
        )

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Layout:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, torch.Tensor)})


def layout_of(
    input_ids: torch.Tensor,  # `(B, S)` int64
    attention_mask: torch.Tensor | None,  # `(B, S)`, 0 at padding; `None` means no padding
    image_token_id: int,  # marks a patch
    images: int,  # `I`
    labels: torch.Tensor | None = None,  # `(B, S)` int64, `IGNORE_INDEX` without loss; `None` predicts none
    blocks: Sequence[Block] | None = None,  # of each image in order, where pictures are cut into tiles
) -> Layout:
    """Make the layout of a batch, on the device of `input_ids`; on a GPU this waits for the device.

    Without `blocks` every image takes the same number of consecutive tokens (`P = N / I`), as a fixed input
    size implies. Raises ValueError if the image tokens cannot be divided evenly among the images, or do not
    match `blocks`.
    """
    rows = len(input_ids)
    device = input_ids.device
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    of_image = (input_ids == image_token_id) & valid
    places = of_image.flatten().nonzero().squeeze(1)
    if blocks is None:
        if (len(places) % images if images else len(places)) != 0:
            raise ValueError(
                f"{len(places)} image tokens cannot be shared evenly among {images} images: every image "
                "needs one block of image tokens in its row. Is the processor's image_seq_length the tower's "
                "patch count?"
            )
        blocks = [Block(len(places) // images, 0, 0, 1)] * images if images else []
    tokens = [block.tokens for block in blocks]
    if (len(blocks), sum(tokens)) != (images, len(places)):
        raise ValueError(
            f"{len(places)} image tokens are not the {sum(tokens)} that {images} images take by their sizes "
            "and the grids of tiles; are the processor's image_grid_pinpoints the model's?"
        )
    ends = torch.tensor(tokens, dtype=torch.int64, device=device).cumsum(0) - 1  # an image's last token
    counts = torch.tensor([block.patches for block in blocks], dtype=torch.int64, device=device)
    image = torch.arange(images, device=device).repeat_interleave(counts)
    patch, feature, kept = places, None, None
    if any(block.rows for block in blocks):
        is_patch = torch.cat([block.is_patch() for block in blocks]).to(device)
        feature, kept = places, is_patch.nonzero().squeeze(1)
        patch = places[kept]

    # Text that can see an image: real, no image token, after the row's first image. A newline between two
    # lines of patches sees patches too, but it is no text.
    after_first = of_image.cumsum(1) > 0
    seeing = valid & ~of_image & after_first
    longest = int(seeing.sum(1).max()) if rows else 0
    order = (~seeing).to(torch.int8).argsort(dim=1, stable=True)[:, :longest]  # those first, in order
    is_text = seeing.gather(1, order)
    last = places[ends]  # flat position of each image's last token
    later = seeing.flip(1).cumsum(1).flip(1).flatten()  # seeing tokens from here to the row's end
    text_after = later[last].clamp(min=1).float()

    supervised = torch.zeros_like(valid)
    if labels is not None:
        supervised[:, :-1] = labels[:, 1:].ne(IGNORE_INDEX)
    predicting = supervised.flatten().nonzero().squeeze(1)
    targets = predicting if labels is None else labels.flatten()[predicting + 1]
    count = supervised.sum(1)
    columns = max(int(count.max()), 1) if rows else 1
    predicting_rows = (~supervised).to(torch.int8).argsort(dim=1, stable=True)[:, :columns]  # those first
    used = torch.arange(columns, device=device) < count[:, None]
    predicting_rows, slot = predicting_rows.masked_fill(~used, 0), used.flatten().nonzero().squeeze(1)
    text = order.masked_fill(~is_text, 0)
    right_padded = not bool((~valid[:, :-1] & valid[:, 1:]).any())
    return Layout(
        patch,
        image,
        counts.float(),
        text,
        is_text,
        text_after,
        predicting,
        targets,
        predicting_rows,
        slot,
        feature,
        kept,
        None,
        images=images,
        rows=rows,
        images_in_row=tuple((last // input_ids.shape[1]).bincount(minlength=rows).tolist()),
        targets_in_row=tuple(count.tolist()),
        blocks=tuple(blocks),
        right_padded=right_padded,
    )
