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
from basic_lite.method.chunks import Chunk, chunk_of, rows_in_chunk
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


def log_softmax_(logits: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
    """`logits.copy_(logits.log_softmax(-1))` for `(R, C)`, without a second such tensor.

    `before` `(R,)` is the log-sum of columns that are not here, which belong to the same distribution.
    Returns `(R,)`, the log-sum of all columns.
    """
    highest = logits.amax(1, keepdim=True)
    if before is not None:
        highest = torch.maximum(highest, before[:, None])
    total = torch.zeros_like(highest) if before is None else (before[:, None] - highest).exp_()
    for block in column_blocks(logits):
        total += (logits[:, block] - highest).exp_().sum(1, keepdim=True)
    norm = highest + total.log_()
    logits.sub_(norm)
    return norm[:, 0]


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


def multiply(weights: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
    """`out.copy_(weights @ matrix)`; on CUDA in the matrix's precision with fp32 sums.

    Args:
        weights: `(R, V)` fp32 or fp64, or already in the matrix's precision; may be overwritten.
        matrix: `(V, D)`.
        out: `(R, D)` fp32 or fp64.
    """
    if matrix.dtype == out.dtype:
        torch.mm(weights, matrix, out=out)
    elif _accumulates_in_fp32(matrix):
        narrow = weights
        if weights.dtype != matrix.dtype:
            # Over the bytes of the fp32 weights: a block ends before the next one's begin.
            narrow = weights.view(matrix.dtype)[:, : weights.shape[1]]
            for block in column_blocks(weights):
                narrow[:, block] = weights[:, block].to(matrix.dtype)
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

    Returns `LossTerm("lm", sum over supervised tokens, their number)`; with none, a zero attached to the
    graph. Raises ValueError if shapes disagree, or the head has a bias.
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
    Initial and target are `(N, D)`, the importance `a` `(N,)`; the gradient goes to `initial` alone. Returns
    `LossTerm("das", sum over patches, number of images)`, in fp32.
    """
    precision = accumulator(refinement.initial, refinement.target)
    initial = F.normalize(refinement.initial.to(precision), dim=-1)
    target = F.normalize(refinement.target.to(precision), dim=-1)
    distance = (initial - target).square().sum(-1)
    return LossTerm("das", (refinement.importance.to(precision) * distance).sum(), refinement.images)


def semantic_distribution(
    refinement: Refinement, embedding: torch.Tensor, chunk: Chunk | int | None = None
) -> LossTerm:
    """`L_sds`: KL divergence between the vocabulary distributions of target and initial embeddings.

    ```python
    log_p = (target @ E.T).float().log_softmax(-1)   # teacher, constant
    log_q = (v @ E.T).float().log_softmax(-1)
    total = (a * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()     # d total / d v_i = a_i E^T (q_i - p_i)
    ```
    with three matrix products where whole rows fit and at most four in tiles of the vocabulary, and
    `chunk.bytes(V, D, ...) + 4 * N * D` bytes beyond the inputs (plus the column blocks). Logits are fp32:
    from bf16 logits the gradient is wrong by up to 10 %.

    Args:
        refinement: initial and target `(N, D)`, importance `(N,)`; the gradient goes to `initial` alone.
        embedding: `(V, D)` the raw token embedding matrix, a constant here.
        chunk: patches and tokens at once, or a number of patches and all tokens; `None` chooses by size.

    Returns `LossTerm("sds", sum over patches, number of images)`, in fp32. Raises ValueError if a chunk is
    empty.
    """
    if chunk is None:
        chunk = chunk_of(len(refinement.initial), *embedding.shape, embedding.element_size())
    elif isinstance(chunk, int):
        chunk = Chunk(chunk, len(embedding))
    constants = refinement.target.detach(), refinement.importance.detach(), embedding.detach()
    total = _SemanticDistribution.apply(refinement.initial, *constants, chunk)
    return LossTerm("sds", total, refinement.images)


class _SemanticDistribution(Function):
    """KL by chunks of rows and tiles of the vocabulary; its gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        initial: torch.Tensor,
        target: torch.Tensor,
        importance: torch.Tensor,
        embedding: torch.Tensor,
        chunk: Chunk,
    ) -> torch.Tensor:
        precision = accumulator(initial, target, embedding)
        divergence = initial.new_zeros(len(initial), dtype=precision)
        gradient = initial.new_empty(initial.shape, dtype=precision) if ctx.needs_input_grad[0] else None
        norms = divergence.new_full((2, len(initial)), -float("inf"))
        walk = _Walk(embedding, precision, min(chunk.rows, len(initial)), min(chunk.columns, len(embedding)))
        for start in range(0, len(initial), chunk.rows):
            part = slice(start, start + chunk.rows)
            made = None if gradient is None else gradient[part]
            walk(initial[part], target[part], norms[:, part], divergence[part], made)
        # The weight multiplies the product, not q - p, where a tiny weight would lose bits.
        weight = importance.to(precision)
        ctx.save_for_backward(gradient, weight)
        ctx.dtype = initial.dtype
        return (weight * divergence).sum()

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, weight = ctx.saved_tensors
        if gradient is None:
            return (None,) * 5
        scaled = torch.empty_like(gradient, dtype=ctx.dtype)  # narrowed on the way, not in a second pass
        torch.mul(gradient, (upstream * weight)[:, None], out=scaled)
        return scaled, None, None, None, None


class _Walk:
    """One chunk of rows through the vocabulary, tile by tile, in buffers that all chunks use.

    The hard part: `q - p` of a tile needs sums over the whole vocabulary, which are known after the last tile
    alone. Walking a second time would cost two more products. Here every tile is normalised with the
    columns up to its end, and what earlier ones left is corrected by the shares `r` to which they have
    shrunk: with `K` the divergence, `G = E^T (q - p)` and `M = E^T p` of the columns so far,

    ```python
    r_q, r_p = exp(old log-sum - new log-sum)             # of student and teacher
    K = r_p * (K + log(r_p / r_q)) + (p * (log_p - log_q)).sum(of the tile)
    G = r_q * G + (r_q - r_p) * M + (q - p)[tile] @ E[tile]
    M = r_p * M + p[tile] @ E[tile]                       # the fourth product; not of the last tile
    ```
    That is exact. Keeping `E^T q` and `E^T p` apart would be simpler, but what bf16 rounds off each would not
    be small where q and p are alike, as it is in `q - p`; what it rounds off `M` counts by `r_q - r_p`, which
    is at most the sum of all `|q - p|`. With one tile it is the plain formula: no `M`, no correction.
    """

    def __init__(self, embedding: torch.Tensor, precision: torch.dtype, rows: int, columns: int) -> None:
        self.embedding, self.columns = embedding, columns
        width = embedding.shape[1]
        kind = embedding.dtype if _accumulates_in_fp32(embedding) else precision
        # Student's and teacher's rows lie one below the other: one product reads the matrix once for both.
        self.states = embedding.new_empty((2 * rows, width), dtype=kind)
        self.logits = embedding.new_empty(2 * rows * columns, dtype=precision)
        self.tiled = columns < len(embedding)
        # Of a tile `(q - p) E` and `p E`, and below them M.
        self.sums = embedding.new_empty((3 * rows if self.tiled else 0, width), dtype=precision)
        self.divide = _row_kernel(self.logits) or _divergence_and_difference

    def __call__(
        self,
        initial: torch.Tensor,
        target: torch.Tensor,
        norms: torch.Tensor,  # `(2, R)`, `-inf`; afterwards both log-sums
        divergence: torch.Tensor,  # `(R,)`, 0; afterwards K
        gradient: torch.Tensor | None,  # `(R, D)`, anything; afterwards G. `None` where it is not wanted
    ) -> None:
        """Go through the vocabulary with the rows of student (`initial`) and teacher (`target`), `(R, D)`."""
        rows, vocabulary = len(initial), len(self.embedding)
        states = self.states[: 2 * rows]
        states[:rows], states[rows:] = initial, target
        if gradient is not None and self.tiled:
            gradient.zero_()
            self.sums.zero_()
        for start in range(0, vocabulary, self.columns):
            matrix = self.embedding[start : start + self.columns]
            last = start + self.columns >= vocabulary
            logits = self.logits[: 2 * rows * self.columns].view(2 * rows, self.columns)[:, : len(matrix)]
            project(states, matrix, logits)
            # What changes logits one by one, as a cap does, would stand here; its derivative on `weights`.
            before = norms.clone() if start else None
            summed, weights = self.divide(logits.unflatten(0, (2, rows)), norms, matrix.dtype, not last)
            shares = None
            if before is not None:
                logs = before.sub_(norms)
                shares = logs.exp()
                divergence.add_(logs[1] - logs[0]).mul_(shares[1])
            divergence.add_(summed)
            if gradient is not None:
                self._add_gradient(gradient, weights if not last else weights[:1], matrix, shares)

    def _add_gradient(
        self,
        gradient: torch.Tensor,  # `(R, D)`, G
        weights: torch.Tensor,  # `(2, R, C)`, or `(1, R, C)` without p
        matrix: torch.Tensor,  # `(C, D)`
        # `(2, R)`, to what student's and teacher's earlier columns have shrunk; `None` without any
        shares: torch.Tensor | None,
    ) -> None:
        """Add a tile to G, and to M where p is among the weights."""
        if not self.tiled:
            multiply(weights[0], matrix, gradient)
            return
        rows = len(gradient)
        teacher = self.sums[2 * rows : 3 * rows]
        if shares is not None:
            ours, theirs = shares[:, :, None]
            gradient.mul_(ours).addcmul_(teacher, ours - theirs)
            teacher.mul_(theirs)
        made = self.sums[: len(weights) * rows]
        multiply(weights.flatten(0, 1), matrix, made)
        gradient.add_(made[:rows])
        if len(weights) > 1:
            teacher.add_(made[rows:])


class _LinearCrossEntropy(Function):
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
            normaliser = log_softmax_(logits)[:, None]
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
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable  # whose types make `ctx` positional
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((None if g is None else (g * upstream).to(dtype)) for g, dtype in kept), None, None, None


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
    logits: torch.Tensor, norms: torch.Tensor, dtype: torch.dtype, keep_teacher: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of a tile in `KL(p || q)`, and `q - p`, where q and p are softmaxes up to its end.

    Args:
        logits: `(2, R, C)` student's and teacher's, fp32 or fp64; overwritten by the weights.
        norms: `(2, R)` log-sums of the columns before the tile, `-inf` without any; afterwards up to its end.
        dtype: of the matrix that the weights will multiply, which the kernel narrows them to.
        keep_teacher: whether p is wanted too.

    Returns:
        `(R,)`, and `(2, R, C)` weights: `q - p`, and p if it is wanted.
    """
    student, teacher = logits
    for rows, norm in zip(logits, norms, strict=True):
        norm.copy_(log_softmax_(rows, norm))
    divergence = student.new_zeros(len(student))
    for block in column_blocks(student):
        gap = teacher[:, block] - student[:, block]
        p = teacher[:, block].exp_()
        divergence += gap.mul_(p).sum(1)
        student[:, block].exp_().sub_(p)  # q - p, where log q stood
    return divergence, logits
