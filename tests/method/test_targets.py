"""Targets in another space: no-ops that change nothing, and the same numbers everywhere a target goes."""

from __future__ import annotations

import pytest
import torch
from oracle import close
from tiny import DECODERS, IMAGE_TOKEN, PATCHES, adapted, target_space, tiny_assembled, tiny_batch, tiny_llava
from tiny_trainer import gradients, log_of, trainer

from basic_lite import BasicSupervision
from basic_lite.data.layout import layout_of
from basic_lite.method.objective import Objective
from basic_lite.method.targets import TargetSpace
from basic_lite.method.types import Window
from basic_lite.models.trainable import train_projector

WIDTH, K = 32, 2


def seen(model, batch, **arguments):
    supervision = BasicSupervision(model, **arguments)
    with supervision:
        model(**batch)
    return supervision


def test_a_mean_of_zero_changes_no_bit():
    model, batch = tiny_llava(), tiny_batch()
    raw = seen(model, batch).refinement.target
    zero = TargetSpace("centred", torch.zeros(K, WIDTH))
    assert torch.equal(seen(model, batch, target=zero).refinement.target, raw)


def test_the_identity_changes_nothing():
    model, batch = tiny_llava(), tiny_batch()
    raw = seen(model, batch)
    same = (torch.eye(WIDTH),) * K
    identity = TargetSpace("translated", torch.zeros(K, WIDTH), same, torch.zeros(WIDTH))
    mapped = seen(model, batch, target=identity)
    torch.testing.assert_close(mapped.refinement.target, raw.refinement.target, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mapped.loss(), raw.loss(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["centred", "translated"])
def test_the_target_equals_the_formula(kind, decoder, padding):
    model, batch, space = tiny_llava(decoder), tiny_batch(padding), target_space(kind)
    ours = seen(model, batch, target=space).refinement
    assert not ours.target.requires_grad
    out = model(**batch, output_hidden_states=True)
    patches = batch["input_ids"] == IMAGE_TOKEN
    truth = 0.0
    for layer in (1, 2):
        state = out.hidden_states[layer][patches].double() - space.centre[layer - 1]
        if kind == "translated":
            state = state @ space.maps[layer - 1].double() + space.offset
        truth = truth + layer**2 / 5 * state
    assert close(ours.target, truth, 1e-5)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("decoder", ["llama", "gemma"])
def test_an_individual_target_is_less_its_mean_over_the_pictures(decoder, padding):
    model, batch = tiny_llava(decoder), tiny_batch(padding)
    ours = seen(model, batch, target="individual").refinement
    assert not ours.target.requires_grad
    states = model(**batch, output_hidden_states=True).hidden_states
    patches = batch["input_ids"] == IMAGE_TOKEN
    target = sum(layer**2 / 5 * states[layer][patches].double() for layer in (1, 2))
    truth = torch.stack(
        [  # picture i, patch p: its target less the mean of all pictures' targets at patch p
            target[i * PATCHES + p] - sum(target[j * PATCHES + p] for j in range(5)) / 5
            for i in range(5)
            for p in range(PATCHES)
        ]
    )
    assert close(ours.target, truth, 1e-5)


def test_a_picture_alone_in_its_pass_adds_nothing_and_is_not_supervised():
    model, batch = tiny_llava(), tiny_batch()
    alone = {name: values[3:4] for name, values in batch.items()}
    assert int((alone["input_ids"] == IMAGE_TOKEN).sum()) == PATCHES
    alone["pixel_values"] = batch["pixel_values"][:1]
    supervision = seen(model, alone, target="individual")
    assert not supervision.refinement.importance.any()
    assert float(supervision.loss().detach()) == 0
    raw = seen(model, alone)
    assert raw.refinement.importance.all()


def test_a_constant_in_all_states_does_not_reach_a_centred_target():
    space, constant = target_space("centred"), torch.randn(WIDTH) * 50
    moved = TargetSpace("centred", space.centre + constant)
    states = torch.randn(5, WIDTH)
    torch.testing.assert_close(
        moved.bring(1, states + constant), space.bring(1, states.clone()), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("decoder", ["llama", "gemma"])
def test_deferred_terms_meet_the_same_target(tmp_path, decoder, lora):
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    found = []
    for deferred, kind in ((True, "translated"), (False, "translated"), (True, None)):
        model = adapted(tiny_llava(decoder)) if lora else tiny_llava(decoder)
        space = target_space(kind) if kind else None
        run = trainer(tmp_path, model, objective=Objective(0.7, 0.3), deferred=deferred, target=space)
        run.transform = None
        run.create_optimizer()
        loss = run.training_step(run.model, batch | {"layout": layout}, Window(17, 5))
        found.append((loss, gradients(model), run.metrics.take()["cosine"]))
    (loss, ours, cosine), (whole, theirs, expected), (_, _, other) = found
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()))
    assert cosine == pytest.approx(expected, rel=1e-6)
    assert abs(cosine - other) > 1e-3  # the space does reach the terms


def test_any_split_of_a_step_has_the_same_terms(tmp_path):
    found = []
    for batch, accumulation in ((4, 1), (1, 4)):
        out = tmp_path / str(batch)
        run = trainer(
            out, batch=batch, accumulation=accumulation, target=target_space("translated"), max_grad_norm=0
        )
        run.batches = [list(range(i, i + batch)) for i in range(0, 24, batch)]
        run.optimizer = torch.optim.SGD([p for p in run.model.parameters() if p.requires_grad], lr=1e-2)
        run.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer, factor=1.0)
        run.train()
        found.append([{k: row[k] for k in ("loss", "das", "sds", "cosine")} for row in log_of(out)])
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_four_bit_decoder_takes_it():
    assembled = tiny_assembled(bits=4)
    train_projector(assembled)
    supervision = BasicSupervision(assembled.model, target=target_space("translated"))
    with supervision:
        loss = assembled.model(**tiny_batch()).loss
    (loss + supervision.loss()).backward()
    assert supervision.refinement.target.isfinite().all()


def test_bf16_maps_are_multiplied_in_fp32():
    space = target_space("translated")
    narrow = TargetSpace("translated", space.centre, tuple(m.bfloat16() for m in space.maps), space.offset)
    states = torch.randn(40, WIDTH)
    truth = (states - space.centre[0]).double() @ narrow.maps[0].double() + space.offset
    assert close(narrow.bring(0, states.clone()), truth, 1e-6)


@pytest.mark.parametrize("kind", ["centred", "translated"])
def test_it_is_read_back_as_it_was_written(tmp_path, kind):
    space, states = target_space(kind), torch.randn(3, WIDTH)
    space.report["tokens"] = 12
    space.save(tmp_path / "target.safetensors")
    again = TargetSpace.load(tmp_path / "target.safetensors")
    assert (again.kind, again.report) == (kind, {"tokens": 12})
    assert torch.equal(again.bring(1, states.clone()), space.bring(1, states.clone()))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sideways", "target must be one of raw, centred, translated, individual, got 'sideways'"),
        ("translated", "must be fitted first: fit_target"),
        (TargetSpace("centred", torch.zeros(1, WIDTH)), "for 1 layers of width 32, and 2 of width 32"),
        (TargetSpace("centred", torch.zeros(2, 8)), "for 2 layers of width 8, and 2 of width 32"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        BasicSupervision(tiny_llava(), target=target)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "target.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no fitted target"):
        TargetSpace.load(tmp_path / "target.safetensors")


def test_the_plan_counts_the_maps():
    """Sixteen maps of 4096 x 4096 in bf16 are 0.54 GB beside Vicuna-7B; other targets add nothing."""
    from dataclasses import replace

    from basic_lite.bench.synthetic import DECODERS as REAL
    from basic_lite.memory.activations import DecoderSetup
    from basic_lite.memory.peak import Step, static_parts
    from basic_lite.memory.sizes import TOWERS, DecoderSize, TowerSize

    setup = DecoderSetup(4, "projector", 0, 0.0, half=True)
    step = Step(DecoderSize.of(REAL["vicuna-7b"]), TowerSize.of(TOWERS["clip-l-336"]), setup)
    more = static_parts(replace(step, maps=16))
    assert more.pop("maps of the target") == 16 * 4096**2 * 2
    assert more == static_parts(step)
