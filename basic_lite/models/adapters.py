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

from collections.abc import Iterable, Sequence
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


class Base:
    """The frozen weights of a group's layers, dequantised together where they are in 4 bits."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.sizes = [layer.out_features for layer in self.layers]
        self.biases = [layer.bias for layer in self.layers]
        self._packed: tuple[torch.Tensor | None, Any, torch.Tensor | None] | None = None
        if isinstance(self.layers[0], Linear4bit) and all(_state_of(layer) for layer in self.layers):
            self._packed = self._pack()

    def weights(self, dtype: torch.dtype) -> Sequence[torch.Tensor]:
        """Return each layer's `(O, D)` weights in `dtype`."""
        if not isinstance(self.layers[0], Linear4bit):
            return [layer.weight.to(dtype) for layer in self.layers]
        self._packed = self._packed or self._pack()
        packed, state, offsets = self._packed
        if packed is None:
            whole = [bnb.dequantize_4bit(layer.weight, _state_of(layer)) for layer in self.layers]
            return [weight.to(dtype) for weight in whole]
        if offsets is not None:  # the scales are quantised themselves: 256 of them share one, plus an offset
            scales = bnb.dequantize_blockwise(state.absmax, state.state2)
            scales = scales.view(-1, state.state2.blocksize).add_(offsets[:, None]).flatten()
            state = _like(state, scales, state.shape)
        return bnb.dequantize_4bit(packed, state).to(dtype).split(self.sizes)

    def _pack(self) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        """Lay the layers' 4-bit weights and scales one after another; the layers keep views of them.

        Not possible where a layer's end is no end of a block: then each is dequantised by itself.
        """
        states = [_state_of(layer) for layer in self.layers]
        first = states[0]
        alike = all(
            (s.blocksize, s.quant_type, s.dtype, s.nested, s.shape[1])
            == (first.blocksize, first.quant_type, first.dtype, first.nested, first.shape[1])
            for s in states
        )
        block = first.blocksize * (first.state2.blocksize if first.nested else 1)
        if not alike or any(s.shape.numel() % block for s in states):
            return None, None, None
        packed = _joined([layer.weight.data.view(-1, 1) for layer in self.layers])
        scales = _joined([s.absmax for s in states])
        starts = 0, 0
        for layer, state in zip(self.layers, states, strict=True):
            ends = starts[0] + layer.weight.numel(), starts[1] + state.absmax.numel()
            layer.weight.data = packed[starts[0] : ends[0]].view(layer.weight.shape)
            state.absmax = scales[starts[1] : ends[1]]
            starts = ends
        whole = _like(first, scales, torch.Size((sum(self.sizes), first.shape[1])))
        if not first.nested:
            return packed, whole, None
        whole.state2 = _like(first.state2, _joined([s.state2.absmax for s in states]))
        size = first.state2.blocksize
        return packed, whole, torch.cat([s.offset.expand(s.absmax.numel() // size) for s in states])


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def _state_of(layer: Any) -> Any:
    return getattr(layer.weight, "quant_state", None) or layer.quant_state


def _like(state: Any, scales: torch.Tensor, shape: torch.Size | None = None) -> Any:
    """Return a quantisation state with other scales, which are not quantised themselves."""
    kept = {name: getattr(state, name) for name in ("code", "blocksize", "quant_type", "dtype")}
    return bnb.QuantState(absmax=scales, shape=shape, **kept)


class Seeds:
    """One number per decoder layer and pass, from torch's generator; the layer's first group takes it."""

    def __init__(self) -> None:
        self.now = 0

    def draw(self) -> None:
        """Take a number; a layer that recomputes takes the same one, as checkpointing restores the state."""
        number = torch.empty((), dtype=torch.int64).random_()
        self.now = int(number) if type(number) is torch.Tensor else 0  # a fake tensor has no value


class Group:
    """Adapted layers that receive the same tensor.

    Attributes:
        layers: PEFT's.
        dropout: share of the input that an adapter does not see while training.
        scaling: of the update, `alpha / rank`.
        first: whether it runs first in its decoder layer.
        number: of the group in its decoder layer.
    """

    def __init__(self, layers: Sequence[Any], seeds: Seeds, number: int, keep_narrow: bool) -> None:
        self.layers, self.seeds, self.number = list(layers), seeds, number
        self.keep_narrow = keep_narrow
        self.base = Base([layer.get_base_layer() for layer in layers])
        self.dropout = _dropout_of(layers[0])
        self.scaling: float = layers[0].scaling[ADAPTER]
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = [
            (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in layers
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
            if self.number == 0:
                self.seeds.draw()
            made = _Together.apply(x, self, self.seeds.now + self.number, *self.parameters)
            outputs = dict(enumerate(made))
            self._at_hand = x, outputs
        output = outputs.pop(member)
        if not outputs:
            self._at_hand = None
        return output

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
                _copy([*firsts, *seconds], [a for a, _ in self.pairs] + [b for _, b in self.pairs])
            self._versions = versions
        if self.keep_narrow:
            self._firsts, self._seconds = firsts, seconds
        return firsts, seconds

    def forget(self) -> None:
        """The weights have changed, whatever their version says."""
        self._versions = None

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
        ctx: Any, x: torch.Tensor, group: Group, seed: int, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        firsts, seconds = group.narrow(dtype)
        with torch.autocast(kind, enabled=False):
            mask = group.mask(flat, seed)
            seen = flat.expand(len(firsts), -1, -1) if mask is None else mask.mul_(flat)
            inner = torch.bmm(seen, firsts.transpose(1, 2))  # (G, N, r)
            del seen, mask
            outputs = []
            scale = group.scaling / (1 - group.dropout)
            weights = group.base.weights(dtype)
            for i, (weight, bias) in enumerate(zip(weights, group.base.biases, strict=True)):
                if bias is None:
                    y = flat @ weight.t()
                else:
                    y = torch.addmm(bias.to(dtype), flat, weight.t())
                y.addmm_(inner[i], seconds[i].t(), alpha=scale)
                outputs.append(y.view(*x.shape[:-1], -1))
        ctx.save_for_backward(flat, inner)
        ctx.group, ctx.seed, ctx.shape, ctx.dtype = group, seed, x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        flat, inner = ctx.saved_tensors
        group: Group = ctx.group
        scale = group.scaling / (1 - group.dropout)
        kind = flat.device.type
        with torch.autocast(kind, enabled=False):
            given = [g.reshape(-1, g.shape[-1]).to(flat.dtype) for g in upstream]
            firsts, seconds = group.narrow(flat.dtype)
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
            to_x = None
            if ctx.needs_input_grad[0]:
                weights = group.base.weights(flat.dtype)
                total = given[0] @ weights[0]
                for g, weight in zip(given[1:], weights[1:], strict=True):
                    total.addmm_(g, weight)
                if mask is None:
                    width = inner.shape[-1] * len(firsts)
                    joined = to_inner.transpose(0, 1).reshape(-1, width)
                    total.addmm_(joined, firsts.view(width, -1), alpha=scale)
                else:
                    for part, kept in zip(torch.bmm(to_inner, firsts), mask, strict=True):
                        total.addcmul_(part, kept, value=scale)
                to_x = total.view(ctx.shape).to(ctx.dtype)
            group.add(to_firsts, to_seconds)
        return to_x, None, None, *[None] * len(group.parameters)


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
    for index, named in enumerate(adapted):
        seeds, shared = Seeds(), [set(names) & named.keys() for names in SHARED]
        if index == len(adapted) - 1:
            shared = [{"q_proj"} & named.keys(), shared[0] - {"q_proj"}, *shared[1:]]
        alone = [{name} for name in named if not any(name in names for names in shared)]
        # In the order in which a layer runs them: the first one draws the layer's seed.
        order = {name: i for i, name in enumerate(named)}
        sets = sorted(filter(None, [*shared, *alone]), key=lambda names: min(order[n] for n in names))
        for number, names in enumerate(sets):
            layers = [named[name] for name in named if name in names]
            groups.append(Group(layers, seeds, number, keep_narrow))
            for member, layer in enumerate(layers):
                if not isinstance(layer, _Grouped):  # a model may be trained twice
                    layer.__class__ = _grouped(type(layer))
                layer._group = groups[-1], member
    return groups


def forget_after_steps(groups: Sequence[Group], optimizer: torch.optim.Optimizer) -> None:
    """Drop the groups' narrow copies after each step of an optimizer."""

    def hook(*_: object) -> None:
        for group in groups:
            group.forget()

    optimizer.register_step_post_hook(hook)
