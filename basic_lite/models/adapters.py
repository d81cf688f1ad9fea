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
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from basic_lite.models.frozen import FrozenWeights, Scales, frozen_weights_of, members

SHARED: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of linear layers that a decoder layer gives the same input."""

ADAPTER = "default"
"""PEFT's name of the adapter that is trained."""


class Kept:
    """What a computation keeps for its backward pass, in place of autograd's context.

    This way several of them are one autograd function, which gives autograd all their tensors, or none where
    they run again in backward. Functions written for autograd, as Liger's, take it too.
    """

    needs_input_grad: tuple[bool, ...] = (True, *[False] * 9)

    def __init__(self) -> None:
        self.saved_tensors: tuple[torch.Tensor, ...] = ()
        self.shape: torch.Size
        self.dtype: torch.dtype
        self.product: torch.dtype
        self.seed = 0

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        self.saved_tensors = tensors

    def give(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors and let go of them."""
        tensors, self.saved_tensors = self.saved_tensors, ()
        return tensors


class Seeds:
    """One number per decoder layer and pass, from torch's generator; the layer's first group takes it."""

    def __init__(self) -> None:
        self.now = 0

    def draw(self) -> None:
        """Take a number; a layer that recomputes takes the same one, as checkpointing restores the state."""
        number = torch.empty((), dtype=torch.int64).random_()
        self.now = int(number) if type(number) is torch.Tensor else 0  # a fake tensor has no value


AdapterGradients = list[tuple["Group", list[torch.Tensor]]]
"""Groups, and gradients of all their `A` and `B` in blocks."""


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
        base: FrozenWeights,
        seeds: Seeds | None = None,
        number: int = 0,
        keep_narrow: bool = True,
    ) -> None:
        self.layers, self.base = list(layers), base
        self.seeds, self.number = seeds or Seeds(), number
        self.keep_narrow = keep_narrow
        adapted: list[Any] = [layer for layer in layers if isinstance(layer, LoraLayer)]
        self.dropout = _dropout_of(adapted[0]) if adapted else 0.0
        self.scaling: float = adapted[0].scaling[ADAPTER] if adapted else 0.0
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = [
            (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in adapted
        ]
        self.parameters = [a for a, _ in self.pairs] + [b for _, b in self.pairs]
        self._firsts: torch.Tensor | None = None
        self._seconds: list[torch.Tensor] = []  # in one piece where all have the same shape
        self._copies: list[torch.Tensor] = []  # of `parameters`, cut out of them
        self._versions: list[int] | None = None
        self._at_hand: tuple[torch.Tensor, dict[int, torch.Tensor]] | None = None
        self.gradients: list[torch.Tensor] = []  # what `.grad` of the adapters is cut out of

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

    def together(self, x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Return all outputs of `(B, S, D)`, by products in `dtype`; outside of autocast."""
        if self.dropout and self.number == 0:
            self.seeds.draw()
        # One trained parameter is enough to give the outputs a gradient; theirs are not autograd's business.
        return _Together.apply(x, self, dtype, *self.parameters[:1])

    def forward(
        self,
        kept: Kept,
        x: torch.Tensor,
        dtype: torch.dtype,
        seed: int,
        residual: torch.Tensor | None = None,
        outputs: bool = True,
    ) -> list[torch.Tensor]:
        """Compute the outputs of `x` `(B, S, D)` without autograd, by products in `dtype`.

        `kept` takes what `backward` needs; `seed` is that of the layer's masks in this pass; `residual`
        `(B, S, O)` is added to the output of a group of one. Without `outputs` only what `backward` needs is
        computed. Returns the outputs in blocks, as the weights are: `(G, N, O)`, or `(N, O)` of each layer.
        """
        kept.shape, kept.dtype, kept.product, kept.seed = x.shape, x.dtype, dtype, seed + self.number
        flat = x.reshape(-1, x.shape[-1])
        flat = flat if x.dtype == dtype else flat.to(dtype)
        blocks: list[torch.Tensor] = []
        if outputs:
            start = None
            if residual is not None and not self.pairs and residual.dtype == dtype:
                start, residual = residual.reshape(-1, residual.shape[-1]), None
            blocks = self._base_outputs(flat, start)
        if self.pairs:
            firsts, seconds = self.narrow(dtype)
            mask = self.mask(flat, kept.seed)
            seen = flat.expand(*firsts.shape[:-2], *flat.shape) if mask is None else mask.mul_(flat)
            inner = _times(seen, firsts.mT)  # (G, N, r)
            del seen, mask
            scale = self.scaling / (1 - self.dropout)
            if len(blocks) == 1:
                add = torch.Tensor.addmm_ if inner.dim() == 2 else torch.Tensor.baddbmm_
                add(blocks[0], inner, seconds[0].mT, alpha=scale)
            elif blocks:
                for y, part, second in zip(blocks, inner.unbind(), members(seconds), strict=True):
                    y.addmm_(part, second.mT, alpha=scale)
            kept.save_for_backward(flat, inner)
        # Added to a sum of two products the residual would be rounded twice, and it is the largest of them.
        if residual is not None and blocks:
            y = blocks[0].view(residual.shape)
            blocks[0] = y.add_(residual) if residual.dtype == dtype else y + residual
        return blocks

    def _base_outputs(self, flat: torch.Tensor, start: torch.Tensor | None) -> list[torch.Tensor]:
        weights, biases = self.base.weights(flat.dtype), self.base.biases
        if weights[0].dim() == 3:
            inputs, turned = flat.expand(len(biases), *flat.shape), weights[0].mT
            if biases[0] is None:
                return [torch.bmm(inputs, turned)]
            bias = torch.stack([bias.to(flat.dtype) for bias in biases])
            return [torch.baddbmm(bias[:, None], inputs, turned)]
        blocks = []
        for weight, bias in zip(weights, biases, strict=True):
            if bias is not None:
                y = torch.addmm(bias.to(flat.dtype), flat, weight.mT)
                y = y if start is None else y.add_(start)
            else:
                y = torch.mm(flat, weight.mT) if start is None else torch.addmm(start, flat, weight.mT)
            blocks.append(y)
        return blocks

    def backward(
        self,
        kept: Kept,
        given: Sequence[torch.Tensor],
        to_adapters: AdapterGradients,
        wants_x: bool = True,
    ) -> Any:
        """Return the gradient of `x`; `None` unless `wants_x`.

        `given` are gradients of the outputs, in one block or one of each layer; `to_adapters` takes the
        adapters' own, for `add_gradients`.
        """
        dtype = kept.product
        given = [g if g.dtype == dtype else g.to(dtype) for g in given]
        firsts = to_inner = mask = None
        scale = self.scaling / (1 - self.dropout)
        if self.pairs:
            flat, inner = kept.give()
            firsts, seconds = self.narrow(dtype)
            if len(given) == 1:
                to_inner = _times(given[0], seconds[0])
                to_seconds = [_times(given[0].mT, inner, scale)]
            else:
                each = list(zip(given, inner.unbind(), members(seconds), strict=True))
                to_inner = torch.stack([torch.mm(g, second) for g, _, second in each])
                to_seconds = [_times(g.mT, part, scale) for g, part, _ in each]
            mask = self.mask(flat, kept.seed)
            seen = flat.expand(*firsts.shape[:-2], *flat.shape) if mask is None else mask * flat
            to_adapters.append((self, [_times(to_inner.mT, seen, scale), *to_seconds]))
            del seen
        if not wants_x:
            return None
        total: Any = None
        for g, weight in zip(members(given), members(self.base.weights(dtype)), strict=True):
            total = torch.mm(g, weight) if total is None else total.addmm_(g, weight)
        if firsts is not None and to_inner is not None:
            if mask is not None:
                parts = _times(to_inner, firsts)
                for part, seen in zip(members([parts]), members([mask]), strict=True):
                    total.addcmul_(part, seen, value=scale)
            elif firsts.dim() == 2:
                total.addmm_(to_inner, firsts, alpha=scale)
            else:
                joined = to_inner.transpose(0, 1).flatten(1)
                total.addmm_(joined, firsts.flatten(0, 1), alpha=scale)
        total = total.view(kept.shape)
        return total if kept.dtype == dtype else total.to(kept.dtype)

    def refresh(self) -> list[torch.Tensor]:
        """Return the narrow copies that are kept, as `parameters` are, to be written anew by the caller."""
        self._versions = [weight._version for weight in self.parameters]
        return self._copies

    def narrow(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return all `A` and all `B` in `dtype`, written anew when a weight has changed.

        They are `(G, r, D)` and `(G, O, r)`, or `(O, r)` of each layer where sizes differ; of a group of one
        `(r, D)` and `(O, r)`.
        """
        first, firsts, seconds = self.pairs[0][0], self._firsts, self._seconds
        versions = [weight._version for weight in self.parameters]
        if firsts is None or firsts.dtype != dtype:
            shapes = [b.shape for _, b in self.pairs]
            several = (len(shapes),) if len(shapes) > 1 else ()
            sizes = [(*several, *shapes[0])] if len(set(shapes)) == 1 else shapes
            firsts = first.new_empty((*several, *first.shape), dtype=dtype)
            seconds = [first.new_empty(size, dtype=dtype) for size in sizes]
            self._versions = None
        if self._versions != versions:
            copies = members([firsts, *seconds])
            with torch.no_grad():
                _copy(copies, self.parameters)
            self._versions = versions
            if self.keep_narrow and dtype != first.dtype:  # a copy that is not narrow is not worth its memory
                self._firsts, self._seconds, self._copies = firsts, seconds, copies
        return firsts, seconds

    def release(self) -> None:
        """Let go of outputs that nobody asked for, as after a lack of memory."""
        self._at_hand = None

    def mask(self, x: torch.Tensor, seed: int) -> torch.Tensor | None:
        """Draw which of `(N, D)` each adapter sees: `(G, N, D)` of 0 and 1; the same for the same seed."""
        if not self.dropout:
            return None
        generator = _generator(x.device)
        generator.manual_seed(seed % 2**63)
        shape = (len(self.layers), *x.shape) if len(self.layers) > 1 else x.shape
        return x.new_empty(shape).bernoulli_(1 - self.dropout, generator=generator)


def add_gradients(to_adapters: AdapterGradients) -> None:
    """Add gradients to the `.grad` of groups' adapters, in the adapters' precision, all at once."""
    fresh: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    to_copy: list[torch.Tensor] = []
    to_add: list[torch.Tensor] = []
    for group, new in to_adapters:
        parameters = group.parameters
        if all(weight.grad is None for weight in parameters):
            group.gradients = [torch.empty_like(each, dtype=parameters[0].dtype) for each in new]
            fresh += group.gradients
            to_copy += new
            for weight, gradient in zip(parameters, members(group.gradients), strict=True):
                weight.grad = gradient
            continue
        ours = [gradient.data_ptr() for gradient in members(group.gradients)]
        if ours == [0 if weight.grad is None else weight.grad.data_ptr() for weight in parameters]:
            sums += group.gradients
            to_add += new
            continue
        for weight, gradient in zip(parameters, members(new), strict=True):  # somebody else has some
            wide = gradient.to(weight.dtype)
            weight.grad = wide if weight.grad is None else weight.grad + wide
    if fresh:
        _copy(fresh, to_copy)
    if sums:
        torch._foreach_add_(sums, to_add)  # pyright: ignore[reportPrivateImportUsage]


class _Together(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, group: Group, dtype: torch.dtype, *trained: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.group, ctx.kept = group, Kept()
        blocks = group.forward(ctx.kept, x, dtype, group.seeds.now)
        ctx.joined = blocks[0].dim() == 3
        ctx.save_for_backward(*ctx.kept.give())
        return tuple(y.view(*x.shape[:-1], -1) for y in members(blocks))

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.kept.saved_tensors = ctx.saved_tensors
        flat = [gradient.reshape(-1, gradient.shape[-1]) for gradient in upstream]
        given = [torch.stack(flat)] if ctx.joined else flat
        to_adapters: AdapterGradients = []
        to_x = ctx.group.backward(ctx.kept, given, to_adapters, ctx.needs_input_grad[0])
        add_gradients(to_adapters)
        return to_x, *[None] * (len(ctx.needs_input_grad) - 1)


def _times(left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    if scale == 1.0:
        return torch.mm(left, right) if left.dim() == 2 else torch.bmm(left, right)
    product = torch.addmm if left.dim() == 2 else torch.baddbmm
    return product(left.new_empty(()), left, right, beta=0, alpha=scale)


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

    _group: tuple[Group, int]  # and the layer's place in it
    # Those on modules inside of any adapted layer beside it, which the group does not call
    _hooks: list[dict]

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
            or any(self._hooks)
        ):
            return super().forward(x, *args, **kwargs)
        group, member = self._group
        return group.run(member, x)


@cache
def in_front(mixin: type, kind: type) -> type[Any]:
    """Return a module's class `kind` with a mixin in front of it, whose `forward` runs."""
    made = type(kind.__name__, (mixin, kind), {"__module__": mixin.__module__})
    # Set here: transformers wraps the `forward` that it finds in a new class in its checkpointing.
    made.forward = mixin.forward  # pyright: ignore[reportAttributeAccessIssue]
    return made


def own_class(module: Any, mixin: type) -> type[nn.Module]:
    """Return a module's class without the mixin that `in_front` may have put there."""
    return type(module).__mro__[2] if isinstance(module, mixin) else type(module)


def group_adapters(decoder_layers: Iterable[nn.Module], keep_narrow: bool = True) -> list[Group]:
    """Let the adapted linear layers of a decoder run in groups; names, weights and files stay PEFT's.

    The last layer may run its query for chosen rows alone, so there the query is a group by itself.
    `keep_narrow` keeps the adapters' bf16 copies (2 bytes per weight) between optimizer steps; without, every
    pass makes them anew. Returns no groups where a layer is no plain LoRA (8 bits, DoRA, several adapters).
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
        shared = SHARED if index < len(adapted) - 1 else (("q_proj",), ("k_proj", "v_proj"), *SHARED[1:])
        together: dict[object, list[Any]] = {}  # in the order in which the layer runs them
        for name, layer in named.items():
            key = next((names for names in shared if name in names), name)
            together.setdefault(key, []).append(layer)
        frozen = [[layer.get_base_layer() for layer in layers] for layers in together.values()]
        hooks = [each for module in named.values() for each in hooks_inside(module)]
        seeds, weights = Seeds(), frozen_weights_of(frozen, scales)
        for number, (layers, base) in enumerate(zip(together.values(), weights, strict=True)):
            groups.append(Group(layers, base, seeds, number, keep_narrow))
            for member, layer in enumerate(layers):
                layer.__class__ = in_front(_Grouped, own_class(layer, _Grouped))  # it may be trained twice
                layer._group, layer._hooks = (groups[-1], member), hooks
    return groups


def ungroup_adapters(decoder_layers: Iterable[nn.Module]) -> None:
    """Let PEFT's own classes run again."""
    for layer in decoder_layers:
        for module in layer.modules():
            module.__class__ = own_class(module, _Grouped)


def hooks_inside(whole: nn.Module) -> list[dict]:
    """Return the dictionaries of the hooks of all modules inside; empty ones as long as there are none."""
    return [
        hooks
        for module in whole.modules()
        if module is not whole
        for hooks in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._backward_pre_hooks,
            module._backward_hooks,
        )
    ]


def forget_after_steps(groups: Sequence[Group], optimizer: torch.optim.Optimizer) -> None:
    """Write the groups' narrow copies anew after each step of an optimizer, all at once.

    The weights' versions are not enough: bitsandbytes' optimizers write past them.
    """

    @torch.no_grad()
    def hook(*_: object) -> None:
        narrow = [copy for group in groups for copy in group.refresh()]
        if narrow:
            _copy(narrow, [weight for group in groups if group._copies for weight in group.parameters])

    optimizer.register_step_post_hook(hook)
