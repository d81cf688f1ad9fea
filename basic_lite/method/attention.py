"""Scaled dot-product attention that can tell how much the text looked at each patch.

`output_attentions=True` would switch the decoder to eager attention and keep an `(H, S, S)` map per layer:
0.84 GB for one caption of a 7B, 4 GB for one instruction row. The function registered here is sdpa; while
somebody records, it also makes partial maps: text queries only, a few at a time, summed at once to one number
per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from basic_lite.data.layout import Layout
from basic_lite.models import softcap as softcaps
from basic_lite.models.parts import layers_of

NAME: str = "basic_sdpa"
"""The attention implementation's name in a decoder's configuration."""

CAPPED: str = f"basic_{softcaps.NAME}"
"""The same of a decoder that transformers' sdpa refuses, because it caps its scores."""

_PARTIAL_MAP_ELEMENTS: int = 1 << 24
"""Elements of one partial map: 64 MB in fp32, where an instruction row of a 7B would take 150 MB per
sample."""

_CAUSAL: str = "basic_sdpa_causal"
"""The same function under a name without mask function: transformers then passes no mask."""

Recorder = Callable[
    [torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor | None, float, float | None], None
]

# A context variable, not a module attribute: when the forward pass returns it is empty again, so the
# recomputation of a checkpointed layer during backward is plain sdpa. Otherwise importance would be
# counted twice.
_recorder: ContextVar[Recorder | None] = ContextVar("basic_lite_attention_recorder", default=None)


def install(decoder: PreTrainedModel) -> None:
    """Switch the decoder's attention to `basic_sdpa`, which is sdpa until something records.

    The mask function is registered too: without one, transformers passes no mask at all, and left
    padding would be attended to. Decoders that cap their scores get it under a name without "sdpa".
    """
    name = CAPPED if softcaps.caps_attention(decoder.config) else NAME
    decoder.set_attn_implementation(softcaps.register(name, basic_sdpa))


def attending_layers(decoder: PreTrainedModel, k: int) -> list[int]:
    """Return the indices of those of layers 1..k whose attention says which patches the text looks at.

    Hybrid decoders attend in some layers alone: Qwen3.5 in every fourth, with a linear recurrence in between
    that has no weights per patch. Raises ValueError, which names the remedy, if none of the k attends.
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


@contextmanager
def causal_only(decoder: PreTrainedModel, width: int) -> Iterator[None]:
    """Let causality be the only mask inside the block, for a batch that is padded on the right or not at all.

    transformers looks at the values of the padding mask, and without one at those of the positions, to see
    whether it needs a mask; on a GPU each look stops the host until the GPU has caught up. A padding mask
    also keeps sdpa from its fastest kernel. The layers recomputed during backward see the same `None`. For a
    batch wider than a sliding window (`width` tokens per row), the block changes nothing.
    """
    window = getattr(decoder.config, "sliding_window", None)
    if window is not None and width > window:
        yield
        return
    AttentionInterface.register(_CAUSAL, basic_sdpa)
    name = decoder.config._attn_implementation
    decoder.config._attn_implementation = _CAUSAL
    try:
        yield
    finally:
        decoder.config._attn_implementation = name


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Call `recorder(module, query, key, mask, scaling, softcap)` at every attention inside the block."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def basic_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers: `softcap.attend`, and a call of the recorder where there is one."""
    value = alone(value, query, key)
    recorder = _recorder.get()
    if recorder is not None:
        scaling = kwargs.get("scaling")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        recorder(module, query.detach(), key.detach(), attention_mask, scale, kwargs.get("softcap"))
    return softcaps.attend(module, query, key, value, attention_mask, **kwargs)


def alone(value: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
    """Return `value` `(B, H, S, d)` so that backward keeps only it, not what it was cut out of.

    Phi-3's is a view into query, key and value before rotation: kept, it keeps all three, 2 GB for eight
    captions. Tensors `beside` it are kept anyway, and may be the rest of what it was cut out of. A whole
    value is returned unchanged.
    """
    if not (torch.is_grad_enabled() and value.requires_grad):
        return value
    memory = value.untyped_storage()
    needed = value.numel() * value.element_size()
    if memory.nbytes() != needed:
        for other in beside:
            if other.untyped_storage()._cdata == memory._cdata:
                needed += other.numel() * other.element_size()
    return value if memory.nbytes() == needed else value.transpose(1, 2).contiguous().transpose(1, 2)


class TextRows:
    """The text's rows of a batch's attention maps: where they are and what they may not see.

    ```python
    attention = softmax(cap(scaling * query @ key.mT) + mask)       # (B, H, S, S), never built
    result = attention.mean(1)[:, text].sum(1)
    ```
    Text before an image adds nothing to its patches because it cannot see them, so one sum over all text
    after the row's first image serves every image of the row. Prepared once per forward pass and used by
    every supervised layer: a layer itself costs five operations.
    """

    def __init__(
        self,
        layout: Layout,
        # `(B or 1, 1, S, S)`, bool or additive, as the model uses it; `None`: causal
        attention_mask: torch.Tensor | None,
        query: torch.Tensor,  # `(B, H, S, d)` of any layer: for its shape, dtype and device
    ) -> None:
        rows, heads, width, _ = query.shape
        self.precision = torch.promote_types(query.dtype, torch.float32)
        self._pieces: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        step = max(_PARTIAL_MAP_ELEMENTS // (rows * heads * width), 1)
        for start in range(0, layout.text.shape[1], step):
            position = layout.text[:, start : start + step]  # (B, t)
            if attention_mask is None:
                hidden = torch.arange(width, device=query.device) > position[:, :, None]
            else:
                mask = attention_mask[:, 0].expand(rows, -1, -1)
                hidden = mask.gather(1, position[:, :, None].expand(-1, -1, mask.shape[-1]))
                hidden = ~hidden if hidden.dtype == torch.bool else hidden
            weight = layout.is_text[:, start : start + step].to(self.precision) / heads
            weight = weight[:, None].expand(-1, heads, -1).reshape(rows, 1, -1)
            self._pieces.append((position, hidden[:, None], weight))

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, scaling: float, cap: float | None = None
    ) -> torch.Tensor | None:
        """Return what the text attends to at each position, summed over text and averaged over heads.

        Args:
            query: `(B, H, S, d)`.
            key: `(B, H / groups, S, d)`; query head h uses key head `h // groups`.
            scaling: factor of the scores.
            cap: soft cap of the scores; `None` for none.

        Returns:
            `(B, 1, S)` in fp32 (fp64 for fp64 inputs); `None` where there is no text.
        """
        rows, heads, width, size = query.shape
        sides = key.shape[1]
        across = key.reshape(rows * sides, width, size).mT
        total = None
        with torch.autocast(query.device.type, enabled=False):  # it would narrow the maps for their sum
            for position, hidden, weight in self._pieces:
                count = position.shape[1]
                some = query.gather(2, position[:, None, :, None].expand(-1, heads, -1, size))
                some = some.view(rows * sides, -1, size)  # heads of one key side by side
                scores = torch.baddbmm(some.new_empty(()), some, across, beta=0, alpha=scaling)
                scores = scores.view(rows, heads, count, width)
                if cap is not None:
                    scores = scores.to(self.precision).div_(cap).tanh_().mul_(cap)
                if hidden.dtype == torch.bool:
                    # Not -inf: a padding row may attend to nothing, and NaN times its weight 0 is NaN.
                    scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
                else:
                    scores = scores + hidden
                maps = scores.softmax(-1, dtype=self.precision).view(rows, heads * count, width)
                total = weight @ maps if total is None else total.baddbmm_(weight, maps)
        return total
