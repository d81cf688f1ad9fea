"""`pytest -m gpu`: the list of everything that must be seen on a card, one line each.

`BASIC_LITE_GPU_TESTS_ON_CPU=1 pytest -m gpu tests/gpu` runs the same bodies on the CPU, which shows that they
are right except for the device. The kernels' own tests stand beside what they test (`test_row_kernel`,
`test_fused`).
"""

from __future__ import annotations

import os

import pytest
import torch
from embedded import needs_parts
from gpu.device_checks import CHECKS, Workshop

pytestmark = [
    pytest.mark.gpu,
    needs_parts,
    pytest.mark.skipif(
        not (torch.cuda.is_available() or os.environ.get("BASIC_LITE_GPU_TESTS_ON_CPU")),
        reason="needs a CUDA device, or BASIC_LITE_GPU_TESTS_ON_CPU=1",
    ),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("name", CHECKS)
def test_it_runs(name, shop):
    CHECKS[name](shop)
