"""Where a run computes."""

from __future__ import annotations

import pytest
import torch

from basic_lite.models.devices import choose_device


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
