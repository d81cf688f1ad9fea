"""The decoder's last layer for the rows that predict something: the others only lend keys and values.

Its query, output projection, MLP and final norm are 2 % of a 7B's decoder and 5 % of Gemma-2B's.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import nn

from basic_lite.method.attention import alone
from basic_lite.models.softcap import attend

KEYWORD: str = "predicting_rows"
"""Name under which `forward` hands the rows through the decoder to its last layer."""

_FAMILIES: frozenset[str] = frozenset(
    f"transformers.models.{name.lower()}.modeling_{name.lower()}.{name}DecoderLayer"
    for name in "Llama Gemma Mistral Phi3 Qwen2 Qwen3 SmolLM3 Gemma2 Gemma3 Olmo2 Olmo3 Granite".split()
)
"""Classes that were read: norms before attention and MLP, after them, or both. GLM-4 and Cohere 2
rotate neighbouring dimensions, Cohere's attention and MLP stand side by side, and Ministral 3 scales its
queries by position: theirs run whole.
"""


def prepare(decoder: Any, watched_layers: int) -> bool:
    """Let the last layer take `predicting_rows=(B, T)`; without that keyword it stays what it was.

    Returns `False`, and changes nothing, where it is watched, of another kind, or has dropout on its rows.
    """
    layers = cast(nn.ModuleList, decoder.layers)
    layer = layers[-1]
    if watched_layers >= len(layers) or not _is_exact(layer):
        return False
    if not isinstance(layer, _ChosenRows):
        # A class, not a method on the instance: checkpointing is the class's business, in two different
        # ways before and after transformers 5.2x, and recomputing must run the same code.
        layer.__class__ = _with_chosen_rows(type(layer))
    return True


def _is_exact(layer: Any) -> bool:
    kind = type(layer)
    kind = kind.__mro__[2] if issubclass(kind, _ChosenRows) else kind
    if f"{kind.__module__}.{kind.__qualname__}" not in _FAMILIES:
        return False
    attention: Any = layer.self_attn
    drops = [getattr(layer, name, None) for name in ("resid_attn_dropout", "resid_mlp_dropout")]
    return not attention.attention_dropout and not any(drop.p for drop in drops if drop is not None)


@cache
def _with_chosen_rows(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_ChosenRows, kind), {"__module__": __name__})


class _ChosenRows:
    """In front of a decoder layer's own class, which has these modules."""

    self_attn: Any
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        predicting_rows: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return `(B, T, D)` for `predicting_rows` `(B, T)`, or what the layer itself returns, `(B, S, D)`.

        The mask is `(B, 1, S, S)` bool, or `None` for causal; `position_embeddings` cosine and sine `(1 or B,
        S, d)`.
        """
        if predicting_rows is None:
            return super().forward(  # pyright: ignore[reportAttributeAccessIssue] (of the layer's own class)
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        attention, rows = self.self_attn, predicting_rows
        normed_after = hasattr(self, "post_feedforward_layernorm")  # Gemma 2, 3 and OLMo norm what is added
        normed = self.input_layernorm(hidden_states) if hasattr(self, "input_layernorm") else hidden_states
        query, key, value = _projections(attention, normed, rows)
        if getattr(attention, "use_rope", True):  # SmolLM3 leaves it out in every fourth layer
            assert position_embeddings is not None, "a decoder hands them to all its layers"
            cosine, sine = (part.expand(len(normed), -1, -1) for part in position_embeddings)
            query = _rotate(query, _rows(cosine, rows), _rows(sine, rows))
            key = _rotate(key, cosine, sine)
        mask = _visible(attention_mask, rows, normed.shape[1])
        cap = getattr(attention, "attn_logit_softcapping", None)
        seen, _ = attend(attention, query, key, alone(value), mask, scaling=attention.scaling, softcap=cap)
        added, factor = attention.o_proj(seen.flatten(2)), getattr(self, "residual_multiplier", 1.0)
        added = self.post_attention_layernorm(added) if normed_after else added
        hidden = _rows(hidden_states, rows) + (added if factor == 1.0 else added * factor)
        if normed_after:
            before = getattr(self, "pre_feedforward_layernorm", nn.Identity())
            return hidden + self.post_feedforward_layernorm(self.mlp(before(hidden)))
        added = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + (added if factor == 1.0 else added * factor)


def _rows(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`states[b, positions[b]]`: `(B, S, D)` at `(B, T)`."""
    width = states.shape[1]
    flat = positions + torch.arange(len(states), device=states.device)[:, None] * width
    chosen = states.flatten(0, 1).index_select(0, flat.flatten())
    return chosen.view(*positions.shape, states.shape[-1])


def _projections(
    attention: Any, normed: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return query `(B, H, T, d)` of the chosen rows, key and value `(B, H / groups, S, d)` of all.

    Phi-3 packs the three into one matrix, which is applied whole: 0.2 % of a caption's operations too many.
    """
    if hasattr(attention, "qkv_proj"):
        keys = attention.config.num_key_value_heads * attention.head_dim
        packed = attention.qkv_proj(normed)
        query, key, value = packed.split([packed.shape[-1] - 2 * keys, keys, keys], dim=-1)
        query = _rows(query, positions)
    else:
        query = attention.q_proj(_rows(normed, positions))
        key, value = attention.k_proj(normed), attention.v_proj(normed)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    parts: list[torch.Tensor] = []
    for part, norm in zip((query, key, value), (*norms, None), strict=True):
        whole = norm is not None and norm.weight.numel() == part.shape[-1]  # OLMo: over all heads at once
        part = norm(part) if norm is not None and whole else part
        part = part.unflatten(2, (-1, attention.head_dim))
        parts.append((part if norm is None or whole else norm(part)).transpose(1, 2))
    return parts[0], parts[1], parts[2]


def _rotate(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of `(B, H, T, d)` by `(B, T, r)`; the dimensions after the first r stay (Phi-3)."""
    turned, rest = states[..., : cosine.shape[-1]], states[..., cosine.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _visible(mask: torch.Tensor | None, positions: torch.Tensor, width: int) -> torch.Tensor:
    """The rows of the attention mask that belong to the chosen queries: `(B, 1, T, S)`."""
    if mask is None:
        return (torch.arange(width, device=positions.device) <= positions[:, :, None])[:, None]
    mask = mask[:, 0].expand(len(positions), -1, -1)
    return mask.gather(1, positions[:, :, None].expand(-1, -1, mask.shape[-1]))[:, None]
