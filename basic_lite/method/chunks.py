"""How many rows go through the vocabulary at once; apart from the losses, so that a plan needs no torch."""

from __future__ import annotations

CHUNK_BYTES: int = 512 << 20
"""Budget of the two fp32 logit buffers: 768 rows for 32,000 tokens, 256 rows for 256,000.

Fewer rows would re-read the embedding matrix so often that bandwidth, not arithmetic, sets the pace."""


def rows_in_chunk(rows: int, vocabulary: int, budget: int = CHUNK_BYTES) -> int:
    """Return how many rows go through the vocabulary at once: at most 768, and equal chunks of 64 or more.

    A last chunk that is almost empty would read the whole matrix as well: 576 patches of one picture and
    256,000 tokens are three chunks of 192 rows, with 0.39 GB of buffers, not two of 256 and one of 64, with
    0.52. 768 divides the 4,608 patches of eight pictures. Depends on shapes alone unless a budget is given,
    so that a run can be repeated bit for bit.

    Args:
        rows: `N`, all rows.
        vocabulary: `V`.
        budget: bytes for the two fp32 logit buffers; 128 rows go through even if they take more.
    """
    most = min(max(budget // (8 * vocabulary) // 128 * 128, 128), 768)
    chunks = max(-(-rows // most), 1)
    equal = -(-rows // chunks)
    return max(1, min(-(-equal // 64) * 64, rows))
