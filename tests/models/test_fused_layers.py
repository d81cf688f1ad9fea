"""Liger's functions, run by hand inside a streamlined layer, make the gradients of the layer without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "stage", "bits"),
    [
        ("llama", 2, 4),
        pytest.param("llama", 1, 16, marks=pytest.mark.full),
        ("gemma", 2, 16),
        pytest.param("phi3", 2, 16, marks=pytest.mark.full),
    ],
)
def test_ligers_functions_make_the_same_gradients(decoder, stage, bits):
    pytest.importorskip("triton", reason="triton exists for Linux alone")
    command = [sys.executable, str(HERE / "fused_layers.py"), decoder, str(stage), str(bits)]
    # Read when triton is imported, so another process.
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(f"{decoder}, stage {stage}") == 2
