"""Measure `L_sds` beside Liger's and TRL's divergences.

cd tests && python -m bench.divergences --width 2048 --vocabulary 256000
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import typer
from torch.autograd import Function

from basic_lite.bench.sds import Divergence, Facts, markdown, measure_sds
from basic_lite.console import quiet_console
from basic_lite.files import one_line
from basic_lite.method.types import Refinement
from basic_lite.models import devices

LIGER, TRL = "liger fused JSD", "trl chunked divergence"


def measure_divergences(
    rows: int, width: int, vocabulary: int, device: str, dtype: torch.dtype, repeats: int
) -> list[Facts]:
    """Return the rows of `measure_sds` with those of Liger and TRL; what cannot run says why."""
    others: Mapping[str, Divergence] = {LIGER: liger_divergence, TRL: trl_divergence}
    missing = {} if device == "cuda" else {LIGER: "its kernels need a GPU"}
    try:
        import trl.kernels.chunked_divergence  # noqa: F401
    except ImportError as error:
        missing[TRL] = f"pip install 'trl>=1.16' brings it ({one_line(error)})"
    others = {name: run for name, run in others.items() if name not in missing}
    measured = measure_sds(rows, width, vocabulary, device, dtype, repeats, others)
    return measured + [{"name": name, "why not": reason} for name, reason in missing.items()]


class _RowWeight(Function):
    """Identity whose gradient is multiplied row by row: Liger's divergence knows no weight per row."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,), (upstream,) = ctx.saved_tensors, grad_outputs
        return upstream * weight[:, None].to(upstream.dtype), None


def liger_divergence(seen: Refinement, embedding: torch.Tensor) -> torch.Tensor:
    """Return `L_sds` by Liger's fused divergence, whose beta of 0 is KL(teacher || student)."""
    from liger_kernel.transformers.functional import liger_fused_linear_jsd

    weighted = _RowWeight.apply(seen.initial, seen.importance * len(seen.initial))
    target = seen.target.to(embedding.dtype)
    return liger_fused_linear_jsd(weighted, embedding, target, embedding, jsd_beta=0.0)


def trl_divergence(seen: Refinement, embedding: torch.Tensor) -> torch.Tensor:
    """Return `L_sds` by TRL's tiles over the vocabulary: five products, fp32 logits, bounded memory.

    Raises ImportError if there is no TRL of 1.16 or later.
    """
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    # It rounds the teacher's states as it does the student's.
    teacher = seen.target.to(embedding.dtype)
    # Student and teacher, each with its head and bias; 0.0 is KL(teacher || student).
    given = seen.initial, embedding, None, teacher, embedding, None, 0.0
    divergence, _entropy = ChunkedDivergenceFunction.apply(*given)
    return (seen.importance * divergence).sum()


def main(
    rows: int = 4608, width: int = 4096, vocabulary: int = 32_000, precision: str = "auto", repeats: int = 10
) -> None:
    """Print the table of `basic-lite bench sds` with Liger's and TRL's rows."""
    device = devices.choose_device()
    dtype = devices.choose_dtype(precision, device)
    quiet_console().print(markdown(measure_divergences(rows, width, vocabulary, device, dtype, repeats)))


if __name__ == "__main__":
    typer.run(main)
