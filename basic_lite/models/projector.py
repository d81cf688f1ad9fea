"""LLaVA's projector as it is trained here: fp32 weights, and on a GPU fp32 products made of bf16 ones.

A GPU multiplies fp32 on its ordinary cores, and bf16 many times faster. Here each fp32 factor is the sum of
two bf16 numbers, and of their four products the three that matter are added up in fp32:

    a b = (a1 + a2) (b1 + b2) = a1 b1 + a1 b2 + a2 b1 + (a2 b2, left out: 2^-16 of the whole)

Nothing global is switched, neither `allow_tf32` nor the matmul precision: whoever else multiplies fp32 in
this process is not touched. What it costs in precision is in this package's README.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector


class Projector(LlavaMultiModalProjector):
    """LLaVA's two-layer projector in fp32, with the only dtype boundary of the model inside.

    The tower's bf16 features are widened on the way in; autocast is off inside, or it would run the trained
    fp32 weights in bf16. `LlavaModel` narrows the result to the decoder's dtype.

    Attributes:
        split: make fp32 products of bf16 ones, on a GPU; `BasicTrainer` sets it unless `--no-fused-kernels`.
        pool: patches along the side of a square of them that becomes one visual embedding; its features stand
            side by side in front of the first layer, which is the wider for it.
    """

    split: bool = False

    def __init__(self, config: Any, pool: int = 1) -> None:
        super().__init__(config)
        self.pool = pool
        if pool > 1:
            width, bias = self.linear_1.in_features * pool**2, self.linear_1.bias is not None
            self.linear_1 = nn.Linear(width, self.linear_1.out_features, bias=bias)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Map `(I, P * pool**2, tower width)` in any dtype to `(I, P, D)` in the weights' dtype."""
        if self.pool > 1:
            image_features = side_by_side(image_features, self.pool)
        with torch.autocast(image_features.device.type, enabled=False):
            if not (self.split and _can_split(self.linear_1.weight)):
                return super().forward(image_features.to(self.linear_1.weight.dtype))
            hidden = self.act(split_linear(image_features, self.linear_1))
            return split_linear(hidden, self.linear_2)


def side_by_side(features: torch.Tensor, pool: int) -> torch.Tensor:
    """Join squares of patches: `(I, P, width)` to `(I, P / pool**2, width * pool**2)`, both row by row."""
    images, patches, width = features.shape
    across = round(patches**0.5) // pool
    squares = features.view(images, across, pool, across, pool, width).transpose(2, 3)
    return squares.reshape(images, across * across, pool * pool * width)


class NewlineProjector(Projector):
    """The projector of a model with tiles: it also holds the newline vector, `image_newline` `(D,)`.

    A standard LLaVA-NeXT has it beside the projector, where PEFT neither trains nor saves a bare parameter.
    An export moves it back.
    """

    def __init__(self, config: Any, pool: int = 1) -> None:
        super().__init__(config, pool)
        width = config.text_config.hidden_size
        self.image_newline = nn.Parameter(torch.randn(width) / width**0.5)  # as large as LLaVA-NeXT's own


def _can_split(weight: torch.Tensor) -> bool:
    """Whether products of bf16 with fp32 sums exist where a weight is, and it is fp32."""
    return weight.is_cuda and weight.dtype == torch.float32 and torch.__version__ >= "2.8"


def split_linear(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """Return `layer(x.float())`, `(..., O)` fp32, its products and those of its gradients made of bf16 ones.

    `x` is `(..., K)`, not split where it is bf16 already; the layer's weights are fp32.
    """
    y: Any = _SplitLinear.apply(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias)
    return y.view(*x.shape[:-1], -1)


class _SplitLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        y = split_product(x, weight.t())
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            split_product(upstream, weight).to(x.dtype) if to_x else None,
            split_product(upstream.t(), x) if to_weight else None,
            upstream.sum(0) if to_bias else None,
        )


def split_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `a @ b` in fp32 from products of bf16 with fp32 sums: three, or fewer where a factor is bf16.

    `a` is `(R, K)` and `b` is `(K, C)`, fp32 or bf16.
    """
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    product = _bf16_product(a1, b1)
    if b2 is not None:
        product += _bf16_product(a1, b2)
    if a2 is not None:
        product += _bf16_product(a2, b1)
    return product


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return two bf16 tensors whose sum is `x` to 2^-16; the second is `None` for bf16."""
    if x.dtype == torch.bfloat16:
        return x, None
    first = x.to(torch.bfloat16)
    return first, (x - first).to(torch.bfloat16)


def _bf16_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # each product of two bf16 numbers is exact in fp32
