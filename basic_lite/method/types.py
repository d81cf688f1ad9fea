"""The few values that flow between modules.

Shape letters, used in every docstring of the package:

    B  rows of a batch            N  image patches in the batch, row-major
    S  tokens per row             D  width of the decoder
    I  images in the batch        V  vocabulary
    P  patches per image          k  supervised decoder layers
    H  query heads                M  supervised text tokens of the batch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Weighting = Literal["quadratic", "linear", "constant", "decreasing"]
"""Of layers 1..k; the first is the paper's."""

Importance = Literal["attention", "uniform"]
"""Of patches; the first is the paper's."""

SdsText = Literal["keep", "skip"]
"""Whether `L_sds` counts on patches that hold text; the first is the paper's."""

TargetKind = Literal["raw", "centred", "translated", "individual"]
"""In which space the target is; the first is the paper's."""

DAS_WEIGHT: float = 1.0
"""lambda_1 of the paper."""

SDS_WEIGHT: float = 0.01
"""lambda_2 of the paper."""


class Diverged(RuntimeError):
    """A run that has stopped itself because its gradients are no longer finite; the text says all."""


class Unmoved(RuntimeError):
    """A run that took all its steps and trained nothing; the text says why."""


@dataclass(frozen=True)
class Refinement:
    """What the shallow layers made of the visual embeddings in one forward pass."""

    initial: torch.Tensor  # `(N, D)` what the first decoder layer received at the patches, with gradient
    # `(N, D)` fp32, detached: the weighted sum of the states after layers 1..k, raw or brought into the space
    # of the embeddings
    target: torch.Tensor
    importance: torch.Tensor  # `(N,)` fp32, detached: how much the text attends to each patch
    image: torch.Tensor  # `(N,)` int64: the image that each patch belongs to, from 0
    images: int  # how many there are (`I`), known on the host
    # `(N,)` bool, patches that `L_sds` leaves out, such as those with text; `None` for none, as in the paper
    spared: torch.Tensor | None = None

    def sum_of_means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over images of the mean of `values` `(N,)` over an image's patches.

        With tiles an image has more patches than another, and counts no more for it.
        """
        patches = values.new_zeros(self.images).index_add_(0, self.image, values.new_ones(len(values)))
        return (values / patches[self.image]).sum()

    def without_spared(self) -> Refinement:
        """Return it with the importance of each image's spared patches shared out among its other ones.

        Those keep their proportions, so that an image weighs the same however much of it is spared: uniform
        weights of `1 / P` become `1 / patches kept`. An image that is spared whole weighs nothing.
        """
        if self.spared is None:
            return self
        kept = self.importance.masked_fill(self.spared, 0.0)
        whole, left = (
            weights.new_zeros(self.images).index_add(0, self.image, weights)
            for weights in (self.importance, kept)
        )
        scale = (whole / left.where(left > 0, 1.0)).where(left > 0, 0.0)
        return replace(self, importance=kept * scale[self.image], spared=None)


@dataclass(frozen=True)
class Intervention:
    """What an experiment does to the teacher on its way to the target; the method itself has none."""

    # Changes the fp32 states `(N, D)` after a layer (numbered from 0) before they are weighted
    states: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    # Changes the result; also receives `inputs_embeds` and `attention_mask` as the decoder got them, the
    # `layout`, and the batch's `rows` where they are known
    refinement: Callable[[Refinement, Mapping[str, object]], Refinement] | None = None


@dataclass(frozen=True)
class LossTerm:
    """A sum and a count, never a mean: only the whole optimizer step knows what to divide by."""

    name: str  # `"lm"`, `"das"` or `"sds"`
    total: torch.Tensor  # 0-dim fp32 sum over the items, attached to the graph
    items: int  # supervised tokens for `"lm"`, images for `"das"` and `"sds"`

    def mean(self) -> torch.Tensor:
        """Return `total / items`; an empty term is 0 and stays attached to the graph."""
        return self.total / max(self.items, 1)


@dataclass(frozen=True)
class Window:
    """Counts over one optimizer step, all micro-batches and all processes together."""

    text_tokens: int  # supervised ones
    images: int

    def items(self, name: str) -> int:
        """Return what the loss term `name` is divided by (at least 1)."""
        return max(self.text_tokens if name == "lm" else self.images, 1)
