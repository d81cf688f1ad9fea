"""One micro-batch through the model: from its tensors to its share of the optimizer step's loss."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from basic_lite.data.layout import Layout
from basic_lite.memory.available import unraised_bytes
from basic_lite.method.attention import causal_only
from basic_lite.method.chunks import Chunk, chunk_of
from basic_lite.method.deferred import Deferral
from basic_lite.method.losses import next_token
from basic_lite.method.objective import Objective
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.types import LossTerm, Window
from basic_lite.models.parts import parts_of
from basic_lite.models.tower import up_to_the_features
from basic_lite.training import last_layer
from basic_lite.training.callbacks import Metrics


class Forward:
    """Run a model on batches with known positions, without a host synchronisation."""

    def __init__(
        self,
        model: nn.Module,
        # Watches the forward pass: BASIC's own, or the plain baseline's observer
        supervision: BasicSupervision,
        objective: Objective,  # the terms that are trained on
        metrics: Metrics,  # where the terms' values go
        # Run the decoder's last layer for supervised rows only, where that is exact
        prune_last_layer: bool = True,
        # Let backward pass every layer also where nothing in front of it is trained: of layers that are cut,
        # all processes fetch the pieces at the same time or wait for ever
        always_backward: bool = False,
    ) -> None:
        self.parts = parts_of(model)
        self.supervision, self.objective, self.metrics = supervision, objective, metrics
        self.deferral: Deferral | None = None
        rows = objective.rows_per_chunk
        self.chunk = None if rows is None else Chunk(rows, len(self.parts.embedding))
        self.most_rows = 0
        self._chosen_rows = prune_last_layer and last_layer.prepare(self.parts.decoder, supervision.layers)
        self._always_backward = always_backward
        self._nothing: torch.Tensor | None = None

    def __call__(
        self, model: nn.Module, inputs: dict, window: Window, *, watched: bool = True, deferred: bool = False
    ) -> tuple[torch.Tensor, list[LossTerm]]:
        """Return the micro-batch's share of the step's loss, and the terms known so far.

        Args:
            model: the wrapped model.
            inputs: a batch with its layout.
            window: counts of the whole step.
            watched: whether `supervision` records; the baseline needs it on logged steps alone.
            deferred: compute BASIC's terms in the backward pass (see `Deferral`) where they have a gradient.
                The loss then has their gradient but not yet their value: `deferral.value`, after `backward`.
        """
        layout: Layout = inputs["layout"]
        parts, objective, supervision = self.parts, self.objective, self.supervision
        embeds = parts.llava.get_input_embeddings()(inputs["input_ids"])
        features, initial, self.deferral = self._features(inputs), None, None
        if features is not None:
            if deferred and objective.active and features.requires_grad:
                note = partial(self.metrics.add, window=window)
                self.deferral = Deferral(objective, parts.embedding, window, note, self._chunk)
                features = self.deferral.hold(features, embeds.dtype, layout.kept)
                initial = features.detach()
                initial = initial if layout.kept is None else initial.index_select(0, layout.kept)
            embeds = _put_among(embeds, features.to(embeds.dtype), layout)
        if self._always_backward and torch.is_grad_enabled() and not embeds.requires_grad:
            embeds.requires_grad_()
        if self._nothing is None:
            self._nothing = torch.empty(0, dtype=torch.long, device=embeds.device)
        if watched:
            supervision.use(layout, initial, inputs.get("rows"))
        known = [name for name, on in objective.weights.items() if on and (window.images or name == "lm")]
        self.metrics.count([*known, *(["cosine"] if watched and window.images else [])], window)
        del features, initial
        mask = None if layout.right_padded else inputs["attention_mask"]
        masking = causal_only(parts.decoder, embeds.shape[1]) if layout.right_padded else nullcontext()
        # Through the outer model, which is where autocast and DDP live, but without its (B, S, V)
        # logits: an empty `logits_to_keep`. The states come from a hook on the inner model.
        states: list[torch.Tensor] = []
        hook = parts.llava.register_forward_hook(lambda module, args, output: states.append(output[0]))
        try:
            with supervision if watched else nullcontext(), masking:
                model(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    use_cache=False,
                    logits_to_keep=self._nothing,
                    **({last_layer.KEYWORD: layout.predicting_rows} if self._chosen_rows else {}),
                )
        finally:
            hook.remove()
        place = layout.slot if self._chosen_rows else layout.predicting
        supervised = states.pop().flatten(0, 1).index_select(0, place)
        terms = [next_token(supervised, layout.targets, parts.head)]
        if self.deferral is None and objective.active:
            terms += supervision.terms.values()
        weights = objective.weights
        first, *others = (weights[term.name] * term.total / window.items(term.name) for term in terms)
        loss = sum(others, start=first)
        if torch.is_grad_enabled() and not loss.requires_grad:
            # Text only, and nothing but the projector is trained: it gets no gradient, not one of zeros, by
            # which Adam would go on.
            loss = loss + loss.new_zeros((), requires_grad=True)
        if self.deferral is None:
            self.metrics.add(terms, supervision.refinement if watched else None, window)
        else:
            self.metrics.add(terms, None, window)
            self.deferral.refinement = supervision.release()
            loss = self.deferral.announce(loss)
        return loss, terms

    def _chunk(self, count: int) -> Chunk | None:
        """Choose what `L_sds` has at once, once per run: on a GPU what is fastest in the free memory.

        The decoder has let go by then, and the run's first step is its largest. Elsewhere `None`: by shape.
        """
        embedding = self.parts.embedding
        if self.chunk is None and embedding.is_cuda:
            three_in_fp32 = 12 * count * embedding.shape[1]  # (N, D) each
            budget = unraised_bytes(embedding.device) - three_in_fp32
            self.chunk = chunk_of(count, *embedding.shape, embedding.element_size(), budget)
        if self.objective.sds_weight:
            used = self.chunk or chunk_of(count, *embedding.shape, embedding.element_size())
            self.most_rows = max(self.most_rows, min(used.rows, count))
        return self.chunk

    def _features(self, inputs: dict) -> torch.Tensor | None:
        """Return the projector's output, `(F, D)` in the projector's dtype; `None` without a picture."""
        if not inputs["layout"].images:
            return None
        llava = self.parts.llava
        sizes = {name: inputs[name] for name in ("image_sizes",) if name in inputs}
        with up_to_the_features(llava.vision_tower, llava.config.vision_feature_layer):
            outputs: Any = llava.get_image_features(inputs["pixel_values"], **sizes)
        return torch.cat(list(outputs.pooler_output))


def _put_among(embeds: torch.Tensor, features: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Put visual features `(F, D)`, newlines included, among the text's `embeds` `(B, S, D)`.

    `LlavaModel` compares their numbers on the device, and waits; the collator has done so already.
    """
    return embeds.flatten(0, 1).index_copy(0, layout.places, features).view_as(embeds)
