"""A gradient that is not finite changes nothing, names its rows, and after three in a row ends the run."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny import tiny_llava
from tiny_trainer import Rows, Scale, Waits, log_of, trainer, weights

from basic_lite.method.types import Diverged
from basic_lite.training.guards import DUMP, FiniteGuard


class Poison(Scale):
    """Makes the pictures of some micro-batches infinite; they are counted as they come."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.count = bad, 0

    def normalise(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.count += 1
        found = super().normalise(pixels, dtype)
        return found / 0 if self.count in self.bad else found


def poisoned(tmp_path, bad: set[int], **settings):
    rows = Rows(36)
    rows.rows = [row for row in rows.rows if row["pixels"]]
    run = trainer(tmp_path, tiny_llava(), rows, batch=2, accumulation=1, **settings)
    run.transform = Poison(bad)
    return run


def test_a_skipped_step_leaves_weights_and_moments(tmp_path):
    seen = []

    class Note:
        def __call__(self, run):
            state = {id(p): copy.deepcopy(s) for p, s in run.optimizer.optimizer.state.items()}
            seen.append((weights(run.model), list(state.values())))

    run, note = poisoned(tmp_path, {3}, max_steps=4), Note()
    whole = run._maybe_log_save_evaluate
    run._maybe_log_save_evaluate = lambda *a, **k: (note(run), whole(*a, **k))
    run.train()
    (second, moments), (third, same), (fourth, _) = seen[1:4]
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(moments, same, strict=True) for key in a)
    assert any(not torch.equal(third[name], fourth[name]) for name in second)
    assert all(torch.isfinite(value).all() for value in fourth.values())
    dumped = [json.loads(line) for line in (tmp_path / DUMP).read_text().splitlines()]
    assert [line["step"] for line in dumped] == [3]
    assert dumped[0]["grad_norm"] == "nan"
    assert {"lm", "das", "sds"} <= dumped[0].keys()
    assert len(dumped[0]["rows"]) == 2
    log = log_of(tmp_path)
    assert [row.get("skipped") for row in log] == [None, None, 1, None]
    assert log[2]["lm"] is None
    assert all(row["loss"] is not None for row in log)


def test_three_in_a_row_end_the_run(tmp_path):
    run = poisoned(tmp_path, {2, 4, 5, 7, 8, 9}, max_steps=12)
    with pytest.raises(Diverged, match=r"3 steps in a row, up to step 9, .*grad_norm.*--resume"):
        run.train()
    assert [json.loads(line)["step"] for line in (tmp_path / DUMP).open()] == [2, 4, 5, 7, 8, 9]


@pytest.mark.parametrize("fused", [True, False])
def test_adam_is_held_on_the_device_and_on_the_host(tmp_path, fused):
    """The fused kernel reads the verdict itself: on a GPU nobody waits for it."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1, fused=fused)
    guard = FiniteGuard(tmp_path, lambda rows: rows)
    for step in range(1, 7):
        parameter.grad = torch.randn(5)
        if step == 3:
            parameter.grad[2] = float("nan")
        before = parameter.detach().clone()
        state = copy.deepcopy(optimizer.state.get(parameter, {}))
        norm = parameter.grad.norm()
        with Waits() as waits:
            guard.collect = lambda wait=False: None
            guard.judge(optimizer, norm, {}, step)
        assert not (fused and waits.found)
        del guard.collect
        guard.collect()
        optimizer.step()
        assert torch.equal(before, parameter) == (step == 3)
        if step == 3:
            assert all(torch.equal(state[key], optimizer.state[parameter][key]) for key in state)
    assert guard.skipped == 1
    assert optimizer.state[parameter]["step"] == 5
