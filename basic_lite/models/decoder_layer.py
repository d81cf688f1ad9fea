"""A decoder layer's training pass in as few operations as it takes, for the classes that are known here.

What a layer of transformers issues to the host is mostly small: a norm is nine operations and its backward
pass ten more, the rotary embedding eighteen, each 4-bit matrix is dequantised by itself, and every module,
autograd function and checkpoint is Python of its own. Here a layer is two autograd functions with attention
between them. One that runs again in backward is a single function instead of a checkpoint: it keeps its input
and the number that its masks are drawn from, and leaves out what backward does not need.

Modules, names and the layer's own hooks stay; in evaluation, with a cache, with hooks on a module inside, and
whenever something is not as expected, the class's own code runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.models.adapters import (
    AdapterGradients,
    Group,
    Kept,
    Seeds,
    add_gradients,
    hooks_inside,
    in_front,
    own_class,
    ungroup_adapters,
)
from basic_lite.models.frozen import Scales, frozen_weights_of

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

_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
_JOINED = (("qkv_proj",), ("o_proj",), ("gate_up_proj",), ("down_proj",))
# The last ones are Liger's MLPs, which a later model of a process is built of once an earlier one was fused.
_SILU = ("SiLU", "SiLUActivation", "LigerSwiGLUMLP", "LigerPhi3SwiGLUMLP")
_GELU = ("GELUTanh", "PytorchGELUTanh", "LigerGEGLUMLP")


@dataclass
class Pieces:
    groups: list[Group]  # query-key-value, output, gate-up, down
    adapted: list[Any]  # PEFT's layers among them
    seeds: Seeds | None  # of the adapters' masks; `None` without dropout
    norms: tuple[Any, Any]  # before attention and before the MLP
    rotary: Any  # of query and key
    gate: Any  # of gate and up
    sizes: list[int]  # of query, key and value in the output of query-key-value
    head: int  # dimensions of one
    # Dictionaries of the hooks of all modules inside; empty as long as nobody puts any there
    hooks: list[dict]


def streamline(decoder: Any, fused: bool = False) -> int:
    """Let a decoder's layers, but for the last, train in few operations; returns how many layers do.

    Call it when adapters have been grouped and, for `fused`, Liger's modules are in; norms must be frozen.
    The last layer may run for chosen rows alone, which is another module's business.
    """
    scales, rotary, count = Scales(), _FusedRotary() if fused else _Rotary(), 0
    for layer in decoder.layers[:-1]:
        pieces = _pieces_of(layer, scales, rotary, fused)
        if pieces is not None:
            # A class, not a method: checkpointing is the class's business (see `last_layer`).
            layer.__class__ = in_front(_Streamlined, own_class(layer, _Streamlined))
            count += 1
        if isinstance(layer, _Streamlined):  # a model may be trained twice
            layer._pieces = pieces
    return count


def as_published(decoder: Any) -> None:
    """Let transformers' and PEFT's own classes run again, as for a comparison with them."""
    ungroup_adapters(decoder.layers)
    for layer in decoder.layers:
        if hasattr(layer, "_pieces"):
            layer.__class__ = own_class(layer, _Streamlined)
            del layer._pieces


def keep_dequantised(decoder: Any, count: int, dtype: torch.dtype) -> int:
    """Hold up to `count` layers' weights in `dtype` beside the packed ones; returns how many layers do.

    The numbers are the same. The first layers, because those recompute, and dequantise three times in a step.
    """
    layers = [layer for layer in decoder.layers if getattr(layer, "_pieces", None) is not None][:count]
    for layer in layers:
        for group in layer._pieces.groups:
            group.base.keep(dtype)
    return len(layers)


def _pieces_of(layer: Any, scales: Scales, rotary: Any, fused: bool) -> Pieces | None:
    """Return a layer's pieces; `None` where something is not as the functions below have it."""
    kind = own_class(layer, _Streamlined)
    family = FAMILIES.get(f"{kind.__module__}.{kind.__qualname__}")
    if family is None:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    norms = layer.input_layernorm, layer.post_attention_layernorm
    drops = [getattr(layer, name, None) for name in ("resid_attn_dropout", "resid_mlp_dropout")]
    activation = type(getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None) or mlp).__name__
    groups = _groups_of(attention, mlp, scales)
    if (
        groups is None
        or attention.attention_dropout
        or any(drop.p for drop in drops if drop is not None)
        or any(norm.weight.requires_grad for norm in norms)
        or activation not in (*_SILU, *_GELU)
    ):
        return None
    if fused:
        from liger_kernel.ops import LigerGELUMulFunction, LigerSiLUMulFunction

        gate: Any = _FusedGate(LigerSiLUMulFunction if activation in _SILU else LigerGELUMulFunction)
        functions: list[Any] = [_FusedNorm(norm) for norm in norms]
    else:
        gate = _Gate(activation in _SILU)
        functions = [_Norm(norm, family == "gemma") for norm in norms]
    sizes = list(groups[0].base.sizes)
    if len(sizes) == 1:  # one matrix gives query, key and value
        keys = attention.num_key_value_heads * attention.head_dim
        sizes = [sizes[0] - 2 * keys, keys, keys]
    return Pieces(
        groups=groups,
        adapted=[layer for group in groups if group.pairs for layer in group.layers],
        seeds=next((group.seeds for group in groups if group.dropout), None),
        norms=(functions[0], functions[1]),
        rotary=rotary,
        gate=gate,
        sizes=sizes,
        head=attention.head_dim,
        hooks=hooks_inside(layer),
    )


def _groups_of(attention: Any, mlp: Any, scales: Scales) -> list[Group] | None:
    """Return query-key-value, output, gate-up and down as groups; `None` where they cannot run as such."""
    named: dict[str, Any] = dict([*attention.named_children(), *mlp.named_children()])
    names = _JOINED if "qkv_proj" in named else _SEPARATE
    members = [[named[name] for name in each] for each in names]
    adapted: list[Group | None] = [getattr(modules[0], "_group", (None, 0))[0] for modules in members]
    for modules, group in zip(members, adapted, strict=True):
        fits = all(map(_is_frozen, modules)) if group is None else group.layers == modules
        if not fits:
            return None
    frozen = [modules for modules, group in zip(members, adapted, strict=True) if group is None]
    weights = iter(frozen_weights_of(frozen, scales))
    both = zip(members, adapted, strict=True)
    return [Group(modules, next(weights)) if group is None else group for modules, group in both]


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module is a linear layer of a known class, without adapters, that is not trained."""
    known = type(module) is nn.Linear or isinstance(module, Linear4bit)
    return known and not any(parameter.requires_grad for parameter in module.parameters())


class _Streamlined:
    """In front of a decoder layer's own class, which has these modules."""

    self_attn: Any
    training: bool
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable
    _pieces: Pieces | None

    __call__ = nn.Module.__call__  # up to transformers 5.17 a layer's own is the one that checkpoints

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        pieces, attention, x = self._pieces, self.self_attn, hidden_states
        kind, name = x.device.type, attention.config._attn_implementation
        narrowed = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if narrowed else x.dtype
        training = self.training and torch.is_grad_enabled()
        if (
            pieces is None
            or not training
            or position_embeddings is None
            or position_embeddings[0].shape[-1] != pieces.head
            or "sdpa" not in name
            or (kwargs.get("cache") or kwargs.get("past_key_values")) is not None
            or any(pieces.hooks)
            or _has_any_global_hook()
            or any(layer.disable_adapters or layer.merged for layer in pieces.adapted)
            # PEFT widens the input then, which one product cannot do.
            or (pieces.adapted and not narrowed and dtype in (torch.bfloat16, torch.float16))
        ):
            run = partial(
                super().forward,  # pyright: ignore[reportAttributeAccessIssue] (of the layer's own class)
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            if training and self.gradient_checkpointing:
                return self._gradient_checkpointing_func(run, x)
            return run(x)
        if pieces.seeds is not None:
            pieces.seeds.draw()
        attend = partial(
            ALL_ATTENTION_FUNCTIONS[name],
            attention,
            attention_mask=attention_mask,
            dropout=0.0,
            scaling=attention.scaling,
            **kwargs,
        )
        run = _Pass(pieces, x.shape, dtype, pieces.seeds.now if pieces.seeds else 0, *position_embeddings)
        # Without a gradient for the input, as for text alone, an adapter's weight gives the outputs theirs.
        trained = () if x.requires_grad else [w for group in pieces.groups for w in group.parameters[:1]]
        with torch.autocast(kind, enabled=False) if narrowed else nullcontext():
            if self.gradient_checkpointing:
                return _Recomputed.apply(x, run, attend, *trained)
            query, key, value, x = _BeforeAttention.apply(x, run.begin(), *trained)
            seen, _ = attend(query, key, value)
            return _AfterAttention.apply(seen.flatten(2), x, run, *trained)


class _Dropped(Kept):
    """Nothing, where a layer will run again."""

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        pass


class _Pass:
    """One pass of a layer: what comes before attention and what comes after it, forward and backward."""

    def __init__(
        self,
        pieces: Pieces,
        shape: torch.Size,
        dtype: torch.dtype,
        seed: int,
        cosine: torch.Tensor,
        sine: torch.Tensor,
    ) -> None:
        self.pieces, self.shape, self.dtype, self.seed = pieces, shape, dtype, seed
        self.turn = cosine, sine
        self.kept: tuple[list[Kept], list[Kept]]

    def begin(self, keeping: bool = True) -> _Pass:
        kind = Kept if keeping else _Dropped
        self.kept = [kind() for _ in range(3)], [kind() for _ in range(5)]
        return self

    def before(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return query, key and value, `(B, H, S, d)`, of `(B, S, D)`."""
        pieces, (to_norm, to_group, to_rotary) = self.pieces, self.kept[0]
        normed = pieces.norms[0].forward(to_norm, x)
        blocks = pieces.groups[0].forward(to_group, normed, self.dtype, self.seed)
        del normed
        heads = _Heads.in_blocks(blocks, self.shape[0], pieces.sizes, pieces.head)
        return [part.transpose(1, 2) for part in pieces.rotary.forward(to_rotary, heads, *self.turn)]

    def after(self, seen: torch.Tensor, x: torch.Tensor, outputs: bool = True) -> torch.Tensor | None:
        """Return the layer's output from attention's, `seen` `(B, S, H d)`, and its input `x` `(B, S, D)`.

        Without `outputs` only what `after_backward` needs is computed.
        """
        pieces, (to_output, to_norm, to_group, to_gate, to_down) = self.pieces, self.kept[1]
        blocks = pieces.groups[1].forward(to_output, seen, self.dtype, self.seed, x)
        x = blocks[0].view(self.shape)
        normed = pieces.norms[1].forward(to_norm, x)
        blocks = pieces.groups[2].forward(to_group, normed, self.dtype, self.seed)
        gated = pieces.gate.forward(to_gate, blocks).view(*self.shape[:2], -1)
        del seen, normed, blocks
        blocks = pieces.groups[3].forward(to_down, gated, self.dtype, self.seed, x, outputs)
        return blocks[0].view(self.shape) if outputs else None

    def after_backward(self, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of `after`'s inputs."""
        pieces, (to_output, to_norm, to_group, to_gate, to_down) = self.pieces, self.kept[1]
        flat = upstream.reshape(-1, upstream.shape[-1])
        to_adapters: AdapterGradients = []
        to_gated = pieces.groups[3].backward(to_down, [flat], to_adapters)
        blocks = pieces.gate.backward(to_gate, to_gated.flatten(0, -2))
        del to_gated
        to_normed = pieces.groups[2].backward(to_group, blocks, to_adapters)
        del blocks
        to_x = pieces.norms[1].backward(to_norm, to_normed, upstream)
        to_seen = pieces.groups[1].backward(to_output, [to_x.view(flat.shape)], to_adapters)
        add_gradients(to_adapters)
        return to_seen, to_x

    def before_backward(
        self, upstream: Sequence[torch.Tensor], residual: torch.Tensor, wants_x: bool
    ) -> torch.Tensor | None:
        """Return the gradient of `before`'s input, with that of the residual in it."""
        pieces, (to_norm, to_group, to_rotary) = self.pieces, self.kept[0]
        blocks = pieces.rotary.backward(to_rotary, [part.transpose(1, 2) for part in upstream])
        to_adapters: AdapterGradients = []
        to_normed = pieces.groups[0].backward(to_group, blocks, to_adapters, wants_x)
        add_gradients(to_adapters)
        return pieces.norms[0].backward(to_norm, to_normed, residual) if wants_x else None

    def keep(self, ctx: Any, which: int) -> None:
        tensors = [kept.give() for kept in self.kept[which]]
        ctx.run, ctx.counts = self, [len(some) for some in tensors]
        ctx.save_for_backward(*chain.from_iterable(tensors))

    def take(self, ctx: Any, which: int) -> None:
        """Take it back, so that each part goes as soon as it has been used."""
        tensors = iter(ctx.saved_tensors)
        ctx.maybe_clear_saved_tensors()
        for kept, count in zip(self.kept[which], ctx.counts, strict=True):
            kept.saved_tensors = tuple(islice(tensors, count))


class _BeforeAttention(Function):
    """Query, key and value of a layer's input, and the input itself for the residual.

    Both gradients come back to one place, so they are added in the norm's last product.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, run: _Pass, *trained: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = run.before(x)
        run.keep(ctx, 0)
        return *outputs, x.view_as(x)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.run.take(ctx, 0)
        to_x = ctx.run.before_backward(upstream[:3], upstream[3], ctx.needs_input_grad[0])
        return to_x, *[None] * (len(ctx.needs_input_grad) - 1)


class _AfterAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, seen: torch.Tensor, x: torch.Tensor, run: _Pass, *trained: torch.Tensor
    ) -> torch.Tensor | None:
        output = run.after(seen, x)
        run.keep(ctx, 1)
        return output

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.run.take(ctx, 1)
        return *ctx.run.after_backward(upstream), *[None] * (len(ctx.needs_input_grad) - 2)


class _Recomputed(Function):
    """A layer that keeps its input alone and runs again in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, run: _Pass, attend: Callable, *trained: torch.Tensor
    ) -> torch.Tensor | None:
        ctx.run, ctx.attend = run, attend
        ctx.save_for_backward(x)
        seen, _ = attend(*run.begin(keeping=False).before(x))
        return run.after(seen.flatten(2), x)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        run: _Pass = ctx.run
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            heads = [part.requires_grad_() for part in run.begin().before(x)]
            with torch.enable_grad():
                seen, _ = ctx.attend(*heads)
            run.after(seen.detach().flatten(2), x, outputs=False)
            to_seen, to_x = run.after_backward(upstream)
            to_heads = torch.autograd.grad(seen, heads, to_seen.view(seen.shape))
            del heads, seen, to_seen
            to_x = run.before_backward(to_heads, to_x, ctx.needs_input_grad[0])
        return to_x, *[None] * (len(ctx.needs_input_grad) - 1)


class _Norm:
    """`x / sqrt(mean(x^2) + epsilon) * weight` in fp32."""

    def __init__(self, norm: Any, shifted: bool) -> None:
        weight = norm.weight.detach()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        self.weight = 1 + weight if shifted else weight
        self.epsilon = weight.new_full((), norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)

    def forward(self, kept: Kept, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.weight.dtype)
        root = torch.addcmul(self.epsilon, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        kept.save_for_backward(x, root)
        return torch.mul(x * root, self.weight, out=torch.empty_like(x))

    def backward(self, kept: Kept, upstream: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the gradient of `x`, that of the residual added in the last product."""
        x, root = kept.give()
        unit, scaled = x * root, upstream * self.weight
        along = (unit * scaled).sum(-1, keepdim=True)
        scaled.addcmul_(unit, along, value=-1 / x.shape[-1])
        return torch.addcmul(residual, scaled, root, out=torch.empty_like(x))


class _FusedNorm:
    def __init__(self, norm: Any) -> None:
        from liger_kernel.ops import LigerRMSNormFunction

        self.function: Any = LigerRMSNormFunction
        settings = norm.variance_epsilon, norm.offset, norm.casting_mode, norm.in_place
        self.given = norm.weight.detach(), *settings, getattr(norm, "row_mode", None)

    def forward(self, kept: Kept, x: torch.Tensor) -> torch.Tensor:
        return self.function.forward(kept, x, *self.given)

    def backward(self, kept: Kept, upstream: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        to_x = self.function.backward(kept, upstream)[0]
        kept.give()
        return to_x.add_(residual)


class _Rotary:
    """Rotary embedding of query and key, in place, by cosine and sine `(1 or B, S, d)`."""

    def __init__(self) -> None:
        self._of: torch.Tensor | None = None
        self._signed: torch.Tensor
        self._back: torch.Tensor

    def forward(
        self, kept: Any, heads: _Heads, cosine: torch.Tensor, sine: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        if self._of is not sine:  # all layers of a pass are given the same
            first, second = sine[..., None, :].chunk(2, dim=-1)
            self._signed, self._back = torch.cat([-first, second], -1), torch.cat([second, -first], -1)
            self._of = sine
        kept.layout, kept.by = heads.layout, (cosine[..., None, :], self._back)
        for part in heads.turning():
            _turn(part, kept.by[0], self._signed, out=part)
        return heads.parts

    def backward(self, kept: Any, upstream: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the gradients of query-key-value, in blocks."""
        heads = _Heads.of(upstream, kept.layout)
        if heads.whole is None:
            turned = [
                _turn(part, *kept.by, out=torch.empty(part.shape, dtype=part.dtype, device=part.device))
                for part in heads.turning()
            ]
            heads = _Heads([*turned, upstream[2]])
        else:
            for part in heads.turning():
                _turn(part, *kept.by, out=part)
        return heads.blocks()


def _turn(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Return `x cos + (second half of x, first half of x) sin`."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.mul(x, cosine, out=out).addcmul_(swapped, sine)


class _FusedRotary:
    def __init__(self) -> None:
        from liger_kernel.ops import LigerRopeFunction

        self.function: Any = LigerRopeFunction

    def forward(
        self, kept: Any, heads: _Heads, cosine: torch.Tensor, sine: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        kept.layout = heads.layout
        query, key = (part.transpose(1, 2) for part in heads.parts[:2])
        query, key = self.function.forward(kept, query, key, cosine, sine)
        return query.transpose(1, 2), key.transpose(1, 2), heads.parts[2]

    def backward(self, kept: Any, upstream: list[torch.Tensor]) -> list[torch.Tensor]:
        given = (part.transpose(1, 2) for part in upstream[:2])
        query, key = self.function.backward(kept, *given)[:2]
        kept.give()
        parts = [query.transpose(1, 2), key.transpose(1, 2), upstream[2]]
        return _Heads.of(parts, 4 if kept.layout == 4 else 0).blocks()


class _Heads:
    """Query, key and value, `(B, S, H, d)`, and the one tensor that they are views of, if there is one.

    `whole` is `(3, B, S, H, d)`, or `(B, S, H, d)` of one matrix that gives all, or `None`; `layout` is its
    number of dimensions, 0 without.
    """

    def __init__(self, parts: list[torch.Tensor], whole: torch.Tensor | None = None) -> None:
        self.parts, self.whole = parts, whole
        self.layout = 0 if whole is None else whole.dim()

    @classmethod
    def in_blocks(cls, blocks: list[torch.Tensor], rows: int, sizes: list[int], size: int) -> _Heads:
        """Cut blocks into heads of `size` dimensions."""
        if len(blocks) == 3:
            return cls([block.view(rows, -1, block.shape[-1] // size, size) for block in blocks])
        (block,) = blocks
        if block.dim() == 3:
            whole = block.view(3, rows, -1, sizes[0] // size, size)
            return cls(list(whole.unbind()), whole)
        whole = block.view(rows, -1, sum(sizes) // size, size)
        return cls(list(whole.split([each // size for each in sizes], 2)), whole)

    @classmethod
    def of(cls, parts: list[torch.Tensor], layout: int) -> _Heads:
        return cls(parts, torch.stack(parts) if layout == 5 else torch.cat(parts, 2) if layout == 4 else None)

    def turning(self) -> list[torch.Tensor]:
        """Return query and key, in one piece where they are."""
        if self.whole is None:
            return self.parts[:2]
        return [self.whole[:2] if self.layout == 5 else self.whole[:, :, : -self.parts[2].shape[2]]]

    def blocks(self) -> list[torch.Tensor]:
        if self.whole is None:
            return [part.flatten(2).flatten(0, 1) for part in self.parts]
        return [self.whole.flatten(-2).flatten(-3, -2)]


class _Gate:
    """`activation(gate) * up`; the activation is computed again in backward instead of being kept."""

    def __init__(self, silu: bool) -> None:
        aten = torch.ops.aten
        self.activation: Callable = F.silu if silu else F.gelu
        self.again: Callable = aten.silu.out if silu else aten.gelu.out
        self.back: Callable = aten.silu_backward.grad_input if silu else aten.gelu_backward.grad_input
        self.how = {} if silu else {"approximate": "tanh"}

    def forward(self, kept: Kept, blocks: list[torch.Tensor]) -> torch.Tensor:
        gate, up = _halves(blocks)
        kept.save_for_backward(*blocks)
        return self.activation(gate, **self.how).mul_(up)

    def backward(self, kept: Kept, upstream: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradients of gate and up, in blocks."""
        blocks = kept.give()
        made = [torch.empty_like(block) for block in blocks]
        (gate, up), (to_gate, to_up) = _halves(blocks), _halves(made)
        self.again(gate, **self.how, out=to_up).mul_(upstream)
        self.back(torch.mul(upstream, up, out=to_gate), gate, **self.how, grad_input=to_gate)
        return made


class _FusedGate:
    def __init__(self, function: Any) -> None:
        self.function = function

    def forward(self, kept: Any, blocks: list[torch.Tensor]) -> torch.Tensor:
        kept.packed = len(blocks) == 1 and blocks[0].dim() == 2
        return self.function.forward(kept, *_halves(blocks))

    def backward(self, kept: Any, upstream: torch.Tensor) -> list[torch.Tensor]:
        gate, up = self.function.backward(kept, upstream)[:2]
        kept.give()
        return [torch.cat([gate, up], -1)] if kept.packed else [gate, up]


def _halves(blocks: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return gate and up, `(N, F)`, of blocks of outputs: of two layers, or of one that gives both."""
    if len(blocks) == 2:
        return blocks
    return blocks[0].unbind() if blocks[0].dim() == 3 else blocks[0].chunk(2, -1)
