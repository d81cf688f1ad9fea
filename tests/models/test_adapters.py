"""Adapted layers that run in groups give PEFT's numbers, from fewer operations."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import DECODERS, adapted, tiny_batch, tiny_llava
from tiny_trainer import trainer
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from basic_lite.models.adapters import forget_after_steps, group_adapters
from basic_lite.models.frozen import Scales, frozen_weights_of, members
from basic_lite.models.parts import parts_of
from basic_lite.models.trainable import draw_again_in_backward

EVERY = r".*language_model.*\.([qkvo]_proj|qkv_proj|gate_up_proj|gate_proj|up_proj|down_proj)"


class Layer(nn.Module):
    """A decoder layer's linear layers, and who shares an input with whom."""

    def __init__(self, width: int = 24, inner: int = 40) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(width, width, bias=name != "o_proj"))
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.o_proj(torch.tanh(self.q_proj(x)) * self.k_proj(x) + self.v_proj(x))
        return x + self.down_proj(torch.sigmoid(self.gate_proj(x)) * self.up_proj(x))


class Decoder(nn.Module):
    """Two such layers, recomputing or not."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.layers, self.again = nn.ModuleList([Layer(), Layer()]), again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.again else layer(x)
        return x


def with_adapters(dropout: float = 0.0, again: bool = False) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=6, lora_dropout=dropout, target_modules=r".*_proj", init_lora_weights=False
    )
    return get_peft_model(Decoder(again), config).train()


def grouped(model: nn.Module) -> tuple[nn.Module, list]:
    model = deepcopy(model)
    return model, group_adapters(model.base_model.model.layers)


def gradients(model: nn.Module, x: torch.Tensor, seed: int = 1) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def error(given: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    return max(
        float((a.detach().double() - b.detach()).norm() / b.detach().norm())
        for a, b in zip(given, truth, strict=True)
    )


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("decoder", DECODERS)
def test_outputs_and_gradients_are_peft_s(decoder, bits, passes):
    model = adapted(tiny_llava(decoder), target_modules=EVERY, lora_alpha=7)
    truth = deepcopy(model)
    if bits == 4:
        _quantise(model)
        _dequantise(truth, model)
    ours, batch = deepcopy(model), tiny_batch()
    truth, own = truth.double(), deepcopy(truth).double()  # in fp64 what is left is the order of sums
    for each in (ours, own):
        assert group_adapters(parts_of(each).decoder.layers)
    results = []
    for each in (model, ours, truth, own):
        each.train()
        inputs = batch | {"pixel_values": batch["pixel_values"].to(next(each.parameters()).dtype)}
        for _ in range(passes):
            each(**inputs).loss.backward()
        results.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
    assert all(result.keys() == results[0].keys() for result in results)
    single, own_single, double, own_double = (list(result.values()) for result in results)
    assert error(own_double, double) < 1e-12
    assert error(own_single, double) < max(1e-5, 2 * error(single, double))


def _dequantise(model: nn.Module, quantised: nn.Module) -> None:
    """Give a model the weights that a quantised one stands for."""
    plain = dict(model.named_modules())
    for name, module in quantised.named_modules():
        if hasattr(module, "lora_A"):
            weight = module.base_layer.weight
            plain[name].base_layer.weight.data = bnb.functional.dequantize_4bit(
                weight.data, weight.quant_state
            )


def test_in_fp32_the_error_is_no_larger_than_peft_s():
    plain, x = with_adapters(), torch.randn(4, 9, 24)
    truth = gradients(deepcopy(plain).double(), x.double())
    errors = [error(gradients(model, x), truth) for model in (plain, grouped(plain)[0])]
    assert 0 < errors[1] < max(1.2 * errors[0], 1e-6)


def _quantise(model: nn.Module) -> None:
    """Put 4-bit bases under PEFT's layers, with PEFT's own class for them."""
    from peft.tuners.lora.bnb import Linear4bit

    for module in model.modules():
        if hasattr(module, "lora_A"):
            base = module.base_layer
            small = bnb.nn.Linear4bit(
                base.in_features, base.out_features, base.bias is not None, torch.float32, quant_type="nf4"
            )
            small.weight = bnb.nn.Params4bit(
                base.weight.data, requires_grad=False, quant_type="nf4", blocksize=64
            )
            module.base_layer = small.to("cpu")
            module.__class__ = Linear4bit


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_in_bf16_the_error_is_no_larger_than_peft_s(again):
    plain, x = with_adapters(again=again), torch.randn(4, 9, 24)
    ours, _ = grouped(plain)
    truth = gradients(deepcopy(plain).double(), x.double())
    errors = []
    for model in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append(error(gradients(model, x), truth))
    assert 1e-4 < errors[1] < 1.1 * errors[0]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_what_backward_draws_is_what_forward_drew(again):
    dropout, x = 0.3, torch.randn(2, 7, 24, dtype=torch.float64)
    model = with_adapters(dropout, again).double()
    ours, groups = grouped(model)
    given = gradients(ours, x)
    # The formula, with the masks that the groups draw from the same state of torch's generator.
    torch.manual_seed(1)
    masks = []
    for index in range(2):
        seed = int(torch.empty((), dtype=torch.int64).random_())
        for group in [
            g for g in groups if g.layers[0] in list(ours.base_model.model.layers[index].modules())
        ]:
            width = group.layers[0].in_features
            drawn = group.mask(torch.zeros(14, width, dtype=torch.float64), seed + group.number)
            masks.append(dict(zip(group.layers, drawn.view(len(group.layers), 2, 7, width), strict=True)))
    mask_of = {layer: mask for one in masks for layer, mask in one.items()}
    plain = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for name, module in ours.named_modules():
        if hasattr(module, "lora_A"):
            plain[name].lora_dropout["default"] = _Fixed(mask_of[module] / (1 - dropout))
    assert error(given, gradients(model, x)) < 1e-12


class _Fixed(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


def test_every_layer_of_a_group_has_a_mask_of_its_own():
    _, groups = grouped(with_adapters(0.25))
    mask = groups[0].mask(torch.ones(500, 24), 5)
    assert mask.shape == (3, 500, 24)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    kept = mask.flatten(1)
    assert (kept.mean(1) - 0.75).abs().max() < 4 * (0.75 * 0.25 / 12_000) ** 0.5  # four standard errors
    together = (kept[0] * kept[1]).mean()
    assert abs(together - 0.75**2) < 4 * 0.5 / 12_000**0.5  # independent
    assert not torch.equal(mask, groups[0].mask(torch.ones(500, 24), 6))
    assert torch.equal(mask, groups[0].mask(torch.ones(500, 24), 5))


def test_a_new_draw_for_every_pass_and_none_in_evaluation():
    ours, _ = grouped(with_adapters(0.3))
    x = torch.randn(3, 24)
    assert not torch.equal(ours(x), ours(x))
    ours.eval()
    assert torch.equal(ours(x), with_adapters(0.3).eval()(x))


class _PastTheVersion(torch.optim.SGD):
    """Writes as bitsandbytes' optimizers do: autograd does not see it."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])


@pytest.mark.parametrize("kind", [torch.optim.AdamW, _PastTheVersion])
def test_a_step_s_weights_are_the_next_step_s(kind):
    plain, x, ends = with_adapters(), torch.randn(5, 24), []
    for model, groups in ((plain, []), grouped(plain)):
        optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        forget_after_steps(groups, optimizer)
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([p.detach() for p in model.parameters()])
    assert error(ends[1], [p.double() for p in ends[0]]) < 1e-5


def test_no_gradient_outlives_its_step(tmp_path):
    """What the adapters' gradients are cut out of is gone when the next forward pass needs the memory."""
    held = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            held.extend(gradient for group in made.groups for gradient in group.gradients)

    made = trainer(tmp_path, adapted(tiny_llava()), max_steps=2, callbacks=[Look()])
    made.train()
    assert made.groups
    assert not held


def test_switched_off_or_given_another_input_peft_s_own_path_answers():
    plain = with_adapters()
    ours, x = grouped(plain)[0], torch.randn(5, 24)
    with plain.disable_adapter(), ours.disable_adapter():
        assert torch.equal(plain(x), ours(x))
    layer, other = ours.base_model.model.layers[0], plain.base_model.model.layers[0]
    layer.q_proj(x)  # k and v of x wait, and are never asked for
    y = torch.randn(5, 24)
    assert torch.allclose(layer.k_proj(y), other.k_proj(y), atol=1e-6)
    assert torch.allclose(layer.k_proj(x), other.k_proj(x), atol=1e-6)


def test_names_files_and_settings_stay():
    plain = with_adapters()
    ours, groups = grouped(plain)
    assert plain.state_dict().keys() == ours.state_dict().keys()
    # q, k, v | o | gate, up | down; in the last layer the query may run for chosen rows: q | k, v
    assert [len(group.layers) for group in groups] == [3, 1, 2, 1, 1, 2, 1, 2, 1]


def test_what_is_no_plain_lora_stays_peft_s():
    config = LoraConfig(r=4, target_modules=r".*_proj", use_dora=True)
    model = get_peft_model(Decoder(), config)
    assert group_adapters(model.base_model.model.layers) == []


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [(128, 128, 128), (128, 128, 256), (48, 128, 24)],
    ids=["of the same size", "in blocks", "not in blocks"],
)
def test_weights_of_a_group_are_dequantised_to_the_same_numbers(nested, shapes):
    layers = []
    for number, out in enumerate(shapes):
        torch.manual_seed(number)
        layer = bnb.nn.Linear4bit(128, out, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(
            torch.randn(out, 128), requires_grad=False, quant_type="nf4", compress_statistics=nested
        )
        layers.append(layer.to("cpu"))
    expected = [bnb.functional.dequantize_4bit(m.weight.data, m.weight.quant_state) for m in layers]
    x = torch.randn(3, 128)
    products = [layer(x) for layer in layers]
    (base,) = frozen_weights_of([layers], Scales())
    for _ in range(2):
        blocks = base.weights(torch.float32)
        assert len(blocks) == (1 if len(set(shapes)) == 1 else 3)
        for weight, own in zip(members(blocks), expected, strict=True):
            assert torch.equal(weight, own.float())
    for layer, product in zip(layers, products, strict=True):  # which still stand by themselves
        assert torch.equal(layer(x), product)


class _Count(TorchDispatchMode):
    VIEWS = ("view", "t.default", "transpose", "expand", "slice", "select", "detach", "split", "empty", "as_")

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(name in str(func) for name in self.VIEWS):
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_takes_fewer_than_peft_s_operations():
    plain = with_adapters(0.1)
    _quantise(plain)
    ours, _ = grouped(plain)
    draw_again_in_backward(plain)
    counts = []
    for model in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            gradients(model, torch.randn(2, 7, 24))  # the first pass makes the narrow copies
            with _Count() as count:
                gradients(model, torch.randn(2, 7, 24))
        counts.append(sum(count.names.values()))
    assert counts[1] < 0.6 * counts[0], counts


def test_products_are_the_formula_s():
    _, groups = grouped(with_adapters())
    group, x = groups[0], torch.randn(6, 24)
    layer = group.layers[1]
    a, b = (getattr(layer, f"lora_{name}")["default"].weight for name in "AB")
    base = layer.base_layer
    expected = F.linear(x, base.weight, base.bias) + 6 / 4 * x @ a.T @ b.T
    group.run(0, x)
    assert torch.allclose(group.run(1, x), expected, atol=1e-5)
