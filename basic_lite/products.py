"""Products with a matrix as tall as the vocabulary, into buffers that are already there.

Sums are fp32 whatever the inputs: on CUDA by the product itself, on a CPU by widening a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_BLOCK_ELEMENTS: dict[str, int] = {"cpu": 1 << 20, "cuda": 1 << 22}
"""Elements of one column block, which bounds every temporary: 4 MB in fp32 stay in a CPU's cache, 16 MB are
enough work for a GPU to hide the launches of its kernels."""


def accumulator(*tensors: torch.Tensor) -> torch.dtype:
    """Return the dtype of logits and sums: fp32, or fp64 where an input is fp64."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def column_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """Cut the columns of `(rows, V)` so that one block has about `_BLOCK_ELEMENTS` elements."""
    rows, columns = matrix.shape
    step = max(_BLOCK_ELEMENTS.get(matrix.device.type, 1 << 20) // rows, 256)
    for start in range(0, columns, step):
        yield slice(start, min(start + step, columns))


def log_softmax_(logits: torch.Tensor) -> None:
    """`logits.copy_(logits.log_softmax(-1))` without a second `(rows, V)` tensor."""
    highest = logits.amax(1, keepdim=True)
    total = torch.zeros_like(highest)
    for block in column_blocks(logits):
        total += (logits[:, block] - highest).exp_().sum(1, keepdim=True)
    logits.sub_(highest + total.log_())


def _accumulates_in_fp32(matrix: torch.Tensor) -> bool:
    """Say whether `mm(out_dtype=float32)` exists: low-precision inputs, fp32 result, on CUDA alone."""
    return matrix.is_cuda and matrix.dtype in (torch.bfloat16, torch.float16) and torch.__version__ >= "2.8"


def project(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
    """`out.copy_(rows @ matrix.T)` with the sums in `out`'s precision.

    A bf16 matrix on a CPU is widened block by block: `matrix.float()` would be 2.1 GB for Gemma.

    Args:
        rows: `(R, D)`.
        matrix: `(V, D)`.
        out: `(R, V)` fp32 or fp64.
    """
    if matrix.dtype == out.dtype:
        torch.mm(rows.to(out.dtype), matrix.T, out=out)
    elif _accumulates_in_fp32(matrix):
        torch.mm(rows.to(matrix.dtype), matrix.T, out_dtype=torch.float32, out=out)
    else:
        rows = rows.to(out.dtype)
        for block in _row_blocks(matrix):
            torch.mm(rows, matrix[block].to(out.dtype).T, out=out[:, block])


def multiply(
    weights: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor, spare: torch.Tensor | None = None
) -> None:
    """`out.copy_(weights @ matrix)`; on CUDA in the matrix's precision with fp32 sums.

    Args:
        weights: `(R, V)` fp32 or fp64, or already in the matrix's precision.
        matrix: `(V, D)`.
        out: `(R, D)` fp32 or fp64.
        spare: `(R, V)` like `weights`, no longer needed: its bytes hold the narrowed weights.
    """
    if matrix.dtype == out.dtype:
        torch.mm(weights, matrix, out=out)
    elif _accumulates_in_fp32(matrix):
        narrow = weights
        if weights.dtype != matrix.dtype:
            room = torch.empty_like(weights) if spare is None else spare
            narrow = room.view(matrix.dtype)[:, : weights.shape[1]].copy_(weights)
        torch.mm(narrow, matrix, out_dtype=torch.float32, out=out)
    else:
        out.zero_()
        for block in _row_blocks(matrix):
            torch.addmm(out, weights[:, block], matrix[block].to(out.dtype), out=out)


def _row_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """Cut the rows of `(V, D)` into blocks of about 8 million elements (32 MB in fp32)."""
    step = max((8 << 20) // matrix.shape[1], 256)
    for start in range(0, len(matrix), step):
        yield slice(start, min(start + step, len(matrix)))
