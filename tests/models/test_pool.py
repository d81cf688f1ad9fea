"""Patches joined in front of the projector: what BASIC sees, what is saved, and what is refused."""

from __future__ import annotations

import pytest
import torch
from command import run, settings_shown, stage1
from made_runs import export, made_run
from oracle import close
from tiny import IMAGE_TOKEN, tiny_assembled, tower_folder

from basic_lite import BasicSupervision, files
from basic_lite.models import trainable
from basic_lite.models.checkpoint import load_run


def naive(assembled, pixels):
    """Return every square's visual embeddings, `[square][row][column]`, of 2 x 2 patches side by side."""
    llava = assembled.model.model
    states = llava.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].double()
    first, second = (
        (layer.weight.double(), layer.bias.double())
        for layer in (llava.multi_modal_projector.linear_1, llava.multi_modal_projector.linear_2)
    )

    def embedding(patches, row, column):
        corner = 2 * row * 4 + 2 * column  # a tower's square is 4 x 4 patches
        four = torch.cat([patches[corner + step] for step in (0, 1, 4, 5)])
        return second[0] @ torch.nn.functional.gelu(first[0] @ four + first[1]) + second[1]

    return [[[embedding(patches, r, c) for c in range(2)] for r in range(2)] for patches in states]


@pytest.mark.parametrize("tiles", [1, 4])
def test_the_terms_see_the_joined_patches(tiles):
    assembled = tiny_assembled(pool=2, image_size=32, tiles=tiles)
    trainable.train_projector(assembled)
    assert assembled.tokens_per_image == 4
    squares, count = (1, 4) if tiles == 1 else (3, 4 + 2 * 5)
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * count, 7, 8, 9]])
    pixels = torch.randn(squares, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = {} if tiles == 1 else {"image_sizes": [(32, 64)]}
    supervision = BasicSupervision(assembled.model)
    with supervision:
        outputs = assembled.model(input_ids=ids, labels=ids, pixel_values=pixels, **sizes)
    (outputs.loss + supervision.loss()).backward()
    made = naive(assembled, pixels)
    expected = [made[0][r][c] for r in range(2) for c in range(2)]
    if tiles > 1:  # line by line over both tiles
        expected += [made[tile][r][c] for r in range(2) for tile in (1, 2) for c in range(2)]
    assert close(supervision.refinement.initial, torch.stack(expected), 1e-5)
    assert len(supervision.refinement.importance) == len(expected)
    gradient = assembled.model.model.multi_modal_projector.linear_1.weight.grad
    assert gradient.shape == (32, 4 * 24)
    assert bool((gradient.view(32, 4, 24).abs().amax((0, 2)) > 0).all())


@pytest.mark.parametrize("kind", ["stage1", "lora"])
def test_a_run_is_read_back_and_not_exported(tmp_path, kind):
    out = made_run(tmp_path / "run", "llama", "clip", kind, pool=2, image_size=32)
    assert files.read_manifest(out)["sources"]["pool"] == 2
    assembled, _ = load_run(out)
    pixels = torch.randn(1, 3, 32, 32)
    base = assembled.model.get_base_model() if kind == "lora" else assembled.model
    assert base.model.get_image_features(pixels).pooler_output[0].shape == (4, 32)
    for to in ("hf", "peft"):
        with pytest.raises(ValueError, match="no standard LLaVA class: nothing can be exported") as raised:
            export(out, tmp_path / "out", to=to)
        assert "\n" not in str(raised.value)


def test_a_stage_with_joined_patches(world, tmp_path):
    refused = run(*stage1(world, "--pool", 2, "--max-steps", 1), cwd=tmp_path, expect=2).stderr
    assert (
        f"joins 2 x 2 patches, and {tower_folder()} has 3 a side at 24 pixels: add --image-size 32" in refused
    )
    more = ("--pool", 2, "--tiles", 2, "--image-size", 32, "--bits", 16, "--max-steps", 1)
    said = settings_shown(run(*stage1(world, *more), cwd=tmp_path).stdout)
    assert (said["pool"], said["tiles"]) == ("2", "2")
    manifest = files.read_manifest(tmp_path / "runs/stage1")
    assert manifest["tokens_per_image"] == 4
    assert manifest["finished"]
