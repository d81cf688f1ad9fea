"""Watch one forward pass: visual embeddings going in, what layers 1..k make of them, and who looked at them.

Nothing is stored per layer. After each of the first k decoder layers a hook adds the weighted states at
the patch positions, brought into the target's space, to one fp32 `(N, D)` sum, and the attention function
adds one number per patch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import get_args

import torch
from torch import nn
from transformers import LlavaModel, LlavaNextModel, PretrainedConfig, PreTrainedModel

from basic_lite.data.layout import Layout, layout_of
from basic_lite.method import attention
from basic_lite.method.targets import RAW, TargetKind, TargetSpace
from basic_lite.method.types import Importance, Intervention, Refinement, Weighting
from basic_lite.models.parts import layers_of, parts_of, tiling_of


def supervised_layers(config: PretrainedConfig, layers: int | None) -> int:
    """Return k: `layers`, or half of the decoder's layers.

    Raises:
        ValueError: If `layers` is not between 1 and the number of layers.
    """
    depth = config.num_hidden_layers
    if layers is None:
        return max(depth // 2, 1)
    if not 1 <= layers <= depth:
        raise ValueError(f"layers must be between 1 and {depth} for this decoder, got {layers}")
    return layers


def attending_layers(decoder: PreTrainedModel, k: int) -> list[int]:
    """Return the indices of those of layers 1..k whose attention says which patches the text looks at.

    Hybrid decoders attend in some layers alone: Qwen3.5 in every fourth, with a linear recurrence in
    between that has no weights per patch.

    Args:
        decoder: the language model.
        k: number of supervised layers.

    Raises:
        ValueError: If there is none; says what to do.
    """
    kinds = getattr(decoder.config, "layer_types", None) or []
    # The name alone does not tell: MiniMax calls its linear recurrence `self_attn` as well.
    attending = [
        index
        for index, layer in enumerate(layers_of(decoder))
        if hasattr(layer, "self_attn") and kinds[index : index + 1] != ["linear_attention"]
    ]
    if not attending or attending[0] >= k:
        larger = f"supervise at least {attending[0] + 1} layers (layers), or " if attending else ""
        raise ValueError(
            f"none of the supervised layers 1 to {k} of this {type(decoder).__name__} attends, so nothing "
            f'says which patches the text looks at; {larger}weight all patches alike (importance="uniform")'
        )
    return [index for index in attending if index < k]


def layer_weights(k: int, weighting: Weighting = "quadratic") -> list[float]:
    """Return `w_1 .. w_k`, which sum to 1 (paper: `l ** 2 / sum of squares`, later layers count more).

    Args:
        k: number of supervised layers.
        weighting: `"quadratic"` (the paper), `"linear"`, `"constant"`, or `"decreasing"` (quadratic,
        reversed).

    Raises:
        ValueError: If `weighting` is none of these.
    """
    raw = {
        "quadratic": [float(layer**2) for layer in range(1, k + 1)],
        "linear": [float(layer) for layer in range(1, k + 1)],
        "constant": [1.0] * k,
        "decreasing": [float(layer**2) for layer in range(k, 0, -1)],
    }
    if weighting not in raw:
        raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}")
    return [weight / sum(raw[weighting]) for weight in raw[weighting]]


class capture:
    """`with capture(model) as seen: model(**batch)` leaves `seen.refinement`.

    Works on any `LlavaForConditionalGeneration`, PEFT-wrapped or not, with gradient checkpointing on or
    off. Each forward pass inside the block starts anew. A batch without image leaves `None`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: int | None = None,
        weighting: Weighting = "quadratic",
        importance: Importance = "attention",
        target: TargetKind | TargetSpace = "raw",
    ) -> None:
        """Prepare, and switch the decoder's attention to `basic_sdpa` (sdpa while nothing records).

        Args:
            model: the LLaVA.
            layers: k; `None` means half of the decoder's layers.
            weighting: see `layer_weights`.
            importance: `"attention"` (the paper; the mean over those of the k layers that attend) or
                `"uniform"` (`1 / P` for each of an image's own P patches).
            target: `"raw"` (the paper), or a space that was fitted on text.

        Raises:
            ValueError: If an argument is out of its range, the model is no LLaVA, or none of the k layers
                attends.
        """
        if importance not in get_args(Importance):
            raise ValueError(
                f"importance must be one of {', '.join(get_args(Importance))}, got {importance!r}"
            )
        self.parts = parts_of(model)
        self.layers = supervised_layers(self.parts.decoder.config, layers)
        self.weights = layer_weights(self.layers, weighting)
        self.importance = importance
        self.space = target if isinstance(target, TargetSpace) else TargetSpace(target)
        self.space.check_fits(self.layers, self.parts.embedding.shape[1])
        self.refinement: Refinement | None = None
        self._initial: torch.Tensor | None = None
        self._target: torch.Tensor | None = None
        self._attention: torch.Tensor | None = None
        self._given: Layout | None = None
        self._at_hand: torch.Tensor | None = None
        self.intervention = Intervention()
        self._rows: list[int] | None = None
        self._received: dict[str, torch.Tensor | None] = {}
        self._stack = ExitStack()
        self._attending: list[int] = []
        if importance == "attention":
            self._attending = attending_layers(self.parts.decoder, self.layers)
            attention.install(self.parts.decoder)

    def use(self, layout: Layout, initial: torch.Tensor | None = None, rows: list[int] | None = None) -> None:
        """Take the positions of the next forward pass from `layout`, which costs no search.

        Args:
            layout: of the batch.
            initial: `(N, D)` what the decoder will receive there, for whoever has it at hand; `None`
                gathers it.
            rows: the batch's rows by number, for an intervention.
        """
        self._given, self._at_hand, self._rows = layout, initial, rows

    def __enter__(self) -> capture:
        llava, decoder = self.parts.llava, self.parts.decoder
        hooks = [
            llava.register_forward_pre_hook(self._start, with_kwargs=True),
            decoder.register_forward_pre_hook(self._receive, with_kwargs=True),
            *(
                layer.register_forward_hook(self._accumulate(index))
                for index, layer in enumerate(layers_of(decoder)[: self.layers])
            ),
            llava.register_forward_hook(self._finish),
        ]
        for hook in hooks:
            self._stack.callback(hook.remove)
        record = self.importance == "attention"
        self._stack.enter_context(attention.recording(self._attend) if record else nullcontext())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._given = self._at_hand = None

    def _start(self, llava: LlavaModel | LlavaNextModel, args: tuple, kwargs: dict) -> None:
        """Find the patches of this forward pass and forget the last one."""
        self.refinement = self._initial = self._target = self._attention = None
        self._attended: list[int] = []
        self._text: list[tuple[torch.Tensor | None, attention.TextRows]] = []
        layout, self._given = self._given, None
        if layout is None:
            input_ids = kwargs.get("input_ids", args[0] if args else None)
            pixels = kwargs.get("pixel_values", args[1] if len(args) > 1 else None)
            if pixels is None:
                layout = None
            elif input_ids is None:
                raise ValueError(
                    "BASIC needs input_ids to find the patches; inputs_embeds alone do not show them"
                )
            else:
                mask, tiling = kwargs.get("attention_mask"), tiling_of(llava)
                blocks, images = None, len(pixels)
                if tiling is not None:
                    blocks = tiling.blocks(kwargs.get("image_sizes", args[2] if len(args) > 2 else ()))
                    images = len(blocks)
                token = llava.config.image_token_id
                layout = layout_of(input_ids, mask, token, images, blocks=blocks)
        self._layout = layout if layout is not None and layout.images else None

    def _receive(self, decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        """Take what the first layer receives at the patches: `v`, in the space that the decoder works in.

        At the decoder's door, not the first layer's: up to transformers 5.17 a layer's hooks run inside its
        checkpoint, where nothing may be saved for backward that the recomputation does not save again.
        """
        if self.intervention.refinement is not None:
            self._received = {name: kwargs.get(name) for name in ("inputs_embeds", "attention_mask")}
        if self._at_hand is not None:
            self._initial, self._at_hand = self._at_hand, None
        elif self._layout is not None:
            initial = kwargs["inputs_embeds"].flatten(0, 1).index_select(0, self._layout.patch)
            # Granite's decoder multiplies what it is given, unless `decoder.fold_scales` has moved that.
            self._initial = initial * getattr(decoder, "embedding_multiplier", 1.0)

    def _accumulate(self, index: int) -> Callable[[nn.Module, tuple, torch.Tensor | tuple], None]:
        @torch.no_grad()
        def hook(layer: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
            if self._layout is None:
                return
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            states = hidden.flatten(0, 1).index_select(0, self._layout.patch)
            if self._target is not None and self._as_they_are:
                self._target.add_(states, alpha=self.weights[index])  # widened on the way
                return
            states = states.to(torch.promote_types(states.dtype, torch.float32))
            if self.intervention.states is not None:
                states = self.intervention.states(index, states)
            self.space = self.space.to(states.device)
            states = self.space.bring(index, states)
            if self._target is None:
                self._target = states.mul_(self.weights[index])
            else:
                self._target.add_(states, alpha=self.weights[index])

        return hook

    @property
    def _as_they_are(self) -> bool:
        return self.space.kind == RAW and self.intervention.states is None

    @torch.no_grad()
    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
    ) -> None:
        index = getattr(module, "layer_idx", None)
        if self._layout is None or index not in self._attending:
            return
        # The vision tower may run under the same name; only the decoder's own modules count.
        if module is not layers_of(self.parts.decoder)[index].self_attn:
            return
        self._attended.append(index)
        text = next((text for mask, text in self._text if mask is attention_mask), None)
        if text is None:  # layers share a mask, or two of them where some have a window
            text = attention.TextRows(self._layout, attention_mask, query)
            self._text = [*self._text[-1:], (attention_mask, text)]
        total = text.attention(query, key, scaling)
        if total is not None:
            self._attention = total if self._attention is None else self._attention.add_(total)

    def _finish(self, llava: LlavaModel | LlavaNextModel, args: tuple, output: object) -> None:
        # From here on nothing counts: a checkpointed layer may run again before the block is closed.
        layout, self._layout = self._layout, None
        if layout is None:
            return
        assert self._initial is not None, "the decoder ran"
        assert self._target is not None, "the decoder's first layer ran"
        if self.importance == "attention":
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
        refinement = Refinement(self._initial, self._target, importance, layout.image, layout.images)
        if self.intervention.refinement is not None:
            given = self._received | {"layout": layout, "rows": self._rows}
            refinement, self._received = self.intervention.refinement(refinement, given), {}
        self.refinement = refinement
        self._initial = self._target = self._attention = None
        self._text = []
