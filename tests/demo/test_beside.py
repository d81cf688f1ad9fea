"""Parts are built beside one another, and a failure ends all of them."""

from __future__ import annotations

import time

import pytest
import torch

from basic_lite.demo.beside import build_beside


def counted(progress):
    for step in range(250):
        progress(step, {"loss": float(step)})
    return {"threads": torch.get_num_threads()}


def endless(progress):
    time.sleep(1000)


def broken(progress):
    raise ValueError("a part that cannot be built")


def test_each_part_gives_its_probe_and_tells_of_its_steps():
    said = []
    probes = build_beside(
        {"one": counted, "two": counted}, 1, lambda name, step, losses: said.append((name, step, losses))
    )
    assert probes == {"one": {"threads": 1}, "two": {"threads": 1}}
    assert {("one", 249, (("loss", 249.0),)), ("two", 249, (("loss", 249.0),))} <= {
        (name, step, tuple(losses.items())) for name, step, losses in said
    }


def test_a_failure_stops_the_others(capfd):
    with pytest.raises(RuntimeError, match="building the broken failed"):
        build_beside({"broken": broken, "endless": endless}, 1, lambda *step: None)
    assert "a part that cannot be built" in capfd.readouterr().err
