"""Measure `L_sds` beside its three products, Liger's and TRL's divergences and the naive code, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.autograd import Function

from basic_lite.files import one_line
from basic_lite.memory.available import peak_mib
from basic_lite.method.chunks import Chunk, chunk_of, rows_in_chunk
from basic_lite.method.losses import semantic_distribution
from basic_lite.method.types import Refinement

Facts = dict[str, Any]

LIGER, TRL = "liger fused JSD", "trl chunked divergence"

Divergence = Callable[[Refinement, torch.Tensor], torch.Tensor]
"""`L_sds` of a refinement and the `(V, D)` embedding matrix."""

TILES: int = 4
"""Of the vocabulary, where tiles are measured beside the whole rows that are taken by shape."""


def measure_sds(
    rows: int, width: int, vocabulary: int, device: str, dtype: torch.dtype, repeats: int
) -> list[Facts]:
    """Time one forward and backward pass of every implementation that runs here, on `N` rows, `D` and `V`.

    They take turns within a round, so that a slow minute of the machine meets them all; the median of
    `repeats` rounds counts, after one that warms up.

    Returns:
        One row each: name, median milliseconds, MiB beyond the inputs (`None` on a CPU, where the
        allocator does not tell), and the ratio to the three products. What cannot run says why. `L_sds` is
        cut by shape, "patches x tokens"; the other way, in tiles or by whole rows, stands below it.
    """
    generator = torch.Generator(device).manual_seed(0)
    embedding = torch.randn(vocabulary, width, generator=generator, device=device, dtype=dtype) * 0.02
    initial = torch.randn(rows, width, generator=generator, device=device, dtype=dtype).requires_grad_()
    target = torch.randn(rows, width, generator=generator, device=device)
    importance = torch.rand(rows, generator=generator, device=device)
    seen = Refinement(initial, target, importance, torch.zeros(rows, dtype=torch.long, device=device), 1)
    whole = Chunk(rows_in_chunk(rows, vocabulary), vocabulary)
    ours = {"L_sds": chunk_of(rows, vocabulary, width, embedding.element_size())}
    if ours["L_sds"].columns < vocabulary:
        ours["L_sds, whole rows"] = whole
    else:
        ours["L_sds, in tiles"] = Chunk(ours["L_sds"].rows, -(-vocabulary // TILES))

    def products() -> None:
        """Two of (rows, D) x (D, V), one of (rows, V) x (V, D), in chunks of whole rows."""
        for start in range(0, rows, whole.rows):
            part = slice(start, start + whole.rows)
            for states in (initial.detach()[part], target[part].to(dtype)):
                logits = states @ embedding.T
            torch.mm(logits, embedding)

    def with_gradient(divergence: Divergence) -> None:
        divergence(seen, embedding).backward()

    def of_chunk(chunk: Chunk) -> Divergence:
        return lambda seen, embedding: semantic_distribution(seen, embedding, chunk).total

    runs: dict[str, Callable[[], None]] = {"three products": products}
    missing = _missing(device)
    others = {"naive": naive, LIGER: liger_divergence, TRL: trl_divergence}
    for name, divergence in ({name: of_chunk(chunk) for name, chunk in ours.items()} | others).items():
        if name not in missing:
            runs[name] = partial(with_gradient, divergence)
    measured = _in_turn(runs, initial, device, repeats)
    base = next(row["ms"] for row in measured if row["name"] == "three products")
    for row in measured:
        if "ms" in row:
            row["ratio"] = round(row["ms"] / base, 3)
        if row["name"] in ours:
            row["chunk"] = f"{ours[row['name']].rows} x {ours[row['name']].columns}"
    return measured + [{"name": name, "why not": reason} for name, reason in missing.items()]


def _missing(device: str) -> dict[str, str]:
    """Return which of the others' divergences cannot run here, and why."""
    missing = {} if device == "cuda" else {LIGER: "its kernels need a GPU"}
    try:
        import_module("trl.kernels.chunked_divergence")
    except ImportError as error:
        missing[TRL] = f"pip install 'trl>=1.16' brings it ({one_line(error)})"
    return missing


def naive(seen: Refinement, embedding: torch.Tensor) -> torch.Tensor:
    """Return `L_sds` by its formula, with whole logits."""
    log_p = (seen.target.to(embedding.dtype) @ embedding.T).float().log_softmax(-1)
    log_q = (seen.initial @ embedding.T).float().log_softmax(-1)
    return (seen.importance * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()


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
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # pyright: ignore[reportMissingImports]

    # It rounds the teacher's states as it does the student's.
    teacher = seen.target.to(embedding.dtype)
    # Student and teacher, each with its head and bias; 0.0 is KL(teacher || student).
    given = seen.initial, embedding, None, teacher, embedding, None, 0.0
    divergence, _entropy = ChunkedDivergenceFunction.apply(*given)
    return (seen.importance * divergence).sum()


def _in_turn(
    runs: dict[str, Callable[[], None]], leaf: torch.Tensor, device: str, repeats: int
) -> list[Facts]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    failed: set[str] = set()
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if name in failed:
                continue
            leaf.grad, held = None, 0.0
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated() / 2**20
            start = time.perf_counter()
            try:
                run()
            except torch.OutOfMemoryError:
                failed.add(name)
                continue
            if device == "cuda":
                torch.cuda.synchronize()
                peaks[name] = round(peak_mib(device) - held, 1)
            if turn:
                times[name].append(time.perf_counter() - start)
    rows: list[Facts] = []
    for name, seconds in times.items():
        if name in failed:
            rows.append({"name": name, "why not": "out of memory"})
        else:
            median = sorted(seconds)[len(seconds) // 2]
            rows.append({"name": name, "ms": round(1000 * median, 2), "extra MiB": peaks.get(name)})
    return rows


def markdown(rows: list[Facts]) -> str:
    """Return a Markdown table, with the columns of the first row that has most of them."""
    columns = list(max(rows, key=len))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column) for column in columns]
        shown = [("-" if cell is None else str(cell)) for cell in cells]
        if "why not" in row:
            shown[1] = str(row["why not"])
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
