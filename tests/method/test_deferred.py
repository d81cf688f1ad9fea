"""Terms behind the decoder's backward pass: the same numbers as the summed loss, at a lower peak."""

from __future__ import annotations

import pytest
import torch
from tiny import DECODERS, IMAGE_TOKEN, adapted, tiny_batch, tiny_llava
from tiny_trainer import Rows, gradients, log_of, trainer, weights
from transformers import LlamaConfig
from weightless import WIDE_TOWER, Weightless

from basic_lite.data.layout import layout_of
from basic_lite.method.deferred import Deferral
from basic_lite.method.objective import Objective
from basic_lite.method.types import Window
from basic_lite.models.devices import recompute_layers


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_and_values_equal_the_summed_loss(tmp_path, decoder, recompute, lora):
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    found = []
    for deferred in (True, False):
        model = adapted(tiny_llava(decoder)) if lora else tiny_llava(decoder)
        if recompute:
            recompute_layers((model.get_base_model() if lora else model).model.language_model)
        run = trainer(tmp_path, model, objective=Objective(0.7, 0.3), deferred=deferred)
        run.transform = None
        run.create_optimizer()
        loss = run.training_step(run.model, batch | {"layout": layout}, Window(17, 5))
        found.append((loss, gradients(model), run.metrics.take()))
    (loss, ours, logged), (whole, theirs, expected) = found
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    assert list(ours) == list(theirs)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()))
    del logged["samples_per_second"], expected["samples_per_second"]
    assert logged == pytest.approx(expected, rel=1e-6)
    assert {"lm", "das", "sds", "cosine"} == set(logged)


@pytest.mark.parametrize("objective", [Objective(1.0, 1.0), Objective(0, 0)])
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_a_run_is_the_same_run(tmp_path, objective, batch, accumulation):
    ends, logs = [], []
    for deferred in (True, False):
        model, out = tiny_llava(), tmp_path / str(deferred)
        settings = {
            "batch": batch,
            "accumulation": accumulation,
            "objective": objective,
            "deferred": deferred,
        }
        run = trainer(out, model, Rows(24), lr_scheduler_type="constant", **settings)
        run.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        run.train()
        ends.append(weights(model))
        keys = ("loss", "lm", "das", "sds", "cosine", "grad_norm")
        logs.append([{key: row[key] or 0.0 for key in keys} for row in log_of(out)])
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[0][name], value, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.25, 3.0])
def test_the_terms_are_scaled_as_the_loss_is(tmp_path, factor):
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    found = []
    for deferred in (True, False):
        model = tiny_llava()
        run = trainer(tmp_path, model, objective=Objective(0.7, 0.3), deferred=deferred)
        run.transform = None
        (run.compute_loss(model, batch | {"layout": layout}) * factor).backward()
        found.append(gradients(model))
    for name, gradient in found[1].items():
        torch.testing.assert_close(
            found[0][name], gradient, rtol=1e-6, atol=1e-6 * float(gradient.abs().max())
        )


def test_where_nothing_is_trained_through_the_pictures_the_values_are_still_there(tmp_path):
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    model = adapted(tiny_llava())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    run = trainer(tmp_path, model)
    run.transform = None
    run.training_step(run.model, batch | {"layout": layout}, Window(17, 5))
    assert {"lm", "das", "sds"} <= set(run.metrics.sums)
    with torch.no_grad():  # as in evaluation: before any backward pass
        loss, terms = run.compute_loss(model, batch | {"layout": layout}, return_outputs=True)
    assert set(terms) == {"lm", "das", "sds"}
    assert not loss.requires_grad


def test_nothing_is_kept_after_the_step(tmp_path):
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    run = trainer(tmp_path, tiny_llava())
    run.transform = None
    run.training_step(run.model, batch | {"layout": layout}, Window(17, 5))
    assert run.supervision.refinement is None
    assert run.forward.deferral is None


def test_a_missing_half_is_named():
    features = torch.randn(4, 3, requires_grad=True)
    deferral = Deferral(Objective(), torch.randn(5, 3), Window(1, 1))
    with pytest.raises(AssertionError, match="was not set before backward"):
        deferral.announce(deferral.hold(features, torch.float32).sum()).backward()


def test_the_peak_is_the_larger_of_the_two_not_their_sum():
    decoder = LlamaConfig(
        vocab_size=8_000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
    )
    fake = Weightless(decoder, WIDE_TOWER, rows=2, text=16)
    plain = fake.peak(Objective(0, 0))
    deferred = fake.peak(Objective())
    summed = fake.peak(Objective(), deferred=False)
    state = 2 * 144 * 512 * 4  # the target waits for the backward pass
    chunk = 2 * 288 * 8_000 * 4
    assert deferred - plain <= state + 4096
    assert summed - plain > chunk  # the tracker does see what the other mode keeps
