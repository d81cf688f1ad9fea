"""BASIC's terms after the decoder's backward pass instead of before it.

Both terms meet the graph at the visual embeddings alone. An identity node stands there: autograd reaches it
when every decoder layer has given back what it kept; only then are the terms computed, and their gradient is
added to the one that came through the decoder. The step's peak is the larger of the two, not their sum; what
waits in between is the target, `4 * N * D` bytes (75 MB for eight pictures of a 7B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from basic_lite.method.chunks import Chunk
from basic_lite.method.objective import Objective
from basic_lite.method.types import LossTerm, Refinement, Window


class Deferral:
    """The terms of one micro-batch, computed when the backward pass arrives at the visual embeddings.

    ```python
    deferral = Deferral(objective, embedding, window)
    embeds = put_among_text(deferral.hold(features, dtype))
    loss = deferral.announce(next_token_loss(decoder(embeds)))
    deferral.refinement = capture.refinement
    loss.backward()             # gradients of loss + weighted terms; deferral.value is what was added
    ```
    Whatever scales the loss before `backward` (accumulation, several processes) scales the terms alike:
    `announce` sees the factor.

    Attributes:
        refinement: to be set before `backward`, its initial embeddings detached; forgotten after it.
        value: after `backward`, 0-dim, the terms' weighted share of the step's loss; `None` before.
    """

    def __init__(
        self,
        objective: Objective,
        embedding: torch.Tensor,  # `(V, D)` raw token embeddings
        window: Window,  # counts of the whole optimizer step, by which the terms are divided
        # Called with the terms (detached) and the refinement once they are known
        finished: Callable[[list[LossTerm], Refinement], None] | None = None,
        # Called with `N` when the decoder's activations are gone, to choose how many patches and tokens
        # `L_sds` has at once; `None` leaves it to the objective
        chunk: Callable[[int], Chunk | None] | None = None,
    ) -> None:
        self.objective, self.embedding, self.window, self.finished = objective, embedding, window, finished
        self.chunk = chunk
        self.refinement: Refinement | None = None
        self.value: torch.Tensor | None = None
        self._scale: torch.Tensor | None = None
        self._kept: torch.Tensor | None = None

    def hold(
        self, features: torch.Tensor, dtype: torch.dtype, kept: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `features.to(dtype)` with the node in between.

        Args:
            features: `(F, D)` the projector's output, with gradient; newlines among it where there are tiles.
            dtype: of the decoder.
            kept: `(N,)` which of them are patches, that have terms; `None` for all.
        """
        self._kept = kept
        return _JoinTerms.apply(features, dtype, self)

    def announce(self, loss: torch.Tensor) -> torch.Tensor:
        """Return `loss` unchanged, noting in the backward pass what it was multiplied by."""

        def note(upstream: torch.Tensor) -> None:  # the first gradient of the backward pass
            self._scale = upstream

        loss.register_hook(note)
        return loss

    def gradient(self) -> torch.Tensor:
        """Compute the terms and return their gradient, `(N, D)` in fp32 or fp64."""
        assert self.refinement is not None, "the refinement of the forward pass was not set before backward"
        assert self._scale is not None, "the loss did not pass through `announce`"
        refinement, self.refinement = self.refinement, None
        leaf = refinement.initial.detach()
        leaf = leaf.to(torch.promote_types(leaf.dtype, torch.float32)).requires_grad_()
        refinement = replace(refinement, initial=leaf)
        objective, chunk = self.objective, None if self.chunk is None else self.chunk(len(leaf))
        gradient = torch.zeros_like(leaf)
        terms: list[LossTerm] = []
        self.value = leaf.new_zeros(())
        with torch.enable_grad():
            for term in objective.terms(refinement, self.embedding, chunk):
                weight = objective.weights[term.name] / self.window.items(term.name)
                (share,) = torch.autograd.grad(term.total, leaf)
                gradient.add_(share, alpha=weight)
                terms.append(replace(term, total=term.total.detach()))
                self.value += weight * terms[-1].total
                del share, term  # before the next term makes its own
        if self.finished is not None:
            self.finished(terms, refinement)
        return gradient.mul_(self._scale)


class _JoinTerms(Function):
    """Identity; on the way back the terms' gradient joins."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, dtype: torch.dtype, deferral: Deferral) -> torch.Tensor:
        ctx.deferral = deferral
        return features.view_as(features) if features.dtype == dtype else features.to(dtype)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, kept = ctx.deferral.gradient(), ctx.deferral._kept
        if kept is None:
            return gradient.add_(upstream), None, None
        return upstream.to(gradient.dtype).index_add(0, kept, gradient), None, None
