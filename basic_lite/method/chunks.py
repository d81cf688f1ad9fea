"""What of rows and vocabulary is there at once; apart from the losses, so that a plan needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

CHUNK_BYTES: int = 512 << 20
"""Budget of the two fp32 logit buffers: 768 rows for 32,000 tokens, 256 rows for 256,000.

Fewer rows would re-read the embedding matrix so often that bandwidth, not arithmetic, sets the pace."""

ROW_BYTES: int = 288 << 10
"""What `L_sds` may take for a patch: 170 MB for the 576 of one picture, where whole rows of 32,000 tokens fit
for all of them at once, and of 256,000 for 64. From 1,820 patches on, `CHUNK_BYTES` is what counts."""

LEAST_BYTES: int = 64 << 20
"""What `L_sds` takes if it must: less memory would mean tiles so narrow that launches set the pace."""

FLOPS_PER_BYTE: int = 160
"""Of a card at its two ceilings (RTX 4090: 164, A100: 153, H200: 184; see `memory.speed.CARDS`)."""


def rows_in_chunk(rows: int, vocabulary: int, budget: int = CHUNK_BYTES) -> int:
    """Return how many rows go through the vocabulary at once: at most 768, and equal chunks of 64 or more.

    A last chunk that is almost empty would read the whole matrix as well: 576 patches of one picture and
    256,000 tokens are three chunks of 192 rows, with 0.39 GB of buffers, not two of 256 and one of 64, with
    0.52. 768 divides the 4,608 patches of eight pictures. Depends on shapes alone unless a budget is given,
    so that a run can be repeated bit for bit. The budget is in bytes, for the two fp32 logit buffers; 128
    rows go through even if they take more.
    """
    most = min(max(budget // (8 * vocabulary) // 128 * 128, 128), _MOST_ROWS)
    return _equal(rows, max(-(-rows // most), 1))


_MOST_ROWS = 768


def _equal(rows: int, chunks: int) -> int:
    """Return the rows of `chunks` equal chunks, in multiples of 64 as matrix units take them."""
    return max(1, min(-(-rows // chunks // 64) * 64, rows))


@dataclass(frozen=True)
class Chunk:
    """What of the `(N, V)` logits `L_sds` has at once; raises ValueError if there is no row or no column."""

    rows: int  # patches
    columns: int  # tokens: all of them, or a tile of the vocabulary

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}_per_chunk must be at least 1, got {getattr(self, name)}")

    def tiles(self, vocabulary: int) -> int:
        return -(-vocabulary // self.columns)

    def products(self, vocabulary: int) -> float:
        """Return the matrix products of `(N, D)` with the whole vocabulary: from 3 up to 4.

        Both logits and the gradient; and, for all tiles but the last, the teacher's share of the gradient.
        """
        return 4 - 1 / self.tiles(vocabulary)

    def bytes(self, vocabulary: int, width: int, element: int) -> int:
        """Return the bytes held beside inputs and gradient; `element` is those of the matrix's elements."""
        # Both logits, and both states as the product takes them; with tiles the sums of a tile and the
        # teacher's share.
        sums = 12 if self.columns < vocabulary else 0
        return self.rows * (8 * min(self.columns, vocabulary) + (2 * element + sums) * width)


@cache
def chunk_of(rows: int, vocabulary: int, width: int, element: int = 2, budget: int | None = None) -> Chunk:
    """Return the fastest chunk by the estimate of `_operations` that fits the budget.

    Whole rows need three products, but few of them fit: the embedding matrix is then read again and again.
    Tiles leave room for more rows and need up to a fourth product. With 16-bit states of one picture on
    Gemma-2B (256,000 tokens) that is 192 rows in three tiles; where there is memory for 128 whole rows it is
    whole rows.

    Args:
        rows: `N`.
        vocabulary: `V`.
        width: `D`.
        element: bytes of an element of the embedding matrix.
        budget: bytes beside inputs and gradient, at least `LEAST_BYTES`; `None` for `ROW_BYTES` per row, at
            most `CHUNK_BYTES`, which depends on shapes alone, so that a run can be repeated bit for bit.
    """
    budget = max(min(rows * ROW_BYTES, CHUNK_BYTES) if budget is None else budget, LEAST_BYTES)
    fitting = list(_fitting(rows, vocabulary, width, element, budget))
    if not fitting:  # a state alone is wider than the budget
        return Chunk(_equal(rows, -(-rows // 64) or 1), min(vocabulary, 1024))
    return min(fitting, key=lambda chunk: _operations(chunk, rows, vocabulary, width, element))


def _fitting(rows: int, vocabulary: int, width: int, element: int, budget: int) -> Iterator[Chunk]:
    """Yield for every number of rows the chunk with the fewest tiles that fits, in equal tiles."""
    for count in range(max(-(-rows // _MOST_ROWS), 1), max(-(-rows // 64), 1) + 1):
        chunk = Chunk(_equal(rows, count), vocabulary)
        if chunk.bytes(vocabulary, width, element) > budget:
            beside = Chunk(chunk.rows, vocabulary - 1).bytes(vocabulary, width, element)
            beside -= 8 * chunk.rows * (vocabulary - 1)
            room = (budget - beside) // (8 * chunk.rows) // 256 * 256
            if room < 256:
                continue
            tiles = -(-vocabulary // room)
            chunk = Chunk(chunk.rows, -(-vocabulary // tiles // 256) * 256)
        yield chunk


def _operations(chunk: Chunk, rows: int, vocabulary: int, width: int, element: int) -> float:
    """Estimate the time of a logit, in floating point operations at a card's ceiling.

    Products of few rows are slowed by reading the matrix, twice per chunk of rows; both ceilings together
    bend as fourth powers do (a card measured 0.96 of the speed at 256 rows and D = 2048, 1.04 by this). Row
    kernel and narrow operands move 28 bytes a logit, in tiles 30, and the sums of a tile 52 bytes a state.
    """
    tiles, chunks = chunk.tiles(vocabulary), -(-rows // chunk.rows) if rows else 1
    arithmetic = 2 * width * chunk.products(vocabulary)
    reading = FLOPS_PER_BYTE * 2 * element * width * chunks / max(rows, 1)
    moved = 28 if tiles == 1 else 30 + 52 * width / chunk.columns
    return (arithmetic**4 + reading**4) ** 0.25 + FLOPS_PER_BYTE * moved
