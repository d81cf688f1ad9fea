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
        buffers = torch.randn(2, rows + 1, columns, generator=generator) * scale
        student, teacher = buffers.to(device)[:, :rows]  # a part of a larger buffer, as in the last chunk
        log_q, log_p = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
        expected = (log_p.exp() * (log_p - log_q)).sum(-1)
        difference = log_q.exp() - log_p.exp()
        kept = student.clone(), teacher.clone()
        value, exact = divergence_and_difference(student, teacher, torch.float32)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        assert (exact.double() - difference).norm() < 1e-5 * (1 + scale) * difference.norm()
        student.copy_(kept[0])
        value, narrow = divergence_and_difference(student, teacher, torch.bfloat16)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(teacher, kept[1])
        assert narrow.data_ptr() == student.data_ptr()
        rounded = (exact.bfloat16().double() - difference).norm()
        # The interpreter cuts bits off where a GPU rounds.
        assert (narrow.double() - difference).norm() < (2.5 if device == "cpu" else 1.01) * rounded


def check_term() -> None:
    """The whole of `L_sds` with the kernel inside, against the torch code."""
    from basic_lite.method import losses, row_kernel
    from basic_lite.method.types import Refinement

    torch.manual_seed(0)
    embedding, target = torch.randn(300, 16), torch.randn(10, 16)
    found = []
    for kernel in (row_kernel.divergence_and_difference, None):
        losses._row_kernel = lambda logits, kernel=kernel: kernel
        initial = torch.linspace(-1, 1, 160).view(10, 16).requires_grad_()
        seen = Refinement(initial, target, torch.linspace(0.1, 1, 10), torch.zeros(10).long(), 1)
        losses.semantic_distribution(seen, embedding, 4).total.backward()
        found.append(initial.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


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
