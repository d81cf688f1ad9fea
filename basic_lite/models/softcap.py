"""Soft caps, Gemma 2's: attention scores and logits that bend towards a limit, `cap * tanh(x / cap)`.

transformers' sdpa refuses capped scores, its flex attention has no backward pass on a CPU, and its eager
attention keeps three maps per layer. Here the map exists for some queries at a time, in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from basic_lite.models import zoo
from basic_lite.models.capped_map import queries_per_piece

NAME: str = "soft_capped"
"""The attention implementation's name. transformers looks for "sdpa" in it, and refuses that to Gemma 2."""


def caps_attention(config: Any) -> bool:
    """Whether a decoder's class knows capped scores, and transformers therefore refuses it sdpa."""
    family = zoo.FAMILIES.get(config.model_type)
    return family is not None and family.attention_cap is not None


def implementation(config: Any) -> str:
    """Return the attention implementation that a decoder is loaded with, and register it."""
    return register(NAME, attend) if caps_attention(config) else "sdpa"


def register(name: str, attention: Any) -> str:
    """Give transformers an attention function that takes sdpa's masks; returns its name."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers: sdpa, or where scores are capped, the same with capped scores.

    Args:
        module: the attention module.
        query: `(B, H, T, d)` after rotary embedding.
        key: `(B, H / groups, S, d)`.
        value: like `key`.
        attention_mask: `(B or 1, 1, T, S)`, bool or additive; `None` for causal.
        scaling: factor of the scores; `None` means `d ** -0.5`.
        softcap: of the scores.
        kwargs: passed on to sdpa.

    Returns `(B, T, H, d)`, and no map. Raises ValueError if capped attention is to have dropout.
    """
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("dropout"):
        raise ValueError("attention with a soft cap has no dropout here: set attention_dropout to 0")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    device = query.device.type
    if torch.is_autocast_enabled(device):  # sdpa narrows what it is given, too
        narrow = torch.get_autocast_dtype(device)
        query, key, value = query.to(narrow), key.to(narrow), value.to(narrow)
    seen: Any = _CappedAttention.apply(query, key, value, attention_mask, scale, softcap)
    return seen, None


class _Pieces:
    """The queries of a batch, some at a time, with the heads that share a key side by side."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        cap: float,
    ) -> None:
        self.rows, self.heads, self.count, _ = query.shape
        self.sides, self.width = key.shape[1:3]
        self.query, self.mask, self.scaling, self.cap = query, mask, scaling, cap
        self.precision = torch.promote_types(query.dtype, torch.float32)
        # A GPU multiplies narrow factors with wide sums; elsewhere the factors are widened, once.
        narrow = query.dtype != self.precision
        self._wide_sums = query.is_cuda and narrow and torch.__version__ >= "2.8"
        self.factor = query.dtype if self._wide_sums else self.precision
        self.key, self.value = (part.flatten(0, 1).to(self.factor) for part in (key, value))

    def __iter__(self) -> Iterator[tuple[slice, int]]:
        """Yield queries, and how many keys, from the first one on, they can see at most."""
        step = queries_per_piece(self.rows, self.heads, self.count, self.width)
        for start in range(0, self.count, step):
            stop = min(start + step, self.count)
            # Without a mask the last query sees all keys, as in a prompt or after one.
            yield slice(start, stop), self.width if self.mask is not None else self.width - self.count + stop

    def grouped(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(B * sides, groups * t, d)` of `(B, H, t, d)`."""
        return states.to(self.factor).reshape(self.rows * self.sides, -1, states.shape[-1])

    def product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if self._wide_sums:
            return torch.bmm(left.to(self.factor), right, out_dtype=self.precision)
        return torch.bmm(left, right)

    def map(self, queries: slice, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `tanh(scores / cap)` and the attention of some queries: `(B * sides, groups * t, keys)`."""
        some = self.grouped(self.query[:, :, queries])
        bent = self.product(some, self.key[:, :keys].mT).mul_(self.scaling / self.cap).tanh_()
        scores = (bent * self.cap).view(self.rows, self.heads, -1, keys)
        lowest = torch.finfo(scores.dtype).min  # not -inf: a padding row may see nothing
        if self.mask is None:
            places = torch.arange(self.width - self.count, self.width, device=bent.device)[queries]
            hidden = torch.arange(keys, device=bent.device) > places[:, None]
            scores.masked_fill_(hidden, lowest)
        elif self.mask.dtype == torch.bool:
            scores.masked_fill_(~self.mask[:, :, queries, :keys], lowest)
        else:
            scores += self.mask[:, :, queries, :keys]
        return bent, scores.softmax(-1).view(bent.shape)


class _CappedAttention(Function):
    """Attention whose map is made again in backward; query, key and value are kept, and nothing else.

    `how` is the scaling and the cap.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        *how: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.how = how
        rows, heads, count, size = query.shape
        seen = query.new_empty(rows, count, heads, size)
        with torch.autocast(query.device.type, enabled=False):
            pieces = _Pieces(query, key, value, mask, *how)
            for queries, keys in pieces:
                _, weights = pieces.map(queries, keys)
                some = torch.bmm(weights.to(pieces.factor), pieces.value[:, :keys])
                seen[:, queries] = some.view(rows, heads, -1, size).transpose(1, 2)
        return seen

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, mask = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            pieces = _Pieces(query, key, value, mask, *ctx.how)
            to_query = torch.empty_like(query)
            to_key, to_value = (pieces.key.new_zeros(pieces.key.shape, dtype=pieces.precision) for _ in "kv")
            for queries, keys in pieces:
                bent, weights = pieces.map(queries, keys)
                gradient = pieces.grouped(upstream[:, queries].transpose(1, 2))
                to_value[:, :keys] += pieces.product(weights.mT, gradient)
                inner = pieces.product(gradient, pieces.value[:, :keys].mT)
                inner -= (inner * weights).sum(-1, keepdim=True)
                # d tanh = 1 - tanh^2; the cap that multiplies it and the cap that divides cancel.
                inner.mul_(weights).mul_(bent.square_().neg_().add_(1)).mul_(pieces.scaling)
                some = torch.bmm(inner.to(pieces.factor), pieces.key[:, :keys])
                to_query[:, :, queries] = some.view(*query.shape[:2], -1, query.shape[-1])
                to_key[:, :keys] += pieces.product(inner.mT, pieces.grouped(query[:, :, queries]))
        to_key, to_value = (made.view(key.shape).to(key.dtype) for made in (to_key, to_value))
        return to_query, to_key, to_value, None, None, None


class CappedHead(nn.Linear):
    """An output projection whose logits are capped, in fp32: there is a step of 0.125 in bf16 below 30."""

    cap: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `(..., V)` of states `(..., D)`, in fp32 or fp64."""
        logits = super().forward(input)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.cap * torch.tanh(wide / self.cap)


def logit_cap(config: Any) -> float | None:
    """Return what the logits of a decoder's own class are capped by; `None` where they are not."""
    family = zoo.FAMILIES.get(config.model_type)
    return None if family is None or family.logit_cap is None else getattr(config, family.logit_cap, None)


def cap_logits(model: Any) -> bool:
    """Let the head of a decoder, or of a LLaVA around it, cap its logits: LLaVA's class does not.

    Returns whether the decoder's class caps them.
    """
    cap = logit_cap(getattr(model.config, "text_config", model.config))
    if cap is not None:
        model.lm_head.__class__ = CappedHead
        model.lm_head.cap = cap
    return cap is not None
