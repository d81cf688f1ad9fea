"""One Triton program per row of `L_sds`: log-sums, divergence and difference in two passes over two rows.

The torch code in `losses` is the truth; it reads and writes each pair of logits about ten times. Here they
are read twice and q - p (in tiles also p) is written once, as bf16 over the bytes of the fp32 logits.
Imported on a GPU alone.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import triton
import triton.language as tl

from basic_lite.files import one_line

BLOCK: int = 4096
"""Columns at a time: 32,000 or 256,000 at once would spill registers and be slower than torch."""

_WARPS: int = 8

_KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _rows(
    logits,
    norms,
    divergence,
    columns,
    stride_rows,
    stride_logits,
    stride_norms,
    block: tl.constexpr,
    kind: tl.constexpr,
    keep_teacher: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student = logits + row * stride_rows
    teacher = student + stride_logits
    norms += row
    place = tl.arange(0, block)
    # The columns before are one summand, exp(norm); -inf is none, since exp(-inf - highest) is 0.
    highest_q = tl.load(norms)
    highest_p = tl.load(norms + stride_norms)
    sum_q = 1.0
    sum_p = 1.0
    for start in range(0, columns, block):
        inside = start + place < columns
        z = tl.load(student + start + place, mask=inside, other=-float("inf"))
        h = tl.load(teacher + start + place, mask=inside, other=-float("inf"))
        new_q = tl.maximum(highest_q, tl.max(z, 0))
        new_p = tl.maximum(highest_p, tl.max(h, 0))
        sum_q = sum_q * tl.exp(highest_q - new_q) + tl.sum(tl.exp(z - new_q), 0)
        sum_p = sum_p * tl.exp(highest_p - new_p) + tl.sum(tl.exp(h - new_p), 0)
        highest_q = new_q
        highest_p = new_p
    norm_q = highest_q + tl.log(sum_q)
    norm_p = highest_p + tl.log(sum_p)
    tl.store(norms, norm_q)
    tl.store(norms + stride_norms, norm_p)
    difference = student.to(tl.pointer_type(kind))  # pyright: ignore[reportArgumentType]  # a constexpr here
    share = teacher.to(tl.pointer_type(kind))  # pyright: ignore[reportArgumentType]
    total = 0.0
    for start in range(0, columns, block):
        inside = start + place < columns
        log_q = tl.load(student + start + place, mask=inside, other=0.0) - norm_q
        log_p = tl.load(teacher + start + place, mask=inside, other=0.0) - norm_p
        p = tl.where(inside, tl.exp(log_p), 0.0)
        total += tl.sum(p * (log_p - log_q), 0)  # pyright: ignore[reportOperatorIssue]  # typed as a tuple too
        # Element j is written to bytes 2j of the row and was read from bytes 4j: before what is still to be
        # read, except inside one block, whose warps must all have read before one of them writes.
        tl.debug_barrier()
        tl.store(difference + start + place, (tl.exp(log_q) - p).to(kind), mask=inside)
        if keep_teacher:
            tl.store(share + start + place, p.to(kind), mask=inside)
    tl.store(divergence + row, total)


def divergence_and_difference(
    logits: torch.Tensor, norms: torch.Tensor, dtype: torch.dtype, keep_teacher: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of a tile in `KL(p || q)`, and `q - p`, where q and p are softmaxes up to its end.

    ```python
    norms = logaddexp(norms, logits.logsumexp(-1))
    log_q, log_p = logits - norms[..., None]
    return (log_p.exp() * (log_p - log_q)).sum(-1), stack([log_q.exp() - log_p.exp(), log_p.exp()]).to(dtype)
    ```
    Arguments and results are those of `losses._divergence_and_difference`, here fp32 with contiguous rows,
    and `dtype` bf16, fp16 or fp32. The weights `(2, R, C)` lie in the first bytes of each row of `logits`.
    """
    _, rows, columns = logits.shape
    assert norms.stride(1) == 1
    divergence = logits.new_empty(rows)
    strides = logits.stride(1), logits.stride(0), norms.stride(0)
    settings = {"block": BLOCK, "kind": _KINDS[dtype], "keep_teacher": keep_teacher, "num_warps": _WARPS}
    _rows[(rows,)](logits, norms, divergence, columns, *strides, **settings)
    return divergence, logits.view(dtype)[:, :, :columns]


@cache
def works_on(device: torch.device) -> bool:
    """Return whether the kernel can be compiled and started on a GPU; warns once if not (no C compiler)."""
    try:
        small, norms = torch.zeros(2, 1, 64, device=device), torch.zeros(2, 1, device=device)
        divergence_and_difference(small, norms, torch.bfloat16, keep_teacher=True)
    except Exception as error:  # whatever a compiler throws: the torch code does the same, slower
        logging.getLogger(__name__).warning(
            f"Triton's kernels cannot be used here ({type(error).__name__}: {one_line(error, 120)}); "
            "L_sds and the decoder go on in torch, slower"
        )
        return False
    return True
