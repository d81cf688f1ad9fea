"""The two terms that BASIC adds to the language-model loss, with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from basic_lite.method.chunks import Chunk
from basic_lite.method.losses import directional_alignment, semantic_distribution
from basic_lite.method.types import DAS_WEIGHT, SDS_WEIGHT, LossTerm, Refinement


@dataclass(frozen=True)
class Objective:
    """`lambda_1 * L_das + lambda_2 * L_sds` (paper, section 3); a weight of 0 switches its term off.

    Raises ValueError if a weight is negative or not finite, or `rows_per_chunk` is below 1.
    """

    das_weight: float = DAS_WEIGHT  # lambda_1
    sds_weight: float = SDS_WEIGHT  # lambda_2
    # Patches per pass over the vocabulary in `L_sds`; `None` chooses by size
    rows_per_chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("das_weight", "sds_weight"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 (off) or a positive number, got {value}")
        if self.rows_per_chunk is not None and self.rows_per_chunk < 1:
            raise ValueError(f"rows_per_chunk must be at least 1, got {self.rows_per_chunk}")

    @property
    def active(self) -> bool:
        """Whether any term is on; if not, nothing needs to be captured."""
        return self.das_weight > 0 or self.sds_weight > 0

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss term by name; the language model's is 1."""
        return {"lm": 1.0, "das": self.das_weight, "sds": self.sds_weight}

    def terms(
        self, refinement: Refinement | None, embedding: torch.Tensor, chunk: Chunk | None = None
    ) -> Iterator[LossTerm]:
        """Compute one term after the other, so that the first can be done with before the next is made.

        No refinement (no image) gives no terms. `embedding` is the raw `(V, D)` table; `chunk`, what `L_sds`
        has at once, takes the place of `rows_per_chunk`.
        """
        if refinement is not None and self.das_weight > 0:
            yield directional_alignment(refinement)
        if refinement is not None and self.sds_weight > 0:
            yield semantic_distribution(refinement.without_spared(), embedding, chunk or self.rows_per_chunk)
