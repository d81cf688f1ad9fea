"""BASIC for people with a training loop of their own: one context manager around the forward pass."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import nn

from basic_lite.data.layout import Layout
from basic_lite.method.capture import Importance, Weighting, capture
from basic_lite.method.objective import Objective
from basic_lite.method.targets import TargetKind, TargetSpace
from basic_lite.method.types import DAS_WEIGHT, SDS_WEIGHT, Intervention, LossTerm, Refinement


class BasicSupervision:
    """Supervise visual embeddings by the decoder's own shallow layers, in any training loop.

    ```python
    supervision = BasicSupervision(model)
    with supervision:
        outputs = model(**batch)
    loss = outputs.loss + supervision.loss()
    ```
    Works with any `LlavaForConditionalGeneration`, PEFT-wrapped or not. From construction on the
    decoder's attention is `basic_sdpa`: sdpa, which also records while the block is open. Under gradient
    accumulation add up the terms' `total` and `items` over the micro-batches and divide once, or let
    `BasicTrainer` do it.

    Attributes:
        objective: the weights.
        refinement: what the last forward pass inside the block showed; `None` for a batch without image.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: int | None = None,
        weighting: Weighting = "quadratic",
        importance: Importance = "attention",
        das_weight: float = DAS_WEIGHT,
        sds_weight: float = SDS_WEIGHT,
        rows_per_chunk: int | None = None,
        target: TargetKind | TargetSpace = "raw",
    ) -> None:
        """Prepare; see `Objective` and `capture` for the arguments.

        Args:
            model: a LLaVA of transformers.
            layers: k, the number of supervised layers; `None` means half of the decoder's.
            weighting: how layers 1..k are weighted in the target.
            importance: how patches are weighted; by the mean attention of those of the k layers that attend.
            das_weight: weight of the directional alignment; 0 switches it off.
            sds_weight: weight of the semantic distribution; 0 switches it off.
            rows_per_chunk: patches per pass over the vocabulary; `None` chooses by size.
            target: `"raw"` (the paper), `"individual"`, or what `fit_target` returned.

        Raises:
            ValueError: If an argument is out of its range, the model is no LLaVA, or none of the k layers
                attends.
        """
        self.objective = Objective(das_weight, sds_weight, rows_per_chunk)
        self._capture = capture(model, layers, weighting, importance, target)
        self._terms: dict[str, LossTerm] = {}
        self._terms_of: Refinement | None = None

    @property
    def layers(self) -> int:
        """k, the number of supervised layers."""
        return self._capture.layers

    @property
    def refinement(self) -> Refinement | None:
        """What the last forward pass inside the block showed; `None` for a batch without image."""
        return self._capture.refinement

    def release(self) -> Refinement | None:
        """Return the refinement and forget it, so that nothing here keeps its tensors alive."""
        refinement, self._capture.refinement = self.refinement, None
        self._terms, self._terms_of = {}, None
        return refinement

    @property
    def terms(self) -> dict[str, LossTerm]:
        """The terms of the last forward pass, `"das"` and `"sds"`; empty for a batch without image."""
        if self._terms_of is not self.refinement:
            terms = self.objective.terms(self.refinement, self._capture.parts.embedding)
            self._terms, self._terms_of = {term.name: term for term in terms}, self.refinement
        return self._terms

    def loss(self) -> torch.Tensor:
        """Return the weighted sum of the terms' means over the images of this batch (0 without image)."""
        parts = [self.objective.weights[name] * term.mean() for name, term in self.terms.items()]
        return sum(parts, start=self._capture.parts.embedding.new_zeros((), dtype=torch.float32))

    def intervene(self, intervention: Intervention) -> None:
        """Change the teacher from now on, as an experiment; see `basic_lite.experiments.interventions`."""
        self._capture.intervention = intervention

    def use(self, layout: Layout, initial: torch.Tensor | None = None, rows: list[int] | None = None) -> None:
        """Take the positions of the next forward pass from `layout` (made by the collator, saves a sync).

        Args:
            layout: of the batch.
            initial: `(N, D)` the visual embeddings as the decoder will receive them, if they are at hand.
            rows: the batch's rows by number, for an intervention.
        """
        if self.objective.active:
            self._capture.use(layout, initial, rows)

    def __enter__(self) -> BasicSupervision:
        if self.objective.active:
            self._capture.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.objective.active:
            self._capture.__exit__(kind, error, trace)
