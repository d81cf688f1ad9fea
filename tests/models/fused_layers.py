"""Liger's functions inside a streamlined layer, in Triton's interpreter, for `test_fused_layers`.

A process of its own, as the interpreter is chosen when triton is imported. What it does not have is put in:
two functions of a GPU's own library, and numbers that know a type.
"""

from __future__ import annotations

import sys
from copy import deepcopy

import liger_kernel.ops.geglu
import liger_kernel.ops.rms_norm
import liger_kernel.ops.swiglu
import triton.language as tl
from models.layer_gradients import WIDE_KINDS, error, gradients, model_of, streamlined
from tiny import ALL_DECODERS

from basic_lite.models.adapters import Kept, group_adapters
from basic_lite.models.decoder_layer import streamline
from basic_lite.models.devices import recompute_layers
from basic_lite.models.parts import parts_of
from basic_lite.training import liger


class Number(float):
    def to(self, *_: object) -> float:
        return self


def check(decoder: str, stage: int, bits: int) -> None:
    """Compare gradients of layers with Liger's functions and without."""
    if bits == 4:
        ALL_DECODERS[decoder] = WIDE_KINDS[decoder]
    model = model_of(decoder, stage, bits)
    truth = gradients(streamlined(model))
    for again in (0, None):
        ours = deepcopy(model)
        inside = parts_of(ours).decoder
        group_adapters(inside.layers)
        patch, pieces = liger.patch_of(inside)
        patch(model=inside, **pieces)
        for norm in inside.modules():
            if hasattr(norm, "casting_mode"):
                norm.variance_epsilon, norm.offset = Number(norm.variance_epsilon), Number(norm.offset)
        assert streamline(inside, fused=True) == 3
        assert type(inside.layers[0]._pieces.gate).__name__ == "_FusedGate"
        recompute_layers(inside, again)
        gap = error(gradients(ours), truth)
        assert gap < 5e-5, gap  # the kernels sum in another order; without the residual it is 1
        print(f"{decoder}, stage {stage}, {bits} bits, again {again}: {gap:.1e}")


if __name__ == "__main__":
    liger_kernel.ops.rms_norm.rsqrt = lambda x: tl.rsqrt(x)
    liger_kernel.ops.geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1
    liger_kernel.ops.swiglu.float = Number
    # The interpreter cannot leave out a weight's gradient, as a GPU does of what is frozen.
    Kept.needs_input_grad = (True,) * 10
    check(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
