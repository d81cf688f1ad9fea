"""LoRA layers that share an input, forward and backward in one hand-written autograd function.

A QLoRA step is limited by what Python issues, not by what a GPU computes: an adapted 4-bit layer of PEFT is
some forty operations and a checkpoint of its own for the dropout, 224 times in a 7B. Query, key and value
receive the same tensor, and so do gate and up: such a group dequantises its weights in one go, draws its
masks in one go, and adds its updates by `addmm`. PEFT keeps owning names, weights, configuration and files;
only what happens between input and output is replaced, and only while training.

What it computes, for each layer of a group with frozen `W (O, D)` and trained `A (r, D)`, `B (O, r)`:

    y = x W^T + b + scaling * dropout(x) A^T B^T

What is hard, and how it is solved:

- The masks are not kept. They are drawn again in backward, by a generator that is seeded with a number which
  forward took from torch's own generator: so a run resumes to the same numbers, and a layer that recomputes
  (checkpointing restores torch's generator) draws what it drew. Each layer of a group has a mask of its own.
- Adapters are fp32, products are bf16: the narrow copies are made once per optimizer step and written anew
  when a weight changes (by its version, or by `Optimizer.step`, as some optimizers write past the version).
- Gradients are added to `.grad` in fp32 by the function itself, all of a group at once, instead of 14 casts
  and 14 additions per decoder layer. `torch.autograd.grad` with respect to adapters therefore finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

SHARED: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of linear layers that a decoder layer gives the same input."""

ADAPTER = "default"
"""PEFT's name of the adapter that is trained."""


@dataclass
class Scales:
    """Scales of the decoder layer that asked last: all its groups ask, forward and in backward."""

    of: object = None
    values: torch.Tensor | None = None


class Packed:
    """A decoder layer's 4-bit weights, laid side by side and dequantised a group at a time.

    Not possible where a layer's end is no end of a block: then each is dequantised by itself.
    """

    def __init__(self, layers: Sequence[Any], scales: Scales | None = None) -> None:
        self._spans: dict[int, tuple[int, int]] = {}
        self._at_hand = scales or Scales()
        states = [_state_of(layer) for layer in layers]
        first = states[0]
        kinds = {(s.blocksize, s.quant_type, s.dtype, s.nested) for s in states}
        block = first.blocksize * (first.state2.blocksize if first.nested else 1)
        if len(kinds) > 1 or any(s.shape.numel() % block for s in states):
            return
        self._packed = _joined([layer.weight.data.view(-1, 1) for layer in layers])
        self._scales = _joined([s.absmax for s in states])
        self._kind = first.blocksize, first.quant_type
        self._dtype, start = first.dtype, 0
        for layer, state in zip(layers, states, strict=True):  # which keep views of them
            end = start + state.shape.numel()
            layer.weight.data = self._packed[start // 2 : end // 2].view(layer.weight.shape)
            state.absmax = self._scales[start // first.blocksize : end // first.blocksize]
            self._spans[id(layer)], start = (start, end), end
        self._nested = None
        if first.nested:  # the scales are quantised themselves: 256 of them share one, plus an offset
            size = first.state2.blocksize
            offsets = torch.cat([s.offset.expand(s.absmax.numel() // size) for s in states])
            second = first.state2.code, size, first.state2.dtype
            self._nested = _joined([s.state2.absmax for s in states]), second, offsets[:, None]

    def weights(self, layers: Sequence[Any], sizes: list[int]) -> Sequence[torch.Tensor]:
        """Return the `(O, D)` weights of layers that were given one after another."""
        if not self._spans:
            return [bnb.dequantize_4bit(layer.weight, _state_of(layer)) for layer in layers]
        start, end = self._spans[id(layers[0])][0], self._spans[id(layers[-1])][1]
        size = self._kind[0]
        given = self._packed[start // 2 : end // 2], self._wide_scales()[start // size : end // size]
        shape = [sum(sizes), layers[0].in_features]
        whole = torch.ops.bitsandbytes.dequantize_4bit.default(*given, *self._kind, shape, self._dtype)
        return whole.split(sizes) if len(sizes) > 1 else [whole]

    def _wide_scales(self) -> torch.Tensor:
        if self._nested is None:
            return self._scales
        if self._at_hand.of is not self or self._at_hand.values is None:
            second, (code, size, dtype), offsets = self._nested
            self._at_hand.values = self._at_hand.of = None
            wide = torch.ops.bitsandbytes.dequantize_blockwise.default(
                self._scales, second, code, size, dtype
            )
            wide.view(-1, size).add_(offsets)
            self._at_hand.of, self._at_hand.values = self, wide
        return self._at_hand.values


class Base:
    """The frozen weights of a group's layers, dequantised together where they are in 4 bits."""

    def __init__(self, layers: Sequence[Any], packed: Packed | None = None) -> None:
        self.layers = list(layers)
        self.sizes = [layer.out_features for layer in self.layers]
        self.biases = [layer.bias for layer in self.layers]
        self.in_4_bits = isinstance(self.layers[0], Linear4bit)
        self._packed, self._kept = packed, None
        if self.in_4_bits and packed is None and all(_state_of(layer) for layer in self.layers):
            self._packed = Packed(self.layers)

    def weights(self, dtype: torch.dtype) -> Sequence[torch.Tensor]:
        """Return each layer's `(O, D)` weights in `dtype`."""
        if self._kept is not None:
            return self._kept
        if not self.in_4_bits:
            return [layer.weight.to(dtype) for layer in self.layers]
        self._packed = self._packed or Packed(self.layers)
        whole = self._packed.weights(self.layers, self.sizes)
        return whole if whole[0].dtype == dtype else [weight.to(dtype) for weight in whole]

    def keep(self, dtype: torch.dtype) -> None:
        """Hold the dequantised weights from now on: the same numbers, 2 bytes each in bf16."""
        self._kept = None
        self._kept = self.weights(dtype) if self.in_4_bits else None


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def _state_of(layer: Any) -> Any:
    return getattr(layer.weight, "quant_state", None) or layer.quant_state


class Seeds:
    """One number per decoder layer and pass, from torch's generator; the layer's first group takes it."""

    def __init__(self) -> None:
        self.now = 0

    def draw(self) -> None:
        """Take a number; a layer that recomputes takes the same one, as checkpointing restores the state."""
        number = torch.empty((), dtype=torch.int64).random_()
        self.now = int(number) if type(number) is torch.Tensor else 0  # a fake tensor has no value


class Group:
    """Linear layers that receive the same tensor, all of them adapted or all of them frozen.

    Attributes:
        layers: PEFT's, or frozen ones.
        dropout: share of the input that an adapter does not see while training.
        scaling: of the update, `alpha / rank`.
        number: of the group in its decoder layer, in the order in which they run.
        pairs: `A` and `B` of each layer; none of frozen ones.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        base: Base,
        seeds: Seeds | None = None,
        number: int = 0,
        keep_narrow: bool = True,
    ) -> None:
        self.layers, self.base = list(layers), base
        self.seeds, self.number = seeds or Seeds(), number
        self.keep_narrow = keep_narrow
        adapted = [layer for layer in layers if isinstance(layer, LoraLayer)]
        self.dropout = _dropout_of(adapted[0]) if adapted else 0.0
        self.scaling: float = adapted[0].scaling[ADAPTER] if adapted else 0.0
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = [
            (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in adapted
        ]
        self.parameters = [weight for pair in self.pairs for weight in pair]
        self._firsts: torch.Tensor | None = None
        self._seconds: list[torch.Tensor] = []
        self._versions: list[int] | None = None
        self._at_hand: tuple[torch.Tensor, dict[int, torch.Tensor]] | None = None
        self._gradient: torch.Tensor | None = None

    def run(self, member: int, x: torch.Tensor) -> torch.Tensor:
        """Return one layer's output; the group's other outputs wait for the same `x`."""
        if self._at_hand is not None and self._at_hand[0] is x and member in self._at_hand[1]:
            outputs = self._at_hand[1]
        else:
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            with torch.autocast(kind, enabled=False):
                outputs = dict(enumerate(self.together(x, dtype)))
            self._at_hand = x, outputs
        output = outputs.pop(member)
        if not outputs:
            self._at_hand = None
        return output

    def together(
        self, x: torch.Tensor, dtype: torch.dtype, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return all outputs, outside of autocast.

        Args:
            x: `(B, S, D)`.
            dtype: of the products.
            residual: `(B, S, O)`, added to the output of a group of one.
        """
        if self.dropout and self.number == 0:
            self.seeds.draw()
        # One trained parameter is enough to give the outputs a gradient; theirs are not autograd's business.
        return _Together.apply(x, residual, self, self.seeds.now + self.number, dtype, *self.parameters[:1])

    def refresh(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the narrow copies that are kept, each with its weight, to be written anew by the caller."""
        if self._firsts is not None:
            self._versions = [weight._version for weight in self.parameters]
            yield from zip([*self._firsts, *self._seconds], self._in_order(), strict=True)

    def _in_order(self) -> list[nn.Parameter]:
        return [a for a, _ in self.pairs] + [b for _, b in self.pairs]

    def narrow(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return `A (G, r, D)` and each `B (O, r)` in `dtype`, written anew when a weight has changed."""
        first = self.pairs[0][0]
        if dtype == first.dtype:  # nothing to narrow, so nothing to keep
            with torch.no_grad():
                return torch.stack([a for a, _ in self.pairs]), [b.detach() for _, b in self.pairs]
        firsts, seconds = self._firsts, self._seconds
        if firsts is None or firsts.dtype != dtype:
            firsts = first.new_empty((len(self.pairs), *first.shape), dtype=dtype)
            seconds = [torch.empty_like(b, dtype=dtype, requires_grad=False) for _, b in self.pairs]
            self._versions = None
        versions = [weight._version for weight in self.parameters]
        if self._versions != versions:
            with torch.no_grad():
                _copy([*firsts, *seconds], self._in_order())
            self._versions = versions
        if self.keep_narrow:
            self._firsts, self._seconds = firsts, seconds
        return firsts, seconds

    def release(self) -> None:
        """Let go of outputs that nobody asked for, as after a lack of memory."""
        self._at_hand = None

    def mask(self, x: torch.Tensor, seed: int) -> torch.Tensor | None:
        """Draw which inputs each adapter sees: `(G, N, D)` of 0 and 1; the same for the same seed."""
        if not self.dropout:
            return None
        generator = _generator(x.device)
        generator.manual_seed(seed % 2**63)
        shape = (len(self.layers), *x.shape)
        return torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(
            1 - self.dropout, generator=generator
        )

    def add(self, firsts: torch.Tensor, seconds: list[torch.Tensor]) -> None:
        """Add gradients of all A `(G, r, D)` and each B to the parameters' `.grad`, in their precision."""
        ours = self._gradient
        first = self.pairs[0][0]
        new = [firsts, *seconds]
        if all(weight.grad is None for weight in self.parameters):
            wide = [torch.empty_like(gradient, dtype=first.dtype) for gradient in new]
            _copy(wide, new)
            self._gradient = wide[0]
            for (a, b), to_a, to_b in zip(self.pairs, wide[0], wide[1:], strict=True):
                a.grad, b.grad = to_a, to_b
        elif ours is not None and all(
            a.grad is not None and a.grad.data_ptr() == part.data_ptr() and b.grad is not None
            for (a, b), part in zip(self.pairs, ours, strict=True)
        ):
            seconds_so_far: list[Any] = [b.grad for _, b in self.pairs]
            torch._foreach_add_([ours, *seconds_so_far], new)  # pyright: ignore[reportPrivateImportUsage]
        else:  # somebody else has put gradients there
            for (a, b), to_a, to_b in zip(self.pairs, firsts, seconds, strict=True):
                for weight, gradient in ((a, to_a), (b, to_b)):
                    wide = gradient.to(weight.dtype)
                    weight.grad = wide if weight.grad is None else weight.grad + wide


class _Together(Function):
    """A group's outputs from its input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        group: Group,
        seed: int,
        dtype: torch.dtype,
        *trained: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        ctx.group, ctx.seed, ctx.shape, ctx.dtype, ctx.product = group, seed, x.shape, x.dtype, dtype
        weights, start = group.base.weights(dtype), None
        if residual is not None and not group.pairs and residual.dtype == dtype:
            start, residual = residual.reshape(len(flat), -1), None
        made = []
        for weight, bias in zip(weights, group.base.biases, strict=True):
            if bias is not None:
                y = torch.addmm(bias.to(dtype), flat, weight.t())
                y = y if start is None else y.add_(start)
            else:
                y = flat @ weight.t() if start is None else torch.addmm(start, flat, weight.t())
            made.append(y)
        del weights
        if group.pairs:
            firsts, seconds = group.narrow(dtype)
            mask = group.mask(flat, seed)
            seen = flat.expand(len(firsts), -1, -1) if mask is None else mask.mul_(flat)
            inner = torch.bmm(seen, firsts.transpose(1, 2))  # (G, N, r)
            del seen, mask
            scale = group.scaling / (1 - group.dropout)
            for y, part, second in zip(made, inner.unbind(), seconds, strict=True):
                y.addmm_(part, second.t(), alpha=scale)
            ctx.save_for_backward(flat, inner)
        # Added to a sum of two products the residual would be rounded twice, and it is the largest of them.
        if residual is not None:
            made[0] = made[0].view(residual.shape)
            made[0] = made[0].add_(residual) if residual.dtype == dtype else made[0] + residual
        return tuple(y.view(*x.shape[:-1], -1) for y in made)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        group: Group = ctx.group
        given = [g.reshape(-1, g.shape[-1]).to(ctx.product) for g in upstream]
        wants_x, wants_residual = ctx.needs_input_grad[:2]
        inner = mask = None
        if group.pairs:
            flat, inner = ctx.saved_tensors
            scale = group.scaling / (1 - group.dropout)
            firsts, seconds = group.narrow(ctx.product)
            to_inner = torch.empty_like(inner)
            to_seconds = []
            for i, g in enumerate(given):
                torch.mm(g, seconds[i], out=to_inner[i])
                to_seconds.append(_scaled(g.t(), inner[i], scale))
            mask = group.mask(flat, ctx.seed)
            seen = flat.expand(len(firsts), -1, -1) if mask is None else mask * flat
            to_firsts = torch.baddbmm(
                firsts, to_inner.transpose(1, 2), seen, beta=0, alpha=scale
            )  # (G, r, D)
            del seen
            group.add(to_firsts, to_seconds)
        to_x = None
        if wants_x:
            weights = group.base.weights(ctx.product)
            total = given[0] @ weights[0]
            for g, weight in zip(given[1:], weights[1:], strict=True):
                total.addmm_(g, weight)
            if mask is not None:
                for part, kept in zip(torch.bmm(to_inner, firsts), mask, strict=True):
                    total.addcmul_(part, kept, value=scale)
            elif inner is not None:
                width = inner.shape[-1] * len(firsts)
                joined = to_inner.transpose(0, 1).reshape(-1, width)
                total.addmm_(joined, firsts.view(width, -1), alpha=scale)
            to_x = total.view(ctx.shape).to(ctx.dtype)
        to_residual = upstream[0] if wants_residual else None
        return to_x, to_residual, None, None, None, *[None] * len(group.parameters[:1])


def _scaled(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `scale * left @ right` in one product."""
    out = left.new_empty(left.shape[0], right.shape[1])
    return torch.addmm(out, left, right, beta=0, alpha=scale)


@cache
def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device)


def _copy(targets: list[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    torch._foreach_copy_(targets, list(sources))  # pyright: ignore[reportPrivateImportUsage]


def _dropout_of(layer: Any) -> float:
    kept = layer.lora_dropout[ADAPTER]
    return kept.p if isinstance(kept, nn.Dropout) else getattr(layer.lora_A[ADAPTER], "dropout", 0.0)


def _is_plain(layer: Any) -> bool:
    """Whether a PEFT layer is LoRA and nothing else, over a base that is known here."""
    base = layer.get_base_layer()
    known = type(base) is nn.Linear or isinstance(base, Linear4bit)
    alone = list(layer.lora_A) == [ADAPTER] and ADAPTER not in getattr(layer, "lora_variant", {})
    return known and alone and layer.lora_B[ADAPTER].bias is None


class _Grouped(nn.Module):
    """In front of a PEFT layer's own class: training runs through the group, all else as PEFT has it."""

    _group: tuple[Group, int]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        half = x.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(x.device.type)
        if (
            half  # PEFT widens the input then, which one product cannot do
            or args
            or kwargs
            or not self.training
            or not torch.is_grad_enabled()
            or self.disable_adapters
            or self.merged
        ):
            return super().forward(x, *args, **kwargs)
        group, member = self._group
        return group.run(member, x)


@cache
def _grouped(kind: type[nn.Module]) -> type[Any]:
    return type(kind.__name__, (_Grouped, kind), {"__module__": __name__})


def group_adapters(decoder_layers: Iterable[nn.Module], keep_narrow: bool = True) -> list[Group]:
    """Let the adapted linear layers of a decoder run in groups; names, weights and files stay PEFT's.

    The last layer may run its query for chosen rows alone, so there the query is a group by itself.

    Args:
        decoder_layers: with PEFT's LoRA layers inside.
        keep_narrow: keep the adapters' bf16 copies from one optimizer step to the next (2 bytes per weight);
            without, they are made anew in every pass.

    Returns:
        The groups; empty where a layer is no plain LoRA (8 bits, DoRA, several adapters).
    """
    decoder_layers = list(decoder_layers)
    adapted: list[dict[str, Any]] = [
        {name.rsplit(".", 1)[-1]: m for name, m in layer.named_modules() if isinstance(m, LoraLayer)}
        for layer in decoder_layers
    ]
    if not all(_is_plain(module) for named in adapted for module in named.values()):
        return []
    groups: list[Group] = []
    scales = Scales()
    for index, named in enumerate(adapted):
        seeds, shared = Seeds(), [set(names) & named.keys() for names in SHARED]
        if index == len(adapted) - 1:
            shared = [{"q_proj"} & named.keys(), shared[0] - {"q_proj"}, *shared[1:]]
        alone = [{name} for name in named if not any(name in names for names in shared)]
        # In the order in which a layer runs them: the first one draws the layer's seed.
        order = {name: i for i, name in enumerate(named)}
        sets = sorted(filter(None, [*shared, *alone]), key=lambda names: min(order[n] for n in names))
        members = [[named[name] for name in named if name in names] for names in sets]
        bases = bases_of([[layer.get_base_layer() for layer in layers] for layers in members], scales)
        for number, (layers, base) in enumerate(zip(members, bases, strict=True)):
            groups.append(Group(layers, base, seeds, number, keep_narrow))
            for member, layer in enumerate(layers):
                if not isinstance(layer, _Grouped):  # a model may be trained twice
                    layer.__class__ = _grouped(type(layer))
                layer._group = groups[-1], member
    return groups


def ungroup_adapters(decoder_layers: Iterable[nn.Module]) -> None:
    """Let PEFT's own classes run again, as for a comparison with them."""
    for layer in decoder_layers:
        for module in layer.modules():
            if isinstance(module, _Grouped):
                module.__class__ = type(module).__mro__[2]


def bases_of(groups: Sequence[Sequence[Any]], scales: Scales | None = None) -> list[Base]:
    """Return the frozen weights of a decoder layer's groups, in 4 bits laid side by side where possible."""
    layers = [layer for group in groups for layer in group]
    packed = None
    if layers and all(isinstance(layer, Linear4bit) and _state_of(layer) for layer in layers):
        packed = Packed(layers, scales)
    return [Base(group, packed) for group in groups]


def forget_after_steps(groups: Sequence[Group], optimizer: torch.optim.Optimizer) -> None:
    """Write the groups' narrow copies anew after each step of an optimizer, all at once.

    Not by the weights' versions alone: bitsandbytes' optimizers write past them.
    """

    @torch.no_grad()
    def hook(*_: object) -> None:
        pairs = [pair for group in groups for pair in group.refresh()]
        if pairs:
            narrow, wide = zip(*pairs, strict=True)
            _copy(list(narrow), wide)

    optimizer.register_step_post_hook(hook)
