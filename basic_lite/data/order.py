"""The order of the rows of an epoch, as plain functions of the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOL: int = 16
"""Batches that are sorted by length together, at least: enough to save padding, few enough to stay random."""


def scrambled(count: int, *key: int) -> np.ndarray:
    """Return a permutation of `range(count)` that depends on `key` alone.

    The sort of SplitMix64 hashes, written out, because a resumed run must see the order of the first one
    even if numpy or torch have changed their generators meanwhile.

    Args:
        count: how many numbers.
        key: whole numbers, such as seed and epoch.

    Returns:
        `(count,)` int64.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for part in key:
            state = _mix(state + np.uint64(part % 2**64))
        return np.argsort(_mix(np.arange(count, dtype=np.uint64) + state), kind="stable")


def _mix(x: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    """SplitMix64's output function (Steele, Lea and Flood, 2014): one-to-one on 64-bit words."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def batch_order(
    lengths: Sequence[int] | np.ndarray,
    modality: Sequence[bool] | np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    group: bool,
    accumulation: int = 1,
) -> list[np.ndarray]:
    """Return the batches of one epoch; every row is in exactly one.

    With `group`, rows of each modality are shuffled, cut into pools of whole optimizer steps, sorted by
    length inside the pool and cut into batches; the batches of a pool, then the steps, are shuffled.
    Steps that are not full come last, so that the full ones stay of one modality. The batch with the
    most padded tokens comes first either way: if memory does not suffice, the first step shows it.

    Args:
        lengths: `(rows,)` tokens of each row.
        modality: `(rows,)` whether the row has an image.
        batch_size: rows per batch.
        seed: of the order.
        epoch: of the order.
        group: keep modalities apart and lengths together.
        accumulation: batches per optimizer step.

    Returns:
        Row numbers, batch by batch, the longest row of a batch first.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not group:
        shuffled = _cut(scrambled(len(lengths), seed, epoch), batch_size)
        full, rest = [[batch[np.argsort(-lengths[batch], kind="stable")]] for batch in shuffled], []
    else:
        modality = np.asarray(modality, dtype=bool)
        full, rest = [], []
        pool = batch_size * accumulation * -(-POOL // accumulation)
        for kind in (True, False):
            rows = np.flatnonzero(modality == kind)
            rows = rows[scrambled(len(rows), seed, epoch, int(kind))]
            for number, pooled in enumerate(_cut(rows, pool)):
                batches = _cut(pooled[np.argsort(-lengths[pooled], kind="stable")], batch_size)
                short = batches[len(pooled) // batch_size :]  # at most one; it stays the pool's last
                whole = scrambled(len(batches) - len(short), seed, epoch, int(kind), number)
                for step in _cut([*(batches[i] for i in whole), *short], accumulation):
                    (full if sum(map(len, step)) == batch_size * accumulation else rest).append(step)
        full = [full[i] for i in scrambled(len(full), seed, epoch, 2)]
    _largest_first(full, rest, lengths)
    return [batch for step in full + rest for batch in step]


def _largest_first(full: list[list[np.ndarray]], rest: list[list[np.ndarray]], lengths: np.ndarray) -> None:
    """Put the batch with the most padded tokens first: with its step, or in exchange if that is not full."""
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
    """Return one rank's part of batches that were made for all ranks together.

    Every rank gets equally many batches, none of them empty, because ranks wait for each other; no row
    is dropped or given twice. A batch with fewer rows than ranks shares rows with others; only with
    `batch_size` 1 can that make a batch one row larger.

    Args:
        batches: of `ranks * batch_size` rows each, longest row first.
        rank: which part, from 0.
        ranks: how many parts.
        batch_size: rows per batch of one rank.

    Returns:
        Row numbers, batch by batch.

    Raises:
        ValueError: If there are fewer rows than ranks.
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


def _cut(rows: Sequence, size: int) -> list:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
