"""Parts are built beside one another, and a failure ends all of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed

from parts.beside import Part, build_beside
from parts.pretrain_decoder import Lesson, _average_gradients, train_decoder
from parts.quick_builds import broken, counted, endless
from parts.vocabulary import train_tokenizer


def test_each_part_gives_its_probe_and_tells_of_its_steps():
    said = []
    probes = build_beside(
        {"one": Part(counted), "two": Part(counted)},
        lambda name, step, losses: said.append((name, step, losses)),
    )
    assert probes == {"one": {"threads": 1}, "two": {"threads": 1}}
    assert {("one", 249, (("loss", 249.0),)), ("two", 249, (("loss", 249.0),))} <= {
        (name, step, tuple(losses.items())) for name, step, losses in said
    }


def test_a_failure_stops_the_others(capfd):
    with pytest.raises(RuntimeError, match="building the broken failed"):
        build_beside({"broken": Part(broken), "endless": Part(endless)}, lambda *step: None)
    assert "a part that cannot be built" in capfd.readouterr().err


def train(folder: Path, progress):
    """Average known gradients, then train a decoder and leave its weights."""
    layer = torch.nn.Linear(2, 3)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 1.0 + distributed.get_rank())
    _average_gradients(layer)
    tokenizer = train_tokenizer(seed=0, scenes=100)
    model = train_decoder(Lesson(tokenizer, seed=3, steps=2, rows=4))
    torch.save([p.detach() for p in model.parameters()], folder / f"{distributed.get_rank()}.pt")
    return {"least": min(p.grad.min().item() for p in layer.parameters())}


def test_processes_that_share_a_decoder_average_gradients_and_end_with_the_same_weights(tmp_path):
    probes = build_beside({"decoder": Part(partial(train, tmp_path), 2)}, lambda *step: None)
    assert probes == {"decoder": {"least": 1.5}}
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
