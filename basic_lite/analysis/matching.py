"""The vocabulary token that a visual embedding or a hidden state is nearest to."""

from __future__ import annotations

import torch
from torch.nn import functional as F

ROWS: int = 1024
"""Vectors per matrix product."""

VOCABULARY_ROWS: int = 16_384
"""Rows of the table per matrix product: 67 MB of cosines with `ROWS` vectors, 268 MB of table at D = 4096."""


@torch.no_grad()
def match_tokens(
    vectors: torch.Tensor, table: torch.Tensor, rows: int = ROWS, vocabulary_rows: int = VOCABULARY_ROWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token whose embedding has the largest cosine with each vector (section 4.4 of the paper).

        normalize(vectors) @ normalize(table).T -> max over the vocabulary

    Neither the cosines with the whole vocabulary nor an fp32 copy of the table is ever held.

    Args:
        vectors: `(N, D)`, visual embeddings or hidden states.
        table: `(V, D)` raw token embeddings, on the same device.
        rows: Vectors per matrix product; `rows * vocabulary_rows` cosines are held at a time.
        vocabulary_rows: Rows of the table per matrix product.

    Returns:
        `(N,)` int64 token ids and `(N,)` fp32 cosines.
    """
    count = len(vectors)
    ids = torch.zeros(count, dtype=torch.long, device=vectors.device)
    best = torch.full((count,), -torch.inf, device=vectors.device)
    for start in range(0, len(table), vocabulary_rows):
        tokens = F.normalize(table[start : start + vocabulary_rows].float(), dim=1)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            found = (F.normalize(vectors[part].float(), dim=1, eps=1e-6) @ tokens.T).max(dim=1)
            better = found.values > best[part]
            best[part] = torch.where(better, found.values, best[part])
            ids[part] = torch.where(better, found.indices + start, ids[part])
    return ids, best
