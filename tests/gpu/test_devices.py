"""Whatever runs a model runs on a GPU: shown without one, by what `pretended_gpu` knows of every tensor."""

from __future__ import annotations

import warnings
from contextvars import ContextVar

import pytest
import torch
from embedded import needs_parts
from gpu.device_checks import CHECKS, GPU_ONLY, Workshop
from gpu.pretended_gpu import pretended_gpu
from tiny import tiny_assembled
from tiny_trainer import trainer
from torch import nn
from torch.nn import functional as F

from basic_lite.models.trainable import Adapters, train_adapters

ONCE = (
    *("stage1 --model tiny --bits 4 --target translated", "stage2 --start stage1"),
    *("stage2 --lora --start stage1-4bit --optimizer paged-adamw-8bit", "stage1 --fit auto"),
    *("stage1 --no-recompute --rows-per-chunk 32", "stage1 --intervention noise=0.5"),
    *("stage1 --intervention teacher=tiny-decoder", "stage2 --lora --resume"),
    *("a step that runs out of memory is split", "two steps of a gemma", "two steps of a phi3"),
    *("BasicSupervision in a loop of one's own, translated target", "fit_target for a loop of one's own"),
    "L_sds in tiles of the vocabulary",
    *("eval mmbench --run lora-4bit", "chat lora-4bit", "export lora-4bit --base dequantised"),
    *("analyze tokens --against", "analyze premise --bits 4"),
    "ablate: what a run of the embedded world is measured by",
    *("bench step --against (of a tiny model)", "bench step --stage 2 --against", "bench generate"),
    *(
        "gradients of layers in few operations, llama, run again",
        "layers held dequantised give the same bits",
    ),
    "the projector's fp32 products made of bf16 ones",
    *("stage2 --lora --start stage1-tiles", "eval mmbench --run lora-tiles", "chat lora-tiles"),
    *("stage2 --lora --start stage1-4bit --train-tower", "stage2 --lora --start stage1 --tower-lora 4"),
    *("chat lora-tower", "export lora-tower-lora"),
    "stage2 --lora --start stage1-4bit --val-share --keep best",
    "stage1 --along (the curves of an ablation)",
    "both stages of a gemma2 in 4 bits",
    "a run is read by the host, not by a GPU that peft chooses",
)
"""Every command once; the other checks are further options of these."""

NAMES = [name for name in CHECKS if name not in GPU_ONLY]


def test_the_chosen_checks_exist():
    assert set(ONCE) <= set(NAMES)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("pretended"))


@needs_parts
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator:UserWarning")  # memory is not pinned here
@pytest.mark.parametrize(
    "name", [name if name in ONCE else pytest.param(name, marks=pytest.mark.full) for name in NAMES]
)
def test_no_tensor_is_left_on_the_cpu(name, shop):
    with pretended_gpu():
        CHECKS[name](shop)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_a_process_keeps_to_one_of_several_gpus(tmp_path):
    """Without a launcher: transformers' Trainer would spread each batch over both."""
    with pretended_gpu(gpus=2), warnings.catch_warnings():
        warnings.filterwarnings("error", "CUDA reports")  # of `fork_rng`, which asks every GPU
        assembled = tiny_assembled()
        assembled.model.to("cuda")
        train_adapters(assembled, Adapters(rank=2))
        made = trainer(tmp_path, assembled.model, use_cpu=False, max_steps=1)
        made.train()
        assert made.args.n_gpu == 1
    assert made.state.global_step == 1


def mixed() -> dict[str, object]:
    """Return what torch refuses on a machine with a GPU."""
    here, there = torch.ones(3, 4), torch.ones(3, 4, device="cuda")
    ids, layer = torch.tensor([0, 2]), nn.Linear(4, 2).to("cuda")
    return {
        "sum": lambda: there + here,
        "into the CPU's": lambda: here.add_(there),
        "a number of the GPU into one of the CPU": lambda: torch.zeros(()).add_(there.sum()),
        "product": lambda: there @ here.T,
        "module": lambda: layer(here),
        "stacked numbers": lambda: torch.stack([there.sum(), here.sum()]),
        "index_select": lambda: there.index_select(0, ids),
        "embedding": lambda: F.embedding(ids, there),
        "gather": lambda: there.gather(1, torch.zeros(3, 1, dtype=torch.long)),
        "index of the GPU": lambda: here[ids.to("cuda")],
        "where": lambda: torch.where(here > 0, there, there),
        "cross entropy": lambda: F.cross_entropy(there, torch.zeros(3, dtype=torch.long)),
        "generator": lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
        "gradient": lambda: setattr(there.clone().requires_grad_(), "grad", here),
        "in the backward pass": lambda: backward_on_two_devices(there),
        "numpy": lambda: there.numpy(),
    }


class LeavesItsGradientBehind(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.full(gradient.shape, 2.0)


def backward_on_two_devices(there: torch.Tensor) -> None:
    LeavesItsGradientBehind.apply(there.clone().requires_grad_()).sum().backward()


REFUSED = (
    *("sum", "into the CPU's", "a number of the GPU into one of the CPU", "product", "module"),
    *("stacked numbers", "index_select", "embedding", "gather", "index of the GPU", "where", "cross entropy"),
    *("generator", "gradient", "in the backward pass", "numpy"),
)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses_is_refused(name):
    with pretended_gpu():
        cases = mixed()
        assert tuple(cases) == REFUSED
        with pytest.raises((RuntimeError, TypeError), match=r"device|indices should be|to numpy"):
            cases[name]()


def test_a_backward_pass_has_a_thread_of_its_own():
    """As on a GPU: what is in a context variable or switched on in a forward pass is not there."""
    switched, seen = ContextVar("switched", default="off"), []

    class Looks(LeavesItsGradientBehind):
        @staticmethod
        def backward(ctx, gradient):
            seen.append((switched.get(), gradient.is_cuda, (gradient * 2).device.type))
            return gradient

    with pretended_gpu():
        token = switched.set("on")
        Looks.apply(torch.ones(3, device="cuda", requires_grad=True)).sum().backward()
        switched.reset(token)
        with pytest.raises(RuntimeError, match="the same device"):
            backward_on_two_devices(torch.ones(3, device="cuda"))
    assert seen == [("off", True, "cuda")]


def test_what_a_gpu_takes_is_taken_and_lies_where_it_should():
    with pretended_gpu():
        here, there = torch.ones(3, 4, requires_grad=True), torch.ones(3, 4, device="cuda")
        moved = here.to("cuda", torch.bfloat16)
        (moved.float() * there * here.sum().to("cuda") + torch.tensor(2.0)).sum().backward()
        assert here.grad.device.type == "cpu"
        layer = nn.Linear(4, 2).to("cuda")
        layer(there).sum().backward()
        places = [layer.weight, layer.weight.grad, there.T, there[torch.tensor([1])], there.new_zeros(2)]
        places += [torch.zeros_like(there), torch.zeros(2, device=there.device), there.sum(), moved.detach()]
        assert {one.device.type for one in places} == {"cuda"}
        assert all(one.is_cuda for one in places)
        assert {one.device.type for one in (there.cpu(), torch.zeros(2), there.to("cpu"))} == {"cpu"}
        assert there.cpu().numpy().sum() == there.sum().item() == 12
        assert there.cpu().data_ptr() != there.data_ptr()
    assert there.device.type == "cpu"
    assert not torch.cuda.is_available()
