"""Scaled dot-product attention that can tell how much the text looked at each patch.

`output_attentions=True` would switch the decoder to eager attention and keep an `(H, S, S)` map per
layer: 0.84 GB for one caption of a 7B, 4 GB for one instruction row. The function registered here is
sdpa, and beside it, while somebody records, a partial map: text queries only, a few at a time, summed to
one number per patch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from basic_lite.data.layout import Layout

NAME: str = "basic_sdpa"
"""The attention implementation's name in a decoder's configuration."""

_PARTIAL_MAP_ELEMENTS: int = 1 << 24
"""Elements of one partial map: 64 MB in fp32, where an instruction row of a 7B would take 150 MB per
sample."""

_CAUSAL: str = "basic_sdpa_causal"
"""The same function under a name without mask function: transformers then passes no mask."""

Recorder = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor | None, float], None]

# A context variable, not a module attribute: when the forward pass returns it is empty again, so the
# recomputation of a checkpointed layer during backward is plain sdpa. Otherwise importance would be
# counted twice.
_recorder: ContextVar[Recorder | None] = ContextVar("basic_lite_attention_recorder", default=None)


def install(decoder: PreTrainedModel) -> None:
    """Switch the decoder's attention to `basic_sdpa`, which is sdpa until something records.

    The mask function is registered too: without one, transformers passes no mask at all, and left
    padding would be attended to.

    Raises:
        ValueError: If the decoder caps its attention scores, which sdpa cannot do.
    """
    if getattr(decoder.config, "attn_logit_softcapping", None):
        raise ValueError(
            f"{type(decoder).__name__} caps its attention scores (Gemma-2), which "
            "scaled_dot_product_attention cannot do; supported decoders: Llama, Gemma (1), Phi-3, Mistral"
        )
    AttentionInterface.register(NAME, basic_sdpa)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    decoder.set_attn_implementation(NAME)


@contextmanager
def causal_only(decoder: PreTrainedModel, width: int) -> Iterator[None]:
    """Let causality be the only mask inside the block, for a batch that is padded on the right or not at all.

    transformers looks at the values of the padding mask, and without one at those of the positions, to
    see whether it needs a mask; on a GPU each look stops the host until the GPU has caught up. A padding
    mask also keeps sdpa from its fastest kernel. The layers recomputed during backward see the same `None`.

    Args:
        decoder: the language model.
        width: tokens per row; wider than a sliding window, the block changes nothing.
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
    """Call `recorder(module, query, key, attention_mask, scaling)` at every attention inside the block."""
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
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers: sdpa, and a call of the recorder where there is one.

    Args:
        module: the attention module; has `layer_idx`.
        query: `(B, H, S, d)` after rotary embedding.
        key: `(B, H / groups, S, d)`.
        value: like `key`.
        attention_mask: `(B, 1, S, S)` bool, or `None` for causal.
        scaling: factor of the scores; `None` means `d ** -0.5`.
        kwargs: passed on.
    """
    value = alone(value)
    recorder = _recorder.get()
    if recorder is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        recorder(module, query.detach(), key.detach(), attention_mask, scale)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def alone(value: torch.Tensor) -> torch.Tensor:
    """Return a value that backward will keep without what it was cut out of; unchanged if it is whole.

    Phi-3's is a view into query, key and value before rotation: kept, it keeps all three, 2 GB for eight
    captions.

    Args:
        value: `(B, H, S, d)`.
    """
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    if whole or not (torch.is_grad_enabled() and value.requires_grad):
        return value
    return value.transpose(1, 2).contiguous().transpose(1, 2)


@torch.no_grad()
def text_to_patch(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    layout: Layout,
) -> torch.Tensor:
    """Sum over the text tokens after an image of their attention to each patch, averaged over heads.

    ```python
    attention = softmax(scaling * query @ key.mT + mask)            # (B, H, S, S), never built
    result = attention.mean(1)[:, text].sum(1)[patch]
    ```
    Text before the image adds nothing because it cannot see it, so one sum over all text after the row's
    first image serves every image of the row.

    Args:
        query: `(B, H, S, d)`.
        key: `(B, H / groups, S, d)`; query head h uses key head `h // groups`.
        attention_mask: `(B or 1, 1, S, S)`, bool or additive, as the model itself uses it; `None` for causal.
        scaling: factor of the scores.
        layout: positions of patches and text.

    Returns:
        `(N,)` in fp32 (fp64 for fp64 inputs).
    """
    rows, heads, width, size = query.shape
    groups = heads // key.shape[1]
    precision = torch.promote_types(query.dtype, torch.float32)
    total = query.new_zeros((rows, width), dtype=precision)
    step = max(_PARTIAL_MAP_ELEMENTS // (rows * heads * width), 1)
    for start in range(0, layout.text.shape[1], step):
        position = layout.text[:, start : start + step]  # (B, t)
        count = position.shape[1]
        some = query.gather(2, position[:, None, :, None].expand(-1, heads, -1, size))
        some = some.reshape(rows, heads // groups, groups * count, size)  # heads of one key side by side
        scores = (some @ key.mT).mul_(scaling).view(rows, heads, count, width)
        if attention_mask is None:
            allowed = torch.arange(width, device=query.device) <= position[:, :, None]
        else:
            mask = attention_mask[:, 0].expand(rows, -1, -1)
            allowed = mask.gather(1, position[:, :, None].expand(-1, -1, mask.shape[-1]))
        if allowed.dtype == torch.bool:
            # The lowest number, not -inf: a padding row may attend to nothing, and NaN times its weight
            # 0 is NaN.
            scores = scores.masked_fill_(~allowed[:, None], torch.finfo(scores.dtype).min)
        else:
            scores = scores + allowed[:, None]
        attention = scores.softmax(-1, dtype=precision)
        weight = layout.is_text[:, start : start + step].to(precision) / heads
        weight = weight[:, None].expand(-1, heads, -1).reshape(rows, 1, heads * count)
        total += (weight @ attention.view(rows, heads * count, width)).squeeze(1)
    return total.flatten()[layout.patch]
