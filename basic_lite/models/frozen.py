"""Frozen linear layers whose weights are dequantised together, a group of layers at a time.

A *block* holds what belongs to one layer, in two dimensions, or to all layers of a group, in three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn.modules import Linear4bit


def frozen_weights_of(groups: Sequence[Sequence[Any]], scales: Scales) -> list[FrozenWeights]:
    """Return the frozen weights of a decoder layer's groups, in 4 bits laid side by side where possible."""
    layers = [layer for group in groups for layer in group]
    packed = Packed(layers, scales) if _can_pack(layers) else None
    return [FrozenWeights(group, packed) for group in groups]


def _can_pack(layers: Sequence[Any]) -> bool:
    """Whether layers are in 4 bits of one kind, and every layer's end is the end of a block."""
    if not all(isinstance(layer, Linear4bit) and _state_of(layer) for layer in layers):
        return False
    states = [_state_of(layer) for layer in layers]
    kinds = {(s.blocksize, s.quant_type, s.dtype, s.nested) for s in states}
    blocks = (s.blocksize * (s.state2.blocksize if s.nested else 1) for s in states)
    return len(kinds) == 1 and not any(
        s.shape.numel() % block for s, block in zip(states, blocks, strict=True)
    )


@dataclass
class Scales:
    """Scales of the decoder layer that asked last: all its groups ask, forward and in backward."""

    of: object = None
    values: torch.Tensor | None = None


class Packed:
    """A decoder layer's 4-bit weights, laid side by side and dequantised a group at a time."""

    def __init__(self, layers: Sequence[Any], scales: Scales) -> None:
        self._spans: dict[int, tuple[int, int]] = {}
        self._at_hand = scales
        states = [_state_of(layer) for layer in layers]
        first = states[0]
        self._packed = torch.cat([layer.weight.data.view(-1, 1) for layer in layers])
        self._scales = torch.cat([s.absmax for s in states])
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
            self._nested = torch.cat([s.state2.absmax for s in states]), second, offsets[:, None]

    def piece(self, layers: Sequence[Any]) -> Callable[[], torch.Tensor]:
        """Return what dequantises layers that were given one after another, as one matrix."""
        start, end = self._spans[id(layers[0])][0], self._spans[id(layers[-1])][1]
        packed, size = self._packed[start // 2 : end // 2], self._kind[0]
        scales = slice(start // size, end // size)
        how = *self._kind, [sum(layer.out_features for layer in layers), layers[0].in_features], self._dtype
        dequantise = torch.ops.bitsandbytes.dequantize_4bit.default
        return lambda: dequantise(packed, self._wide_scales()[scales], *how)

    def _wide_scales(self) -> torch.Tensor:
        if self._nested is None:
            return self._scales
        if self._at_hand.of is self and self._at_hand.values is not None:
            return self._at_hand.values
        second, (code, size, dtype), offsets = self._nested
        self._at_hand.values = self._at_hand.of = None
        wide = torch.ops.bitsandbytes.dequantize_blockwise.default(self._scales, second, code, size, dtype)
        wide.view(-1, size).add_(offsets)
        self._at_hand.of, self._at_hand.values = self, wide
        return wide


class FrozenWeights:
    """The frozen weights of a group's layers, dequantised together where they are in 4 bits."""

    def __init__(self, layers: Sequence[Any], packed: Packed | None) -> None:
        self.layers = list(layers)
        self.sizes = [layer.out_features for layer in self.layers]
        self.biases = [layer.bias for layer in self.layers]
        self.in_4_bits = isinstance(self.layers[0], Linear4bit)
        self._kept: Sequence[torch.Tensor] | None = None
        self._piece = None if packed is None else packed.piece(self.layers)

    def weights(self, dtype: torch.dtype) -> Sequence[torch.Tensor]:
        """Return the layers' weights in `dtype`: one block `(G, O, D)`, or one of each layer, `(O, D)`."""
        if self._kept is not None:
            return self._kept
        if not self.in_4_bits:
            return [layer.weight.to(dtype) for layer in self.layers]
        if self._piece is None:
            wide = [bnb.dequantize_4bit(layer.weight, _state_of(layer)) for layer in self.layers]
            return [weight.to(dtype) for weight in wide]
        whole, sizes = self._piece(), self.sizes
        whole = whole if whole.dtype == dtype else whole.to(dtype)
        if len(sizes) == 1:
            return [whole]
        return [whole.view(len(sizes), sizes[0], -1)] if len(set(sizes)) == 1 else whole.split(sizes)

    def keep(self, dtype: torch.dtype) -> None:
        """Hold the dequantised weights from now on: the same numbers, 2 bytes each in bf16."""
        self._kept = None  # of another dtype
        self._kept = self.weights(dtype) if self.in_4_bits else None


def _state_of(layer: Any) -> Any:
    return getattr(layer.weight, "quant_state", None) or layer.quant_state


def members(blocks: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return the layers' own parts of blocks."""
    return [part for block in blocks for part in (block.unbind() if block.dim() == 3 else (block,))]
