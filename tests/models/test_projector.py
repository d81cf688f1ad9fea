import pytest
import torch
from tiny import tiny_llava
from torch import nn

from basic_lite.models import projector
from basic_lite.models.projector import Projector, split_linear, split_product


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Round to the 10 bits of mantissa that TF32 multiplies."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def error(product: torch.Tensor, truth: torch.Tensor) -> float:
    return float((product.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_three_bf16_products_are_far_nearer_than_tf32(spread: float) -> None:
    torch.manual_seed(0)
    a = torch.randn(64, 1024) * spread ** torch.rand(64, 1024)
    b = torch.randn(1024, 96) / 32
    truth = a.double() @ b.double()
    ours, theirs = error(split_product(a, b), truth), error(tf32(a) @ tf32(b), truth)
    assert ours < 1e-5
    assert 1e-4 < theirs < 1e-3
    assert error(a.bfloat16().float() @ b.bfloat16().float(), truth) > 1e-3


def test_what_is_bf16_is_not_split() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(8, 32).bfloat16(), torch.randn(32, 8)
    assert error(split_product(a, b), a.double() @ b.double()) < 1e-5
    assert error(split_product(b.t(), a.t()), b.t().double() @ a.t().double()) < 1e-5
    assert torch.equal(split_product(a, a.t()), a.float() @ a.float().t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_split_layer(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(48, 40, bias=bias)
    x = torch.randn(2, 7, 48).to(dtype).requires_grad_()
    upstream = torch.randn(2, 7, 40)
    y = split_linear(x, layer)
    gradients = torch.autograd.grad((y * upstream).sum(), [x, *layer.parameters()])
    weight, wide = layer.weight.double(), x.detach().double()
    truth = wide @ weight.t() + (layer.bias.double() if bias else 0)
    assert y.dtype == torch.float32
    assert error(y.detach(), truth.detach()) < 1e-5
    flat = upstream.double().flatten(0, 1)
    expected = [upstream.double() @ weight, flat.t() @ wide.flatten(0, 1), flat.sum(0)]
    for gradient, true in zip(gradients, expected[: len(gradients)], strict=True):
        assert error(gradient, true.detach()) < (1e-5 if gradient.dtype == torch.float32 else 3e-3)


def test_the_projector_splits_where_it_is_told_and_can(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Projector = Projector(tiny_llava().config)
    features = torch.randn(2, 4, whole.linear_1.in_features)
    expected = whole(features)
    whole.split = True
    assert torch.equal(whole(features), expected)  # not on a CPU
    monkeypatch.setattr(projector, "_can_split", lambda weight: True)
    split = whole(features)
    assert not torch.equal(split, expected)
    assert error(split.detach(), expected.detach().double()) < 1e-5
    split.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in whole.parameters())
    whole.split = False
    assert torch.equal(whole(features), expected)
