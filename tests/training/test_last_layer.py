"""The last layer for supervised rows only: the same loss and gradients, fewer operations."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import DECODERS, IMAGE_TOKEN, MORE_DECODERS, adapted, tiny_batch, tiny_llava
from tiny_trainer import gradients, trainer
from transformers import LlamaConfig
from weightless import WIDE_TOWER, Weightless

from basic_lite.data.layout import layout_of
from basic_lite.method.objective import Objective
from basic_lite.method.types import Window
from basic_lite.models.devices import recompute_layers
from basic_lite.training import last_layer


def decoder_of(model):
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model.language_model


KINDS = ("projector", "recompute", "lora", "lora, recompute", "whole decoder")
CASES = [(decoder, kind, padding) for decoder in DECODERS for kind in KINDS for padding in ("right", "left")]
WHOLE = ("stablelm", "ministral3", "glm4", "cohere2")  # their last layer runs as it is
CASES += [(decoder, "lora, recompute", "left") for decoder in MORE_DECODERS if decoder not in WHOLE]


@pytest.mark.parametrize(("decoder", "kind", "padding"), CASES)
def test_loss_and_gradients_are_those_of_the_whole_layer(tmp_path, decoder, kind, padding):
    batch = tiny_batch(padding)
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    found = []
    for prune in (True, False):
        model = tiny_llava(decoder)
        if "whole" in kind:
            model.model.language_model.requires_grad_(True)
        if "lora" in kind:
            model = adapted(model)  # on the last layer's modules too
        if "recompute" in kind:
            recompute_layers(decoder_of(model))
        run = trainer(tmp_path, model, prune_last_layer=prune)
        run.transform = None
        run.create_optimizer()
        loss = run.training_step(run.model, batch | {"layout": layout}, Window(17, 5))
        found.append((loss, gradients(model)))
    (loss, ours), (whole, theirs) = found
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    assert list(ours) == list(theirs)
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_layer_is_itself_for_everybody_else(decoder):
    model = tiny_llava(decoder)
    plain = copy.deepcopy(model)
    assert last_layer.prepare(model.model.language_model, 2)
    assert last_layer.prepare(model.model.language_model, 2)  # a second trainer on the same model
    batch = tiny_batch()
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    again = copy.deepcopy(model)
    assert torch.equal(again(**batch).logits, plain(**batch).logits)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}


@pytest.mark.parametrize("decoder", MORE_DECODERS)
def test_later_families_take_it_or_run_whole(decoder):
    assert last_layer.prepare(tiny_llava(decoder).model.language_model, 2) == (decoder not in WHOLE)


def test_it_is_off_where_it_would_not_be_exact():
    def answer(decoder="llama", watched=2, change=None):
        model = tiny_llava(decoder).model.language_model
        if change:
            change(model.layers[-1])
        return last_layer.prepare(model, watched)

    assert answer()
    assert not answer(watched=4)  # all four layers make the target: the last one's patches are read
    assert not answer(change=lambda layer: setattr(layer.self_attn, "attention_dropout", 0.1))
    assert not answer("phi3", change=lambda layer: setattr(layer.resid_mlp_dropout, "p", 0.1))

    def other(layer):
        layer.__class__ = type("OtherDecoderLayer", (type(layer),), {})

    assert not answer(change=other)


def test_all_layers_watched_trains_as_before(tmp_path):
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    run = trainer(tmp_path, tiny_llava(), layers=4)
    run.transform = None
    run.training_step(run.model, batch | {"layout": layout}, Window(17, 5))
    assert run.metrics.take()["cosine"] is not None


def test_rows_without_any_supervised_token(tmp_path):
    batch = tiny_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    assert layout.predicting_rows.shape == (5, 1)
    run = trainer(tmp_path, tiny_llava())
    run.transform = None
    loss = run.training_step(run.model, batch | {"layout": layout}, Window(1, 5))
    assert torch.isfinite(loss)


def test_positions_of_the_layout_agree():
    batch = tiny_batch("left")
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    width = batch["input_ids"].shape[1]
    flat = layout.predicting_rows + torch.arange(5)[:, None] * width
    assert torch.equal(flat.flatten()[layout.slot], layout.predicting)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_operations_saved_are_those_of_the_rows_left_out(recompute):
    decoder = LlamaConfig(
        vocab_size=64, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8
    )
    fake = Weightless(decoder, WIDE_TOWER, rows=2, text=16, recompute=recompute)
    whole = fake.flops(Objective(0, 0), prune_last_layer=False)
    saved = whole - fake.flops(Objective(0, 0))
    width, wide, tokens, chosen = 512, 1408, 1 + 144 + 16, 16
    rows = 2 * (tokens - chosen)
    # Forward, and backward to the input. What is run again ends before the down projection, whose output
    # nothing in backward asks for.
    products = 2 * 2 * (2 * width * width + 3 * width * wide)
    products += 2 * (2 * width * width + 2 * width * wide) if recompute else 0
    scores = 2 * tokens * width  # of one row over all heads; attention's backward is 2.5 times its forward
    attention = 2 * scores * (1 + 2.5 + recompute)
    assert saved == rows * (products + attention)
