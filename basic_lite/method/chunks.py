"""How many rows go through the vocabulary at once; apart from the losses, so that a plan needs no torch."""

from __future__ import annotations

CHUNK_BYTES: int = 512 << 20
"""Budget of the two fp32 logit buffers: 1024 rows for 32,000 tokens, 256 rows for 256,000.

Fewer rows would re-read the embedding matrix so often that bandwidth, not arithmetic, sets the pace."""


def rows_in_chunk(rows: int, vocabulary: int, budget: int = CHUNK_BYTES) -> int:
    """Return how many rows go through the vocabulary at once: a multiple of 128, at most 1024.

    Depends on shapes alone unless a budget is given, so that a run can be repeated bit for bit.

    Args:
        rows: `N`, all rows.
        vocabulary: `V`.
        budget: bytes for the two fp32 logit buffers; 128 rows go through even if they take more.
    """
    fitting = budget // (8 * vocabulary) // 128 * 128
    return max(1, min(max(fitting, 128), 1024, rows))
