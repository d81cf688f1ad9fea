"""Pictures in tiles against the naive definition: each has its own number of patches, newlines are none."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch
from oracle import close
from tiled import tiled_batch, tiled_oracle, tiny_llava_next
from tiny import DECODERS, is_projector, tiny_assembled
from tiny_trainer import gradients, trainer

from basic_lite import BasicSupervision
from basic_lite.data.layout import layout_of
from basic_lite.data.tiles import Tiling
from basic_lite.method.objective import Objective
from basic_lite.method.types import Window
from basic_lite.models import trainable
from basic_lite.models.devices import recompute_layers
from basic_lite.training.guards import rows_of


def compare(model, batch, importance="attention", **arguments):
    truth = tiled_oracle(model, batch, 2, importance)
    supervision = BasicSupervision(model, importance=importance, **arguments)
    model.train()
    with supervision:
        outputs = model(**batch)
    (outputs.loss + supervision.loss()).backward()
    seen = supervision.refinement
    assert close(seen.target, truth["target"], 1e-5)
    assert close(seen.importance, truth["importance"], 1e-5)
    assert close(outputs.loss, truth["lm"], 1e-5)
    assert close(supervision.terms["das"].mean(), truth["das"], 1e-5)
    assert close(supervision.terms["sds"].mean(), truth["sds"], 5e-5)
    ours = gradients(model)
    assert ours.keys() == truth["gradients"].keys()
    assert len(ours) == 5
    for name, expected in truth["gradients"].items():
        assert close(ours[name], expected, 1e-4), name


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("decoder", "tower"), [*zip(DECODERS, ("clip", "siglip", "dinov2", "clip"), strict=True)]
)
def test_the_standard_class_equals_the_formulas(decoder, tower, padding):
    compare(tiny_llava_next(decoder, tower), tiled_batch(padding))


def test_uniform_weights_are_one_over_a_pictures_own_patches():
    compare(tiny_llava_next(), tiled_batch(), "uniform")


def test_recomputed_layers_count_nothing_twice():
    model = tiny_llava_next("gemma")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    compare(model, tiled_batch("left"))


def our_model(bits=16, lora=False):
    assembled = tiny_assembled(tiles=4, bits=bits)
    if lora:
        trainable.train_adapters(assembled, trainable.Adapters(4, 8, 0.0), seed=0)
    else:
        trainable.train_projector(assembled)
    return assembled


def step(tmp_path, assembled, batch, cuts, counts, deferred=True, spared=None, importance="attention"):
    """Return the loss and the gradients of one optimizer step whose rows go through in parts."""
    given = {"objective": Objective(0.7, 0.3), "deferred": deferred, "importance": importance}
    run = trainer(tmp_path, assembled.model, accumulation=1, **given)
    run.transform = None
    run.create_optimizer()
    tiling = assembled.tiling
    blocks = tiling.blocks(batch["image_sizes"])
    layout = layout_of(
        *(batch["input_ids"], batch["attention_mask"], 3, len(blocks), batch["labels"]), blocks=blocks
    )
    if spared is not None:
        layout = replace(layout, spared=torch.tensor([*chain(*spared)]))
    whole = batch | {"layout": layout}
    edges, loss = [0, *cuts, 5], 0.0
    for start, stop in pairwise(edges):
        part = whole if stop - start == 5 else rows_of(whole, start, stop)
        loss = loss + run.training_step(run.model, part, Window(*counts))
    return loss, {n: g for n, g in gradients(assembled.model).items() if is_projector(n)}


def dequantised(model):
    """Return the reference's model: the same weights, those of 4 bits as the numbers they stand for."""
    import bitsandbytes.functional as bnb

    plain = our_model().model
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data.copy_(weight)
    return plain


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("bits", "lora"), [(16, False), (16, True), (4, False)])
def test_every_split_of_a_step_gives_the_gradient_of_the_formulas(tmp_path, bits, lora, recompute):
    batch, model = tiled_batch(), our_model(bits, lora).model
    truth = tiled_oracle(dequantised(model) if bits == 4 else model, batch, 2, weights=(1.0, 0.7, 0.3))
    for cuts in ([], [1], [2, 3], [1, 2, 3, 4]):
        assembled = our_model(bits, lora)
        if recompute:
            inner = assembled.model.get_base_model() if lora else assembled.model
            recompute_layers(inner.model.language_model)
        loss, found = step(tmp_path, assembled, batch, cuts, truth["counts"])
        assert close(loss, truth["loss"], 1e-5)
        assert found.keys() == truth["gradients"].keys()
        assert len(found) == 5
        for name, gradient in found.items():
            assert close(gradient, truth["gradients"][name], 1e-4), (cuts, name)


PATCHES_OF_PICTURES = (27, 45, 27, 18, 36, 33)


def some_text(share: float) -> list[list[bool]]:
    """Return which patches of `tiled_batch`'s pictures hold text: of one none, of another all."""
    generator = torch.Generator().manual_seed(4)
    chosen = [(torch.rand(count, generator=generator) < share).tolist() for count in PATCHES_OF_PICTURES]
    return [[False] * 27, *chosen[1:3], [True] * 18, *chosen[4:]] if 0 < share < 1 else chosen


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("importance", ["attention", "uniform"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_text_has_no_part_in_l_sds_however_a_step_is_split(tmp_path, share, importance, deferred):
    batch, spared = tiled_batch(), some_text(share)
    truth = tiled_oracle(our_model().model, batch, 2, importance, (1.0, 0.7, 0.3), spared=spared)
    assert (truth["sds"] == 0) == (share == 1)
    for cuts in ([], [1], [2, 3]):
        loss, found = step(tmp_path, our_model(), batch, cuts, truth["counts"], deferred, spared, importance)
        assert close(loss, truth["loss"], 1e-5)
        for name, gradient in found.items():
            assert close(gradient, truth["gradients"][name], 1e-4), (cuts, name)


def test_no_text_in_a_batch_changes_nothing(tmp_path):
    (loss, ours), (other, theirs) = (
        step(tmp_path, our_model(), tiled_batch(), [2], (47, 6), spared=spared)
        for spared in (None, some_text(0))
    )
    torch.testing.assert_close(loss, other, rtol=1e-6, atol=0)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-5) for name in theirs)


def test_terms_in_the_forward_pass_are_the_same(tmp_path):
    (loss, ours), (other, theirs) = (
        step(tmp_path, our_model(4, True), tiled_batch(), [2], (47, 6), deferred)
        for deferred in (True, False)
    )
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=0)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_a_picture_weighs_the_same_however_many_tiles():
    """Where all patches are equally far from their targets, so are all pictures."""
    from basic_lite.method.losses import directional_alignment
    from basic_lite.method.types import Refinement

    batch, tiling = tiled_batch(), Tiling.up_to(4, 24, 8)
    blocks = tiling.blocks(batch["image_sizes"])
    layout = layout_of(batch["input_ids"], batch["attention_mask"], 3, len(blocks), blocks=blocks)
    importance = layout.patch_count.reciprocal()[layout.image]
    one, other = torch.eye(2).repeat(len(layout.patch), 1, 1).unbind(1)
    each = [
        directional_alignment(Refinement(one, other, importance * (layout.image == i), layout.image, 6)).total
        for i in range(6)
    ]
    torch.testing.assert_close(torch.stack(each), torch.full((6,), 2.0))
    assert layout.patch_count.tolist() == [27, 45, 27, 18, 36, 33]


def test_image_tokens_that_are_not_the_grids_are_refused():
    batch, tiling = tiled_batch(), Tiling.up_to(4, 24, 8)
    blocks = tiling.blocks([*batch["image_sizes"][:-1], (48, 48)])
    with pytest.raises(ValueError, match=r"\d+ image tokens are not the \d+ that 6 images take"):
        layout_of(batch["input_ids"], batch["attention_mask"], 3, 6, blocks=blocks)
