"""BASIC for people with a training loop of their own: one context manager around the forward pass.

Nothing is stored per layer. After each of the first k decoder layers a hook adds the weighted states at
the patch positions, brought into the target's space, to one fp32 `(N, D)` sum, and the attention function
adds one number per patch.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import get_args

import torch
from torch import nn
from transformers import LlavaModel, LlavaNextModel

from basic_lite.data.layout import Layout, layout_of
from basic_lite.method import attention
from basic_lite.method.objective import Objective
from basic_lite.method.targets import INDIVIDUAL, RAW, TargetSpace, layer_weights, supervised_layers
from basic_lite.method.types import (
    DAS_WEIGHT,
    SDS_WEIGHT,
    Importance,
    Intervention,
    LossTerm,
    Refinement,
    TargetKind,
    Weighting,
)
from basic_lite.models.parts import layers_of, parts_of, tiling_of


class BasicSupervision:
    """Supervise visual embeddings by the decoder's own shallow layers, in any training loop.

    ```python
    supervision = BasicSupervision(model)
    with supervision:
        outputs = model(**batch)
    loss = outputs.loss + supervision.loss()
    ```
    Works with any `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`, PEFT-wrapped or
    not, with gradient checkpointing on or off. From construction on the decoder's attention is `basic_sdpa`:
    sdpa, which also records while the block is open. Each forward pass inside the block starts anew. Under
    gradient accumulation add up the terms' `total` and `items` over the micro-batches and divide once, or
    let `BasicTrainer` do it.

    Attributes:
        layers: k, the number of supervised layers.
        objective: the weights of the terms.
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
        """Prepare, and switch the decoder's attention to `basic_sdpa`.

        Args:
            model: a LLaVA of transformers.
            layers: k, the number of supervised layers; `None` means half of the decoder's.
            weighting: how layers 1..k are weighted in the target; see `targets.layer_weights`.
            importance: how patches are weighted: `"attention"` (the paper; the mean over those of the k
                layers that attend) or `"uniform"` (`1 / P` for each of an image's own P patches).
            das_weight: weight of the directional alignment; 0 switches it off.
            sds_weight: weight of the semantic distribution; 0 switches it off.
            rows_per_chunk: patches per pass over the vocabulary; `None` chooses by size.
            target: `"raw"` (the paper), `"individual"`, or what `fit_target` returned.

        Raises ValueError if an argument is out of its range, the model is no LLaVA, or none of the k layers
        attends.
        """
        if importance not in get_args(Importance):
            raise ValueError(
                f"importance must be one of {', '.join(get_args(Importance))}, got {importance!r}"
            )
        self.objective = Objective(das_weight, sds_weight, rows_per_chunk)
        self._intervention = Intervention()
        self.refinement: Refinement | None = None
        self._parts = parts_of(model)
        self.layers = supervised_layers(self._parts.decoder.config, layers)
        self._weights = layer_weights(self.layers, weighting)
        self._space = target if isinstance(target, TargetSpace) else TargetSpace(target)
        self._space.check_fits(self.layers, self._parts.embedding.shape[1])
        self._terms: dict[str, LossTerm] | None = None  # of the refinement, once they are asked for
        self._given: tuple[Layout, torch.Tensor | None] | None = None
        self._rows: list[int] | None = None
        self._layout: Layout | None = None
        self._initial: torch.Tensor | None = None
        self._target: torch.Tensor | None = None
        self._attention: torch.Tensor | None = None
        self._received: dict[str, torch.Tensor | None] = {}
        self._stack = ExitStack()
        self._attending: list[int] = []
        if importance == "attention":
            self._attending = attention.attending_layers(self._parts.decoder, self.layers)
            attention.install(self._parts.decoder)

    @property
    def terms(self) -> dict[str, LossTerm]:
        """The terms of the last forward pass, `"das"` and `"sds"`; empty for a batch without image."""
        if self._terms is None:
            terms = self.objective.terms(self.refinement, self._parts.embedding)
            self._terms = {term.name: term for term in terms}
        return self._terms

    def loss(self) -> torch.Tensor:
        """Return the weighted sum of the terms' means over the images of this batch (0 without image)."""
        parts = [self.objective.weights[name] * term.mean() for name, term in self.terms.items()]
        return sum(parts, start=self._parts.embedding.new_zeros((), dtype=torch.float32))

    def release(self) -> Refinement | None:
        """Return the refinement and forget it, so that nothing here keeps its tensors alive."""
        refinement, self.refinement, self._terms = self.refinement, None, None
        return refinement

    def intervene(self, intervention: Intervention) -> None:
        """Change the teacher from now on, as an experiment; see `basic_lite.experiments.interventions`."""
        self._intervention = intervention

    def use(self, layout: Layout, initial: torch.Tensor | None = None, rows: list[int] | None = None) -> None:
        """Take the positions of the next forward pass from `layout` (made by the collator, saves a sync).

        `initial` `(N, D)` is the visual embeddings as the decoder will receive them; `None` gathers them.
        `rows` are the batch's rows by number, for an intervention.
        """
        self._given, self._rows = (layout, initial) if self.objective.active else None, rows

    def __enter__(self) -> BasicSupervision:
        if not self.objective.active:
            return self
        llava, decoder = self._parts.llava, self._parts.decoder
        hooks = [
            llava.register_forward_pre_hook(self._start, with_kwargs=True),
            decoder.register_forward_pre_hook(self._receive, with_kwargs=True),
            *(
                layer.register_forward_hook(partial(self._accumulate, index))
                for index, layer in enumerate(layers_of(decoder)[: self.layers])
            ),
            llava.register_forward_hook(self._finish),
        ]
        for hook in hooks:
            self._stack.callback(hook.remove)
        if self._attending:
            self._stack.enter_context(attention.recording(self._attend))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._given = None

    def _start(self, llava: LlavaModel | LlavaNextModel, args: tuple, kwargs: dict) -> None:
        self.refinement = self._terms = self._initial = self._target = self._attention = None
        self._attended: list[int] = []
        self._text: list[tuple[torch.Tensor | None, attention.TextRows]] = []
        layout = self._given[0] if self._given is not None else self._layout_in(llava, args, kwargs)
        self._layout = layout if layout is not None and layout.images else None
        if self._space.kind == INDIVIDUAL and self._layout is not None and self._layout.kept is not None:
            raise ValueError(
                "an individual target compares pictures patch by patch, which those in tiles do not allow"
            )

    @staticmethod
    def _layout_in(llava: LlavaModel | LlavaNextModel, args: tuple, kwargs: dict) -> Layout | None:
        """Find the patches among the arguments of LLaVA's forward pass; `None` without an image."""
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        pixels = kwargs.get("pixel_values", args[1] if len(args) > 1 else None)
        if pixels is None:
            return None
        if input_ids is None:
            raise ValueError(
                "BASIC needs input_ids to find the patches; inputs_embeds alone do not show them"
            )
        mask, token, tiling = kwargs.get("attention_mask"), llava.config.image_token_id, tiling_of(llava)
        if tiling is None:
            return layout_of(input_ids, mask, token, len(pixels))
        blocks = tiling.blocks(kwargs.get("image_sizes", args[2] if len(args) > 2 else ()))
        return layout_of(input_ids, mask, token, len(blocks), blocks=blocks)

    def _receive(self, decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        """Take what the first layer receives at the patches: `v`, in the space that the decoder works in.

        At the decoder's door, not the first layer's: up to transformers 5.17 a layer's hooks run inside its
        checkpoint, where nothing may be saved for backward that the recomputation does not save again.
        """
        if self._intervention.refinement is not None:
            self._received = {name: kwargs.get(name) for name in ("inputs_embeds", "attention_mask")}
        (_, self._initial), self._given = self._given or (None, None), None
        if self._initial is None and self._layout is not None:
            initial = kwargs["inputs_embeds"].flatten(0, 1).index_select(0, self._layout.patch)
            # Granite's decoder multiplies what it is given, unless `decoder.fold_scales` has moved that.
            self._initial = initial * getattr(decoder, "embedding_multiplier", 1.0)

    @torch.no_grad()
    def _accumulate(self, index: int, layer: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
        if self._layout is None:
            return
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        states = hidden.flatten(0, 1).index_select(0, self._layout.patch)
        as_they_are = self._space.kind == RAW and self._intervention.states is None
        if self._target is not None and as_they_are:
            self._target.add_(states, alpha=self._weights[index])  # widened on the way
            return
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        if self._intervention.states is not None:
            states = self._intervention.states(index, states)
        self._space = self._space.to(states.device)
        states = self._space.bring(index, states, self._layout.images)
        if self._target is None:
            self._target = states.mul_(self._weights[index])
        else:
            self._target.add_(states, alpha=self._weights[index])

    @torch.no_grad()
    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        cap: float | None,
    ) -> None:
        index = getattr(module, "layer_idx", None)
        if self._layout is None or index not in self._attending:
            return
        # The vision tower may run under the same name; only the decoder's own modules count.
        if module is not layers_of(self._parts.decoder)[index].self_attn:
            return
        self._attended.append(index)
        text = next((text for mask, text in self._text if mask is attention_mask), None)
        if text is None:  # layers share a mask, or two of them where some have a window
            text = attention.TextRows(self._layout, attention_mask, query)
            self._text = [*self._text[-1:], (attention_mask, text)]
        total = text.attention(query, key, scaling, cap)
        if total is not None:
            self._attention = total if self._attention is None else self._attention.add_(total)

    def _finish(self, llava: LlavaModel | LlavaNextModel, args: tuple, output: object) -> None:
        # From here on nothing counts: a checkpointed layer may run again before the block is closed.
        layout, self._layout = self._layout, None
        if layout is None:
            return
        assert self._initial is not None, "the decoder ran"
        assert self._target is not None, "the decoder's first layer ran"
        if self._attending:
            if self._attended != self._attending:
                silent = sorted({index + 1 for index in self._attending} - {i + 1 for i in self._attended})
                raise ValueError(
                    f"layers {', '.join(map(str, silent))} of the decoder did not run {attention.NAME}: was "
                    "its attention switched after BASIC was prepared? Prepare it anew afterwards, or weight "
                    'all patches alike (importance="uniform")'
                )
            seen = self._target.new_zeros(len(layout.patch))
            if self._attention is not None:
                seen = self._attention.flatten()[layout.patch]
            importance = seen / (len(self._attending) * layout.text_after[layout.image])
        else:
            importance = layout.patch_count.to(self._target.dtype).reciprocal()[layout.image]
        if self._space.kind == INDIVIDUAL and layout.images == 1:
            importance = torch.zeros_like(importance)  # a mean that is its own leaves nothing
        refinement = Refinement(
            self._initial, self._target, importance, layout.image, layout.images, layout.spared
        )
        if self._intervention.refinement is not None:
            given = self._received | {"layout": layout, "rows": self._rows}
            refinement, self._received = self._intervention.refinement(refinement, given), {}
        self.refinement = refinement
        self._initial = self._target = self._attention = None
        self._text = []
