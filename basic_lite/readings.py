"""How vectors read against the vocabulary: whose row is nearest, and how sharply."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from basic_lite.losses import rows_in_chunk
from basic_lite.products import column_blocks, log_softmax_, project


@dataclass(frozen=True)
class Reading:
    """One number per vector.

    Attributes:
        own: `(n,)` bool, whether the nearest row by cosine is the vector's own token.
        cosine: `(n,)` fp32, to what the first layer received for that token.
        entropy: `(n,)` fp32, of `softmax(h E^T)`, in nats.
    """

    own: torch.Tensor
    cosine: torch.Tensor
    entropy: torch.Tensor


@torch.no_grad()
def read(
    vectors: torch.Tensor,
    received: torch.Tensor,
    ids: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
) -> Reading:
    """Read vectors against the vocabulary, a few hundred rows at a time.

    Args:
        vectors: `(n, D)`.
        received: `(n, D)` the embeddings that the first layer received there.
        ids: `(n,)` the tokens.
        table: `(V, D)` raw token embeddings.
        lengths: `(V,)` fp32, their norms; see `row_lengths`.
    """
    own, entropy = [], []
    vectors = vectors.float()
    rows = min(rows_in_chunk(len(vectors), len(table)), 256)
    buffer = vectors.new_empty((min(rows, len(vectors)), len(table)))
    for part, token in zip(vectors.split(rows), ids.split(rows), strict=True):
        logits = buffer[: len(part)]
        project(part, table, logits)
        own.append((logits / lengths).argmax(1) == token)
        log_softmax_(logits)
        total = logits.new_zeros(len(part))
        for block in column_blocks(logits):
            total -= (logits[:, block].exp() * logits[:, block]).sum(1)
        entropy.append(total)
    cosine = F.cosine_similarity(vectors, received.float(), dim=-1)
    return Reading(torch.cat(own), cosine, torch.cat(entropy))


def row_lengths(table: torch.Tensor) -> torch.Tensor:
    """Return `(V,)` fp32, the norms of the rows; a row of zeros is nearest to nothing."""
    return torch.linalg.vector_norm(table, dim=1, dtype=torch.float32).clamp_min(1e-12)
