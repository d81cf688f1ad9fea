"""Which rows share a batch, and how they are padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from basic_lite.data.conversation import IGNORE_INDEX
from basic_lite.data.layout import layout_of
from basic_lite.data.tiles import Tiling, packed

ORDER: int = 3
"""Version of the order, in a run's manifest: a run of another version cannot be resumed.

1 was SplitMix64's; 2 had smaller pools, and lengths estimated from letters.
"""

POOL: int = 64
"""Fewest batches that are sorted by length together; what that saves is in `basic_lite/data/README.md`."""


def permuted(count: int, *key: int) -> np.ndarray:
    """Return a permutation of `range(count)`, `(count,)` int64, that depends on `key` alone.

    `key` are whole numbers, such as seed and epoch, modulo 2**32. numpy has frozen `RandomState` (NEP 19), so
    a resumed run sees the order of its first part with any numpy.
    """
    return np.random.RandomState([part % 2**32 for part in key]).permutation(count)


def drawn_counts(kinds: Sequence[np.ndarray], sets: Sequence[tuple[int, float]]) -> np.ndarray:
    """Return `(kinds, sets)` int64: how many rows of each kind and data set an epoch draws.

    `kinds` are `(rows,)` bool each, such as rows with and without an image; `sets` are `(rows, weight)` each.
    """
    ends = np.cumsum([rows for rows, _ in sets])[:-1]
    counts = [[int(part.sum()) for part in np.split(kind, ends)] for kind in kinds]
    return np.array([[_drawn(n, w) for n, (_, w) in zip(row, sets, strict=True)] for row in counts])


def _drawn(rows: int, weight: float) -> int:
    return max(round(rows * weight), 1) if rows else 0


def _share_of(count: int, take: int, epoch: int, *key: int) -> np.ndarray:
    """Return an epoch's `take` of `range(count)`: none repeats before all were drawn, or within an epoch."""
    left, turn, drawn = np.zeros(0, np.int64), 0, np.zeros(0, np.int64)
    for _ in range(epoch + 1):
        drawn, left = left[:take], left[take:]
        if len(drawn) < take:
            fresh, turn = permuted(count, *key, turn), turn + 1
            again = np.isin(fresh, drawn)
            left = np.concatenate([drawn, fresh[~again], fresh[again]])
            drawn, left = left[:take], left[take:]
    return drawn


def batch_order(
    lengths: Sequence[int] | np.ndarray,  # `(rows,)` tokens of each row
    modality: Sequence[bool] | np.ndarray,  # `(rows,)` whether the row has an image
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    group: bool,  # keep modalities apart and lengths together
    accumulation: int = 1,  # batches per optimizer step
) -> list[np.ndarray]:
    """Return the batches of one epoch, as row numbers, the longest row first; every row is in exactly one.

    With `group`, rows of each modality are shuffled, cut into pools of whole optimizer steps, sorted by
    length inside the pool and cut into batches. The batches are dealt to the pool's steps, so that each step
    has short and long ones in the pool's proportion; then the steps are shuffled. Steps that are not full
    come last, so that the full ones stay of one modality. With and without `group` the batch with the most
    padded tokens comes first: if memory does not suffice, the first step shows it.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not group:
        shuffled = _cut(permuted(len(lengths), seed, epoch), batch_size)
        full, rest = [[batch[np.argsort(-lengths[batch], kind="stable")]] for batch in shuffled], []
    else:
        modality = np.asarray(modality, dtype=bool)
        full, rest = [], []
        pool = batch_size * accumulation * -(-POOL // accumulation)
        for kind in (True, False):
            rows = np.flatnonzero(modality == kind)
            rows = rows[permuted(len(rows), seed, epoch, int(kind))]
            for number, pooled in enumerate(_cut(rows, pool)):
                batches = _cut(pooled[np.argsort(-lengths[pooled], kind="stable")], batch_size)
                whole = len(pooled) // batch_size  # at most one batch is not, the pool's last
                steps, chance = whole // accumulation, permuted(whole, seed, epoch, int(kind), number)
                dealt = np.sort(chance[: steps * accumulation])  # which batches, longest first
                # Of each `steps` batches of about one length every step gets one, by chance which.
                shuffled = np.lexsort((chance[dealt], np.arange(len(dealt)) // max(steps, 1)))
                full += [[batches[i] for i in dealt[shuffled[step::steps]]] for step in range(steps)]
                left = [batches[i] for i in np.sort(chance[len(dealt) :])] + batches[whole:]
                rest += _cut(left, accumulation)
        full = [full[i] for i in permuted(len(full), seed, epoch, 2)]
    _largest_first(full, rest, lengths)
    return [batch for step in full + rest for batch in step]


def _largest_first(full: list[list[np.ndarray]], rest: list[list[np.ndarray]], lengths: np.ndarray) -> None:
    """Put the batch with the most padded tokens first: with its step, or swapped if that is not full."""
    steps = full + rest
    sizes = [[int(lengths[batch[0]]) * len(batch) for batch in step] for step in steps]
    if not sizes:
        return
    top = max(range(len(steps)), key=lambda i: max(sizes[i]))
    place = max(range(len(steps[top])), key=sizes[top].__getitem__)
    if top < len(full):
        step = full.pop(top)
        step.insert(0, step.pop(place))
        full.insert(0, step)
    else:  # moving a step that is not full would shift all others off the optimizer's steps
        steps[0][0], steps[top][place] = steps[top][place], steps[0][0]


def share(batches: list[np.ndarray], rank: int, ranks: int, batch_size: int) -> list[np.ndarray]:
    """Return one rank's part of batches of `ranks * batch_size` rows, longest row first.

    Every rank gets equally many batches, none of them empty, because ranks wait for each other; no row is
    dropped or repeated. A batch with fewer rows than ranks shares rows with others; only with `batch_size`
    1 can that make a batch one row larger. Raises ValueError if there are fewer rows than ranks.
    """
    if ranks == 1:
        return batches
    enough = [batch for batch in batches if len(batch) >= ranks]
    few = [batch for batch in batches if len(batch) < ranks]
    if few:
        left = np.concatenate(few)
        if len(left) < ranks:
            if not enough:
                raise ValueError(
                    f"{len(left)} rows cannot be shared by {ranks} processes: use fewer processes"
                )
            left = np.concatenate([enough.pop(), left])
        parts = 2 if len(left) > ranks * batch_size and len(left) >= 2 * ranks else 1
        enough += np.array_split(left, parts)
    return [batch[rank::ranks] for batch in enough]


def _cut(rows: Any, size: int) -> list:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class Collator:
    """Pads encoded rows to one length and makes the batch's layout.

    Padding is masked by length, never by id: with a tokenizer whose padding token is its end token the model
    still learns to stop.
    """

    def __init__(
        self,
        *,
        pad_token_id: int,
        image_token_id: int,  # marks a patch
        padding_side: str = "right",  # `"right"` for training, `"left"` for generation
        tiling: Tiling | None = None,  # grids of tiles; `None` for one square per picture
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side {padding_side!r} is not 'left' or 'right'")
        self.pad_token_id = pad_token_id
        self.image_token_id = image_token_id
        self.padding_side = padding_side
        self.tiling = tiling

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of items of `SupervisedRows`.

        Returns `input_ids`, `attention_mask` and `labels`, `(B, S)` int64; `pixel_values` `(I, 3, h, w)`
        uint8 if there is any image; `layout` of the batch; `rows`, the rows' numbers. With tiles the squares
        of all pictures are packed into one `pixel_values`, and `image_sizes` are the pictures' heights and
        widths: a list, since tensors of a batch go to the device, where reading a size would wait.
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
        batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        blocks = None
        if pixels:
            batch["pixel_values"] = packed(pixels)
            if self.tiling is not None:
                batch["image_sizes"] = [size for row in rows for size in row["sizes"]]
                blocks = self.tiling.blocks(batch["image_sizes"])
        image = self.image_token_id
        layout = layout_of(input_ids, attention_mask, image, len(pixels), labels, blocks)
        if lettering := [patches for row in rows for patches in row.get("lettering", [])]:
            layout = replace(layout, spared=torch.cat(lettering))
        batch["layout"] = layout
        batch["rows"] = [row["row"] for row in rows]
        return batch


class Batches(torch.utils.data.Sampler[list[int]]):
    """Which rows go together: each once per epoch, the same for the same seed, the largest batch first.

    Of a data set with a weight an epoch draws that share of its rows, with and without an image alike: those
    that were not drawn yet, until all were. Above 1, each row is repeated as often as the whole number says,
    and the fraction is drawn as such a share.

    A run that is resumed with batches of several times as many rows keeps its `order_rows`, so that every
    step has the same rows.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,  # tokens of each row, or an estimate; only their order matters
        modality: Sequence[bool] | np.ndarray,  # which rows have an image
        *,
        batch_size: int,  # rows per batch of one rank
        seed: int,
        group: bool,  # rows of one modality and similar length together (LLaVA's `group_by_modality_length`)
        accumulation: int = 1,  # batches per optimizer step, which are then of one modality too
        usable: np.ndarray | None = None,  # `(rows,)` bool, which rows to draw from; `None` for all
        # Rows per batch, over all ranks, that the order is made for; `None` for the batches' own
        order_rows: int | None = None,
        rank: int = 0,  # which part of every batch this process gets, from 0
        ranks: int = 1,  # how many processes share the rows
        # `(rows, weight)` of each data set, in order; `None` for one of weight 1
        sets: Sequence[tuple[int, float]] | None = None,
    ) -> None:
        if len(lengths) != len(modality):
            raise ValueError(f"{len(lengths)} lengths for {len(modality)} rows: give one of each per row")
        if batch_size < 1 or accumulation < 1:
            raise ValueError(f"batch_size {batch_size} and accumulation {accumulation} must be at least 1")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} is not one of {ranks} ranks, counted from 0")
        self.order_rows = order_rows or batch_size * ranks
        if batch_size * ranks % self.order_rows:
            raise ValueError(f"{batch_size} rows times {ranks} are no multiple of order_rows {order_rows}")
        self.joined = batch_size * ranks // self.order_rows
        self.rows = np.arange(len(lengths)) if usable is None else np.flatnonzero(usable)
        self.lengths = np.asarray(lengths, dtype=np.int64)[self.rows]
        self.modality = np.asarray(modality, dtype=bool)[self.rows]
        self.weights = [1.0]
        self.members = [np.arange(len(self.rows))]  # places in `rows`: two arrays, by modality, for each set
        if sets is not None and any(weight != 1 for _, weight in sets):
            of_set = np.searchsorted(np.cumsum([rows for rows, _ in sets]), self.rows, side="right")
            kinds = [(number, kind) for number in range(len(sets)) for kind in (True, False)]
            self.members = [np.flatnonzero((of_set == n) & (self.modality == kind)) for n, kind in kinds]
            self.weights = [sets[number][1] for number, _ in kinds]
        self.batch_size = batch_size
        self.seed = seed
        self.group = group
        self.accumulation = accumulation
        self.rank = rank
        self.ranks = ranks
        self.drop_last = False  # accelerate asks for it
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def _drawn(self) -> np.ndarray:
        """Return the places in `rows` that the epoch draws, in their order, some of them repeatedly."""
        if self.weights == [1.0]:
            return self.members[0]
        parts = [np.zeros(0, np.int64)]
        for number, (members, weight) in enumerate(zip(self.members, self.weights, strict=True)):
            if len(members):
                times, rest = divmod(_drawn(len(members), weight), len(members))
                share = _share_of(len(members), rest, self.epoch, self.seed, number)
                parts += [members] * times + [members[share]]
        return np.sort(np.concatenate(parts))

    def _order(self) -> list[np.ndarray]:
        drawn = self._drawn()
        lengths = self.lengths[drawn]
        batches = batch_order(
            lengths,
            self.modality[drawn],
            batch_size=self.order_rows,
            seed=self.seed,
            epoch=self.epoch,
            group=self.group,
            accumulation=self.accumulation * self.joined,
        )
        if self.joined > 1:
            parts = [batches[i : i + self.joined] for i in range(0, len(batches), self.joined)]
            together = [np.concatenate(part) for part in parts]
            batches = [rows[np.argsort(-lengths[rows], kind="stable")] for rows in together]
        return [drawn[batch] for batch in share(batches, self.rank, self.ranks, self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._order()
        ends = np.cumsum([0, *map(len, batches)])
        order = self.rows[np.concatenate(batches)] if batches else self.rows[:0]
        del batches  # they would hold 200 bytes for each of some 166,000 batches, all epoch long
        return (order[ends[i] : ends[i + 1]].tolist() for i in range(len(ends) - 1))

    def __len__(self) -> int:
        """Return the batches of a whole epoch, the same for every epoch."""
        if self.ranks > 1:
            return len(self._order())
        counts = {True: 0, False: 0}
        for members, weight in zip(self.members, self.weights, strict=True):
            images = int(self.modality[members].sum())
            for kind, rows in ((True, images), (False, len(members) - images)):
                counts[kind] += _drawn(rows, weight)
        kinds = tuple(counts.values()) if self.group else (sum(counts.values()),)
        return -(-sum(-(-rows // self.order_rows) for rows in kinds) // self.joined)
