"""A decoder layer's training pass in as few operations as it takes, for the classes that are known here.

What a frozen layer of transformers issues to the host is mostly small: a norm is nine operations and its
backward pass ten more, the rotary embedding eighteen, each 4-bit matrix is dequantised by itself. Here a
layer is nine autograd functions: norm, query-key-value, rotary, attention, output, norm, gate-up, gate,
down.
Modules, names, hooks of the layer and checkpointing stay; in evaluation, with a cache, and whenever something
is not as expected, the class's own code runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.models.adapters import Base, Group, Scales, bases_of

FAMILIES: dict[str, str] = {
    f"transformers.models.{folder}.modeling_{folder}.{name}DecoderLayer": family
    for family, folder, name in (
        ("llama", "llama", "Llama"),
        ("mistral", "mistral", "Mistral"),
        ("qwen2", "qwen2", "Qwen2"),
        ("gemma", "gemma", "Gemma"),
        ("phi3", "phi3", "Phi3"),
    )
}
"""Classes that were read, and the family (`model_type`) of each: a norm in front of attention and of a gated
MLP, rotary embedding of whole heads, no norms of heads, no factors."""

_PROJECTIONS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("q_proj", "k_proj", "v_proj"), ("qkv_proj",)),
    (("o_proj",),),
    (("gate_proj", "up_proj"), ("gate_up_proj",)),
    (("down_proj",),),
)
_SILU, _GELU = ("SiLU", "SiLUActivation"), ("GELUTanh", "PytorchGELUTanh")


@dataclass
class Pieces:
    """What a layer is made of.

    Attributes:
        groups: query-key-value, output, gate-up, down.
        adapted: PEFT's layers among them.
        norms: before attention and before the MLP.
        rotary: of query and key, each `(B, H, S, d)`, by cosine and sine.
        gate: of gate and up.
        sizes: of query, key and value where one matrix gives all three.
    """

    groups: tuple[Group, Group, Group, Group]
    adapted: list[Any]
    norms: tuple[Callable, Callable]
    rotary: Callable
    gate: Callable
    sizes: list[int] | None


def streamline(decoder: Any, fused: bool = False) -> int:
    """Let a decoder's layers run in few operations while they train; the last one stays as it is.

    Call it when adapters have been grouped and Liger's modules are in. The last layer may run for chosen
    rows alone, which is another module's business.

    Args:
        decoder: the language model, with or without adapters inside, its norms frozen.
        fused: Liger's norms, rotary embedding and gates are in, and are used.

    Returns:
        How many layers do.
    """
    scales, count = Scales(), 0
    for layer in decoder.layers[:-1]:
        pieces = _pieces_of(layer, scales, fused)
        if pieces is not None and not isinstance(layer, _Streamlined):
            # A class, not a method: checkpointing is the class's business (see `last_layer`).
            layer.__class__ = _streamlined(type(layer))
        if isinstance(layer, _Streamlined):  # a model may be trained twice
            layer._pieces = pieces
        count += pieces is not None
    return count


def as_published(decoder: Any) -> None:
    """Let the layers' own classes run again, as for a comparison with them."""
    for layer in decoder.layers:
        if isinstance(layer, _Streamlined):
            layer.__class__ = type(layer).__mro__[2]
            del layer._pieces


def keep_dequantised(decoder: Any, count: int, dtype: torch.dtype) -> int:
    """Hold the weights of the first layers dequantised beside the packed ones: the same numbers, sooner.

    The first, because those recompute, and dequantise three times in a step.

    Args:
        decoder: whose layers were streamlined.
        count: how many layers, at most.
        dtype: of the products.

    Returns:
        How many are.
    """
    layers = [layer for layer in decoder.layers if getattr(layer, "_pieces", None) is not None][:count]
    for layer in layers:
        for group in layer._pieces.groups:
            group.base.keep(dtype)
    return len(layers)


def _pieces_of(layer: Any, scales: Scales, fused: bool) -> Pieces | None:
    """Return a layer's pieces; `None` where something is not as the functions below have it."""
    kind = type(layer)
    kind = kind.__mro__[2] if issubclass(kind, _Streamlined) else kind
    if f"{kind.__module__}.{kind.__qualname__}" not in FAMILIES:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    drops = [getattr(layer, name, None) for name in ("resid_attn_dropout", "resid_mlp_dropout")]
    if attention.attention_dropout or any(drop.p for drop in drops if drop is not None):
        return None
    norms = layer.input_layernorm, layer.post_attention_layernorm
    groups, adapted = _groups_of(attention, mlp, scales)
    activation = type(getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)).__name__
    if groups is None or any(norm.weight.requires_grad for norm in norms):
        return None
    if activation not in (*_SILU, *_GELU):
        return None
    if fused:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        gate = LigerSiLUMulFunction.apply if activation in _SILU else LigerGELUMulFunction.apply
        functions: list[Callable] = [_with_residual(norm) for norm in norms]
        rotary = sys.modules[kind.__module__].apply_rotary_pos_emb
    else:
        gate, rotary = (_gated_by_silu if activation in _SILU else _gated_by_gelu), rotate
        functions = [_norm_of(norm, FAMILIES[f"{kind.__module__}.{kind.__qualname__}"]) for norm in norms]
    sizes = None
    if hasattr(attention, "qkv_proj"):
        keys = attention.num_key_value_heads * attention.head_dim
        sizes = [attention.qkv_proj.out_features - 2 * keys, keys, keys]
    return Pieces(groups, adapted, (functions[0], functions[1]), rotary, gate, sizes)


def _groups_of(attention: Any, mlp: Any, scales: Scales) -> tuple[Any, list[Any]]:
    """Return the four groups and the adapted layers in them; `None` where they cannot run as groups."""
    members: list[list[Any]] = []
    for choices in _PROJECTIONS:
        for names in choices:
            modules = [getattr(attention, name, None) or getattr(mlp, name, None) for name in names]
            if all(modules):
                members.append(modules)
                break
    if len(members) < len(_PROJECTIONS):
        return None, []
    groups: list[Group | None] = []
    for modules in members:
        if all(isinstance(module, LoraLayer) for module in modules):
            known: list[Any] = [getattr(module, "_group", (None, 0))[0] for module in modules]
            if known[0] is None or known[0].layers != modules:
                return None, []
            groups.append(known[0])
        elif all(type(module) is nn.Linear or isinstance(module, Linear4bit) for module in modules):
            if any(parameter.requires_grad for module in modules for parameter in module.parameters()):
                return None, []
            groups.append(None)
        else:
            return None, []
    frozen = [modules for modules, group in zip(members, groups, strict=True) if group is None]
    bases: list[Base] = bases_of(frozen, scales)
    made = iter([Group(modules, base) for modules, base in zip(frozen, bases, strict=True)])
    whole = tuple(next(made) if group is None else group for group in groups)
    adapted = [layer for group in whole if group.pairs for layer in group.layers]
    return whole, adapted


@cache
def _streamlined(kind: type[nn.Module]) -> type[Any]:
    return type(kind.__name__, (_Streamlined, kind), {"__module__": __name__})


class _Streamlined:
    """In front of a decoder layer's own class, which has these modules."""

    self_attn: Any
    training: bool
    _pieces: Pieces | None

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return `(B, S, D)`, as the layer's own class does."""
        pieces, attention, x = self._pieces, self.self_attn, hidden_states
        kind, name = x.device.type, attention.config._attn_implementation
        narrowed = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if narrowed else x.dtype
        if (
            pieces is None
            or not self.training
            or not torch.is_grad_enabled()
            or position_embeddings is None
            or position_embeddings[0].shape[-1] != attention.head_dim
            or "sdpa" not in name
            or (kwargs.get("cache") or kwargs.get("past_key_values")) is not None
            or any(layer.disable_adapters or layer.merged for layer in pieces.adapted)
            # PEFT widens the input then, which one product cannot do.
            or (pieces.adapted and not narrowed and dtype in (torch.bfloat16, torch.float16))
        ):
            return super().forward(  # pyright: ignore[reportAttributeAccessIssue] (of the layer's own class)
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        joined, output, gate_up, down = pieces.groups
        before, behind = pieces.norms
        attend = ALL_ATTENTION_FUNCTIONS[name]
        with torch.autocast(kind, enabled=False):
            normed, x = before(x)
            parts: Sequence[torch.Tensor] = joined.together(normed, dtype)
            if pieces.sizes is not None:
                parts = parts[0].split(pieces.sizes, dim=-1)
            query, key, value = (
                part.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for part in parts
            )
            query, key = pieces.rotary(query, key, *position_embeddings)
            seen, _ = attend(
                attention, query, key, value, attention_mask, dropout=0.0, scaling=attention.scaling, **kwargs
            )
            (x,) = output.together(seen.flatten(2), dtype, residual=x)
            normed, x = behind(x)
            parts = gate_up.together(normed, dtype)
            gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
            (x,) = down.together(pieces.gate(gate, up), dtype, residual=x)
        return x


def _with_residual(norm: nn.Module) -> Callable:
    return lambda x: (norm(x), x)


def _norm_of(norm: Any, family: str) -> Callable:
    """Return a frozen norm as a function that gives back the residual too."""
    weight = norm.weight.detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    weight = 1 + weight if family == "gemma" else weight
    epsilon = weight.new_full((), norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)
    return lambda x: _Norm.apply(x, weight, epsilon)


class _Norm(Function):
    """`x / sqrt(mean(x^2) + epsilon) * weight` in fp32, and `x` itself for the residual.

    Both gradients come back to one place, so they are added in the last of its products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=weight.dtype)
        root = torch.addcmul(epsilon, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        normed = torch.mul(x * root, weight, out=torch.empty_like(x))
        ctx.save_for_backward(x, root)
        ctx.weight = weight
        return normed, x.view_as(x)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        x, root = ctx.saved_tensors
        unit, scaled = x * root, upstream * ctx.weight
        along = (unit * scaled).sum(-1, keepdim=True)
        scaled.addcmul_(unit, along, value=-1 / x.shape[-1])
        return torch.addcmul(residual, scaled, root, out=torch.empty_like(x)), None, None


def rotate(
    query: torch.Tensor, key: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rotary embedding of query and key, `(B, H, S, d)`, by `(1 or B, S, d)`."""
    return _Rotated.apply(query, key, cosine[:, None], sine[:, None])


class _Rotated(Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        half = sine.shape[-1] // 2
        ctx.by = cosine, sine[..., :half], sine[..., half:]
        return _turned(query, *ctx.by, -1), _turned(key, *ctx.by, -1)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        cosine, first, second = ctx.by
        query, key = (_turned(gradient, cosine, second, first, 1) for gradient in upstream)
        return query, key, None, None


def _turned(
    x: torch.Tensor, cosine: torch.Tensor, first: torch.Tensor, second: torch.Tensor, sign: int
) -> torch.Tensor:
    """Return `(x1 cos + sign x2 first, x2 cos - sign x1 second)` of the halves of `(B, H, S, d)`."""
    half = x.shape[-1] // 2
    turned = torch.mul(x, cosine, out=torch.empty_like(x))
    turned[..., :half].addcmul_(x[..., half:], first, value=sign)
    turned[..., half:].addcmul_(x[..., :half], second, value=-sign)
    return turned


def _gated_by_silu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return _Gated.apply(gate, up, F.silu, torch.ops.aten.silu_backward.default, {})


def _gated_by_gelu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return _Gated.apply(gate, up, F.gelu, torch.ops.aten.gelu_backward.default, {"approximate": "tanh"})


class _Gated(Function):
    """`activation(gate) * up`; the activation is computed again in backward instead of being kept."""

    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: Callable, back: Callable, how: dict
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.functions = activation, back, how
        return activation(gate, **how).mul_(up)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        activation, back, how = ctx.functions
        to_up = activation(gate, **how).mul_(upstream)
        return back(upstream * up, gate, **how), to_up, None, None, None
