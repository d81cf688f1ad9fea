"""The Triton kernel against the formula: in Triton's interpreter on a CPU, compiled on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (it exists for Linux alone)")

SHAPES = [(3, 5000, 1.0), (4, 4096, 8.0), (1, 9000, 300.0), (2, 17, 3.0), (3, 8193, 1000.0)]


def check(device: str) -> None:
    """Compare value, difference and their weighted product with fp64, for all shapes and scales."""
    from basic_lite.method.row_kernel import divergence_and_difference

    generator = torch.Generator().manual_seed(0)
    for rows, columns, scale in SHAPES:
        buffers = (torch.randn(2, rows, columns + 3, generator=generator) * scale).to(device)
        logits = buffers[:, :, :columns]  # a part of a larger buffer, as in the last tile
        kept = buffers.clone()
        for before in (-float("inf"), float(logits.max())):  # of a first tile, and of a later one
            norms = torch.full((2, rows + 2), before, device=device)[:, :rows]
            norms[1] += 0.5
            wide = torch.cat([norms[:, :, None], kept[:, :, :columns]], 2).double()
            log_q, log_p = wide.log_softmax(-1)[:, :, 1:]
            expected = (log_p.exp() * (log_p - log_q)).sum(-1)
            weights = torch.stack([log_q.exp() - log_p.exp(), log_p.exp()])
            for keep_teacher in (False, True):
                buffers.copy_(kept)
                after = norms.clone()
                value, exact = divergence_and_difference(logits, after, torch.float32, keep_teacher)
                torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(after.double(), wide.logsumexp(-1), rtol=1e-6, atol=1e-6)
                exact = exact.clone()
                assert (exact[0].double() - weights[0]).norm() < 1e-5 * (1 + scale) * weights[0].norm()
                buffers.copy_(kept)
                value, narrow = divergence_and_difference(logits, norms.clone(), torch.bfloat16, keep_teacher)
                torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
                assert narrow.data_ptr() == logits.data_ptr()
                assert torch.equal(buffers[:, :, columns:], kept[:, :, columns:])
                assert keep_teacher or torch.equal(buffers[1], kept[1])
                for ours, theirs, wanted in list(zip(narrow, exact, weights, strict=True))[
                    : 1 + keep_teacher
                ]:
                    rounded = (theirs.bfloat16().double() - wanted).norm()
                    # The interpreter cuts bits off where a GPU rounds.
                    allowed = 2**-7 * wanted.norm() if device == "cpu" else 1.01 * rounded
                    assert (ours.double() - wanted).norm() <= allowed


def check_term() -> None:
    """The whole of `L_sds` with the kernel inside, against the torch code."""
    from basic_lite.method import losses, row_kernel
    from basic_lite.method.chunks import Chunk
    from basic_lite.method.types import Refinement

    torch.manual_seed(0)
    embedding, target = torch.randn(300, 16), torch.randn(10, 16)
    results = []
    for kernel in (None, row_kernel.divergence_and_difference):
        losses._row_kernel = lambda logits, kernel=kernel: kernel
        for chunk in (4, Chunk(4, 128)):
            initial = torch.linspace(-1, 1, 160).view(10, 16).requires_grad_()
            seen = Refinement(initial, target, torch.linspace(0.1, 1, 10), torch.zeros(10).long(), 1)
            total = losses.semantic_distribution(seen, embedding, chunk).total
            total.backward()
            results.append((total.detach(), initial.grad))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


def test_the_interpreted_kernel_equals_the_formula():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import test_row_kernel as t; t.check('cpu'); t.check_term()"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when triton is imported, so another process
    folder = os.path.dirname(__file__)
    command = [sys.executable, "-c", code, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_compiled_kernel_equals_the_formula():
    check("cuda")
