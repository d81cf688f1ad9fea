"""Dropout that is drawn once more in backward gives PEFT's own numbers and keeps less."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from basic_lite.models.trainable import DroppedLinear, draw_again_in_backward


class Gated(nn.Module):
    """Three adapted layers that share one input, as query, key and value do, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.other = (nn.Linear(24, 40) for _ in range(3))
        self.down = nn.Linear(40, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x) + self.other(x))


@pytest.fixture
def twins():
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_dropout=0.3, target_modules=["gate", "up", "other", "down"])
    plain = get_peft_model(Gated(), config)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ours = deepcopy(plain)
    draw_again_in_backward(ours)
    return plain, ours


def run(model, x, half=False):
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = model(x)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_outputs_and_gradients_are_peft_s(twins, half, again):
    x = torch.randn(2, 7, 24)
    found = []
    for model in twins:
        model.train()
        if again:
            inner = model.base_model.model
            call = inner.forward
            inner.forward = lambda x, call=call: torch.utils.checkpoint.checkpoint(
                call, x, use_reentrant=False
            )
        found.append(run(model, x, half))
    assert len(found[0]) == 2 + 8
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)


def test_something_is_dropped_while_training_and_nothing_otherwise(twins):
    x, ours = torch.randn(3, 24), twins[1]
    ours.train()
    assert not torch.equal(ours(x), ours(x))
    with torch.no_grad():
        assert not torch.equal(ours(x), ours(x))
    ours.eval()
    assert torch.equal(ours(x), ours(x))
    assert torch.equal(ours(x), twins[0].eval()(x))


def test_layers_share_the_input_that_is_kept(twins):
    x, kept = torch.randn(5, 24, requires_grad=True), []
    for model in twins:
        found = {}

        def keep(tensor, found=found):
            storage = tensor.untyped_storage()
            if tensor.shape[-1] in (24, 40) and tensor.shape[0] == 5:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        model.train()
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(x)
        kept.append(sum(found.values()))
        del out
    # Four masks less, as wide as the inputs on a CPU; and of the copies of the inputs the two that were of x.
    assert kept[0] - kept[1] == 4 * 5 * (3 * 24 + 40) + 4 * 5 * 2 * 24


def test_names_and_settings_stay(twins):
    plain, ours = twins
    assert plain.state_dict().keys() == ours.state_dict().keys()
    assert ours.peft_config["default"].lora_dropout == 0.3
    changed = [module for module in ours.modules() if isinstance(module, DroppedLinear)]
    assert len(changed) == 4
    assert {module.dropout for module in changed} == {0.3}
