"""Liger's modules: equal on a GPU, never touched on a CPU."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from tiny import DECODERS, IMAGE_TOKEN, MORE_DECODERS, tiny_batch, tiny_llava
from tiny_trainer import gradients, trainer

from basic_lite.data.layout import layout_of
from basic_lite.method.types import Window
from basic_lite.training import liger


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_cpu_keeps_transformers_own(decoder):
    model = tiny_llava(decoder)
    before = {name: getattr(module, "forward", None).__func__ for name, module in model.named_modules()}
    assert not liger.fuse(model.model.language_model)
    after = {name: getattr(module, "forward", None).__func__ for name, module in model.named_modules()}
    assert before == after


WITHOUT = ("stablelm", "ministral3", "glm4", "granite", "cohere2")
WITH = [*DECODERS, *(decoder for decoder in MORE_DECODERS if decoder not in WITHOUT)]


@pytest.mark.parametrize("decoder", WITHOUT)
def test_families_without_a_tried_patch_keep_transformers_own(decoder):
    assert liger.patch_of(tiny_llava(decoder).model.language_model) is None


@pytest.mark.parametrize("decoder", WITH)
def test_the_installed_liger_takes_what_is_asked_of_it(decoder):
    model = tiny_llava(decoder).model.language_model
    patch, pieces = liger.patch_of(model)
    inspect.signature(patch).bind(model=model, **pieces)
    rotary = set() if decoder == "phi4_mini" else {"rope"}  # it rotates a part of a head
    gate = "geglu" if decoder.startswith("gemma") else "swiglu"
    assert {name for name, on in pieces.items() if on} == {*rotary, "rms_norm", gate}
    assert pieces["fused_linear_cross_entropy"] is False


def test_rotary_embedding_of_a_part_of_a_head_stays():
    model = tiny_llava("phi3").model.language_model
    model.config.partial_rotary_factor = 0.5
    assert liger.patch_of(model)[1]["rope"] is False


@pytest.mark.parametrize("decoder", ["llama", "phi3", "gemma2"])
def test_an_mlp_of_another_activation_stays(decoder):
    model = tiny_llava(decoder).model.language_model
    name = "hidden_activation" if decoder == "gemma2" else "hidden_act"
    assert getattr(model.config, name) in ("silu", "gelu_pytorch_tanh")
    setattr(model.config, name, "relu")
    _, pieces = liger.patch_of(model)
    assert pieces["rms_norm"]
    assert not pieces["geglu" if decoder == "gemma2" else "swiglu"]


@pytest.mark.parametrize("compiles", [True, False])
def test_without_a_compiler_the_decoder_stays_as_it_is(monkeypatch, caplog, compiles):
    """Triton builds its kernels' starter by a C compiler, which bare images lack."""
    row_kernel = pytest.importorskip("basic_lite.method.row_kernel", reason="triton exists for Linux alone")

    def compile(*args: object, **kwargs: object) -> None:
        if not compiles:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    model = tiny_llava("llama").model.language_model
    weight = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(model, "get_input_embeddings", lambda: SimpleNamespace(weight=weight))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.empty(size, device="meta"))
    monkeypatch.setattr(row_kernel, "divergence_and_difference", compile)
    patched = []
    monkeypatch.setattr(liger, "patch_of", lambda decoder: (lambda model, **on: patched.append(model), {}))
    row_kernel.works_on.cache_clear()
    try:
        assert liger.fuse(model) is compiles
    finally:
        row_kernel.works_on.cache_clear()
    assert patched == [model] * compiles
    assert ("the decoder go on in torch" in caplog.text) is not compiles


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("decoder", WITH)
def test_loss_and_gradients_are_the_same(tmp_path, decoder):
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    found = []
    for on in (False, True):  # in this order: Liger's functions stay in transformers' module
        run = trainer(tmp_path, tiny_llava(decoder).cuda(), fused_kernels=on, use_cpu=False)
        run.transform = None
        run.create_optimizer()
        loss = run.training_step(run.model, batch | {"layout": layout}, Window(17, 5))
        found.append((loss, gradients(run.model)))
    (plain, theirs), (loss, ours) = found
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
