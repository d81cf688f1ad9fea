"""The three loss terms, in plain PyTorch: next-token, directional alignment, semantic distribution.

Each returns a `LossTerm`: a sum and a count. Two of them multiply by a matrix as tall as the vocabulary.
Written naively they keep several `(rows, V)` tensors alive until backward (21 bytes per logit: 24.6 GB for
eight pictures with Gemma's 256,000 tokens). Here rows go through in chunks, the gradient is made in the
forward pass, and what stays is one `(rows, D)` gradient; a chunk's buffers are reused in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from basic_lite.data.conversation import IGNORE_INDEX
from basic_lite.method.chunks import rows_in_chunk
from basic_lite.method.types import LossTerm, Refinement

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


def log_softmax_(logits: torch.Tensor) -> torch.Tensor:
    """`logits.copy_(logits.log_softmax(-1))` without a second `(rows, V)` tensor; returns the normaliser."""
    highest = logits.amax(1, keepdim=True)
    total = torch.zeros_like(highest)
    for block in column_blocks(logits):
        total += (logits[:, block] - highest).exp_().sum(1, keepdim=True)
    normaliser = highest + total.log_()
    logits.sub_(normaliser)
    return normaliser


def _accumulates_in_fp32(matrix: torch.Tensor) -> bool:
    """Whether `mm(out_dtype=float32)` exists: low-precision inputs, fp32 result, on CUDA alone."""
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


def next_token(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: torch.nn.Module | torch.Tensor,
    rows_per_chunk: int | None = None,
) -> LossTerm:
    """Cross-entropy of the next token, where the head sees supervised rows only.

    ```python
    logits = head(hidden[:, :-1]).float()
    total = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    ```
    without the `(B, S, V)` logits: 64 of a caption's 640 positions carry loss, the others never meet the
    head.

    Args:
        hidden: `(B, S, D)` states after the final norm, or `(M, D)` rows already chosen and shifted.
        labels: `(B, S)` ids with `IGNORE_INDEX`, or `(M,)` the ids that those rows predict.
        head: the output projection without bias, or its `(V, D)` weight; one with `cap` caps its logits.
        rows_per_chunk: rows per pass over the vocabulary; `None` chooses by size.

    Returns:
        `LossTerm("lm", sum over supervised tokens, their number)`. With none, a zero attached to the graph.

    Raises:
        ValueError: If shapes disagree, or the head has a bias.
    """
    if hidden.shape[:-1] != labels.shape:
        raise ValueError(f"labels {tuple(labels.shape)} do not belong to hidden states {tuple(hidden.shape)}")
    if getattr(head, "bias", None) is not None:
        raise ValueError("next_token takes a head without bias; decoders of the supported families have none")
    weight = head if isinstance(head, torch.Tensor) else head.weight
    assert isinstance(weight, torch.Tensor), "a head has one matrix"
    if hidden.dim() == 3:
        chosen = labels[:, 1:].ne(IGNORE_INDEX)
        hidden, labels = hidden[:, :-1][chosen], labels[:, 1:][chosen]
    if not len(labels):
        return LossTerm("lm", hidden.float().sum() * 0.0, 0)
    rows = rows_in_chunk(len(labels), len(weight)) if rows_per_chunk is None else rows_per_chunk
    cap = getattr(head, "cap", None)
    return LossTerm("lm", _LinearCrossEntropy.apply(hidden, weight, labels, rows, cap), len(labels))


def directional_alignment(refinement: Refinement) -> LossTerm:
    """`L_das`: weighted squared distance of unit vectors, initial against target (paper, section 3).

    ```python
    total = (a * (normalize(v) - normalize(target)).square().sum(-1)).sum()  # = sum a * (2 - 2 cos)
    ```

    Args:
        refinement: initial and target `(N, D)`, importance `(N,)`; the gradient goes to `initial` alone.

    Returns:
        `LossTerm("das", sum over patches, number of images)`, in fp32.
    """
    precision = accumulator(refinement.initial, refinement.target)
    initial = F.normalize(refinement.initial.to(precision), dim=-1)
    target = F.normalize(refinement.target.to(precision), dim=-1)
    distance = (initial - target).square().sum(-1)
    return LossTerm("das", (refinement.importance.to(precision) * distance).sum(), refinement.images)


def semantic_distribution(
    refinement: Refinement, embedding: torch.Tensor, rows_per_chunk: int | None = None
) -> LossTerm:
    """`L_sds`: KL divergence between the vocabulary distributions of target and initial embeddings.

    ```python
    log_p = (target @ E.T).float().log_softmax(-1)   # teacher, constant
    log_q = (v @ E.T).float().log_softmax(-1)
    total = (a * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()     # d total / d v_i = a_i E^T (q_i - p_i)
    ```
    with three matrix products in all, and at most `8 * rows * V + 4 * N * D` bytes beyond the inputs (plus
    the column blocks), whatever the batch. Logits are fp32: from bf16 logits the gradient is wrong by up
    to 10 %.

    Args:
        refinement: initial and target `(N, D)`, importance `(N,)`; the gradient goes to `initial` alone.
        embedding: `(V, D)` the raw token embedding matrix, a constant here.
        rows_per_chunk: patches per pass over the vocabulary; `None` chooses by size.

    Returns:
        `LossTerm("sds", sum over patches, number of images)`, in fp32.

    Raises:
        ValueError: If `rows_per_chunk` is not positive.
    """
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk must be at least 1, got {rows_per_chunk}")
    rows = (
        rows_in_chunk(len(refinement.initial), len(embedding)) if rows_per_chunk is None else rows_per_chunk
    )
    constants = refinement.target.detach(), refinement.importance.detach(), embedding.detach()
    total = _SemanticDistribution.apply(refinement.initial, *constants, rows)
    return LossTerm("sds", total, refinement.images)


class _GradientsMade(Function):
    """A function whose forward pass makes the gradients of its first inputs, where they are wanted."""

    @staticmethod
    def keep(ctx: Any, *made: tuple[torch.Tensor | None, torch.dtype]) -> None:
        """Keep gradients for `backward`, each with the dtype of its input."""
        ctx.save_for_backward(*(gradient for gradient, _ in made))
        ctx.dtypes = [dtype for _, dtype in made]

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        kept = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        gradients = [None if g is None else (g * upstream).to(dtype) for g, dtype in kept]
        return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))


class _SemanticDistribution(_GradientsMade):
    """Row-chunked KL whose gradient is made in the forward pass (three matrix products per chunk)."""

    @staticmethod
    def forward(
        ctx: Any,
        initial: torch.Tensor,
        target: torch.Tensor,
        importance: torch.Tensor,
        embedding: torch.Tensor,
        rows: int,
    ) -> torch.Tensor:
        precision = accumulator(initial, target, embedding)
        count, vocabulary = len(initial), len(embedding)
        rows = min(rows, count)
        gradient = initial.new_empty(initial.shape, dtype=precision) if ctx.needs_input_grad[0] else None
        # log_q of the student and log_p of the teacher: the only two (rows, V) buffers, used by every chunk.
        student = initial.new_empty((rows, vocabulary), dtype=precision)
        teacher = torch.empty_like(student)
        total = initial.new_zeros((), dtype=precision)
        divide = _row_kernel(student) or _divergence_and_difference
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            log_q, log_p = (buffer[: part.stop - start] for buffer in (student, teacher))
            project(initial[part], embedding, log_q)
            project(target[part], embedding, log_p)
            divergence, difference = divide(log_q, log_p, embedding.dtype)
            weight = importance[part].to(precision)
            total += (weight * divergence).sum()
            if gradient is not None:
                # The weight multiplies the product, not q - p, where a tiny weight would lose bits.
                multiply(difference, embedding, gradient[part], spare=log_p)
                gradient[part] *= weight[:, None]
        _GradientsMade.keep(ctx, (gradient, initial.dtype))
        return total


class _LinearCrossEntropy(_GradientsMade):
    """Row-chunked head and cross-entropy; gradients (of a trained head too) made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        rows: int,
        cap: float | None,
    ) -> torch.Tensor:
        precision = accumulator(hidden, weight)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rows = min(rows, len(hidden))
        to_hidden = hidden.new_empty(hidden.shape, dtype=precision) if wants_hidden else None
        to_weight = weight.new_zeros(weight.shape, dtype=precision) if wants_weight else None
        buffer = hidden.new_empty((rows, len(weight)), dtype=precision)
        total = hidden.new_zeros((), dtype=precision)
        for start in range(0, len(hidden), rows):
            part = slice(start, min(start + rows, len(hidden)))
            logits, target = buffer[: part.stop - start], labels[part, None]
            project(hidden[part], weight, logits)
            if cap is not None:
                logits.div_(cap).tanh_().mul_(cap)
            normaliser = log_softmax_(logits)
            of_target = logits.gather(1, target)
            total -= of_target.sum()
            if to_hidden is not None or to_weight is not None:
                minus_one = -_slope(of_target + normaliser, cap)
                for block in column_blocks(logits):
                    some = logits[:, block]
                    slope = None if cap is None else _slope(some + normaliser, cap)
                    some.exp_()
                    if slope is not None:
                        some *= slope
                logits.scatter_add_(1, target, minus_one)  # softmax - one hot, times the cap's slope
            if to_weight is not None:
                to_weight.addmm_(logits.T, hidden[part].to(precision))
            if to_hidden is not None:
                multiply(logits, weight, to_hidden[part])
        _GradientsMade.keep(ctx, (to_hidden, hidden.dtype), (to_weight, weight.dtype))
        return total


def _slope(capped: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Return the derivative of `cap * tanh(z / cap)` by its value; of no cap 1."""
    return torch.ones_like(capped) if cap is None else 1 - (capped / cap).square()


def _row_kernel(logits: torch.Tensor) -> Callable | None:
    """Return the Triton kernel that does `_divergence_and_difference` on this device, if there is one."""
    if not logits.is_cuda or logits.dtype != torch.float32 or torch.version.hip:
        return None
    try:
        from basic_lite.method import row_kernel
    except ImportError:
        return None
    return row_kernel.divergence_and_difference if row_kernel.works_on(logits.device) else None


def _divergence_and_difference(
    student: torch.Tensor, teacher: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `KL(p || q)` of each row and `q - p`, where q and p are the softmax of the two logits.

    Args:
        student: `(R, V)` fp32 or fp64; overwritten by the difference.
        teacher: like `student`; overwritten.
        dtype: of the matrix that the difference will multiply; narrowed there.

    Returns:
        `(R,)` and `(R, V)`.
    """
    log_softmax_(student)
    log_softmax_(teacher)
    divergence = student.new_zeros(len(student))
    for block in column_blocks(student):
        p = teacher[:, block].exp()
        gap = teacher[:, block] - student[:, block]
        divergence += gap.mul_(p).sum(1)
        student[:, block].exp_().sub_(p)  # q - p, where log q stood
    return divergence, student
