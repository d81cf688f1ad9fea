"""Where a run computes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from basic_lite.memory import available
from basic_lite.models.devices import choose_device, choose_dtype


def test_a_process_takes_the_gpu_of_its_number_and_needs_one(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank in (None, "1"):
        if rank:
            monkeypatch.setenv("LOCAL_RANK", rank)
        assert choose_device() == "cuda"
    assert taken == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="has 2 GPUs, one for each process: --num_processes 2"):
        choose_device()
    assert taken == [0, 1]


@pytest.mark.parametrize(("major", "dtype"), [(7, None), (8, torch.bfloat16)])
def test_emulated_bf16_is_none(monkeypatch, major, dtype):
    """torch computes in bf16 before Ampere, too: slowly, and without Triton's kernels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert choose_dtype("fp32", "cuda") == torch.float32
    assert choose_dtype("auto", "cpu") == torch.float32
    assert choose_dtype("bf16", "cpu") == torch.bfloat16
    if dtype is not None:
        assert choose_dtype("auto", "cuda") == dtype
        return
    for precision in ("auto", "bf16"):
        with pytest.raises(ValueError, match="this GPU has no bf16; add --precision fp32"):
            choose_dtype(precision, "cuda")


def test_what_the_allocator_holds_unused_is_free(monkeypatch):
    """A second benchmark of a process has the memory of the first one."""
    held = {"mem_get_info": (1 << 30, 24 << 30), "memory_reserved": 20 << 30, "memory_allocated": 8 << 30}
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert available.available_bytes("cuda") == 13 << 30
