"""What visual embeddings mean to the LLM: the vocabulary token that each of them is nearest to."""

from __future__ import annotations

import torch
from torch.nn import functional as F


@torch.no_grad()
def match_tokens(
    vectors: torch.Tensor, table: torch.Tensor, rows: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token whose embedding has the largest cosine with each vector (section 4.4 of the paper).

    Args:
        vectors: `(N, D)`, visual embeddings or hidden states.
        table: `(V, D)` raw token embeddings.
        rows: Vectors per matrix product; `rows * V` cosines are held at a time.

    Returns:
        `(N,)` int64 token ids and `(N,)` fp32 cosines.
    """
    tokens = F.normalize(table.float(), dim=1)
    best = [
        (F.normalize(part.float(), dim=1, eps=1e-6) @ tokens.T).max(dim=1) for part in vectors.split(rows)
    ]
    if not best:
        return vectors.new_zeros(0, dtype=torch.long), vectors.new_zeros(0, dtype=torch.float32)
    return torch.cat([found.indices for found in best]), torch.cat([found.values for found in best])
