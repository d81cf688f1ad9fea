"""One Triton program per row of `L_sds`: log-sums, divergence and difference in two passes over two rows.

The torch code in `losses` is the truth; it reads and writes each pair of logits about ten times. Here they
are read twice and written once, as bf16 over the bytes of the fp32 logits that they come from.
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
    student,
    teacher,
    divergence,
    columns,
    stride_student,
    stride_teacher,
    block: tl.constexpr,
    kind: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * stride_student
    teacher += row * stride_teacher
    place = tl.arange(0, block)
    highest_q = -float("inf")
    highest_p = -float("inf")
    sum_q = 0.0
    sum_p = 0.0
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
    narrow = student.to(tl.pointer_type(kind))  # pyright: ignore[reportArgumentType]  # a constexpr here
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
        tl.store(narrow + start + place, (tl.exp(log_q) - p).to(kind), mask=inside)
    tl.store(divergence + row, total)


def divergence_and_difference(
    student: torch.Tensor, teacher: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `KL(p || q)` of each row and `q - p`, where q and p are the softmax of the two logits.

    ```python
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), (log_q.exp() - log_p.exp()).to(dtype)
    ```

    Args:
        student: `(R, V)` fp32 with contiguous rows; overwritten.
        teacher: `(R, V)` fp32 with contiguous rows.
        dtype: of the difference: bf16, fp16 or fp32.

    Returns:
        `(R,)` fp32, and `(R, V)` in the first bytes of `student`'s rows.
    """
    rows, columns = student.shape
    divergence = student.new_empty(rows)
    strides = student.stride(0), teacher.stride(0)
    settings = {"block": BLOCK, "kind": _KINDS[dtype], "num_warps": _WARPS}
    _rows[(rows,)](student, teacher, divergence, columns, *strides, **settings)
    return divergence, student.view(dtype)[:, :columns]


@cache
def works_on(device: torch.device) -> bool:
    """Return whether the kernel can be compiled and started on a GPU; warns once if not (no C compiler)."""
    try:
        small = torch.zeros(2, 1, 64, device=device)
        divergence_and_difference(small[0], small[1], torch.bfloat16)
    except Exception as error:  # whatever a compiler throws: the torch code does the same, slower
        logging.getLogger(__name__).warning(
            f"the Triton row kernel cannot be used here ({type(error).__name__}: {one_line(error, 120)}); "
            "L_sds goes on in torch"
        )
        return False
    return True
