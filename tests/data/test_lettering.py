"""Which patches hold text: the definition, and how well it tells the embedded world's signs from things."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from tiny import tiny_assembled

from basic_lite.data.lettering import CONTRAST, SHARE, WIDTH, lettering
from basic_lite.data.readers import open_rows
from basic_lite.data.tiles import Tiling
from basic_lite.data.world.render import PATCH, render
from basic_lite.data.world.scenes import sample_scene
from basic_lite.data.world.signs import put_sign, render_with


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def by_the_definition(square: np.ndarray, patch: int) -> np.ndarray:
    """Closing, opening and the shares of both top-hats, pixel by pixel."""
    luma = square.astype(np.float64).transpose(1, 2, 0) @ (0.299, 0.587, 0.114)
    luma = luma.round()
    height, width = luma.shape

    def around(values, choose):
        half = WIDTH // 2
        return np.array(
            [
                [
                    choose(values[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1])
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )

    dark = around(around(luma, np.max), np.min) - luma > CONTRAST
    bright = luma - around(around(luma, np.min), np.max) > CONTRAST
    rows, columns = height // patch, width // patch

    def share(strokes, row, column):
        return strokes[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].mean()

    return np.array(
        [
            [min(share(dark, row, column), share(bright, row, column)) >= SHARE for column in range(columns)]
            for row in range(rows)
        ]
    )


@pytest.mark.parametrize("patch", [6, 7])
def test_the_definition(patch):
    blocks = np.random.default_rng(3).integers(0, 256, (2, 3, 13, 13)).repeat(2, 2).repeat(2, 3)
    squares = blocks[:, :, :26, :26].astype(np.uint8)
    squares[1] = squares[1] // 3 + 80  # with less contrast
    found = lettering(torch.from_numpy(squares), patch).numpy()
    assert found.shape == (2, 26 // patch, 26 // patch)
    assert 0 < found.mean() < 1
    for square, patches in zip(squares, found, strict=True):
        assert np.array_equal(patches, by_the_definition(square, patch))


def test_signs_of_the_embedded_world():
    """Of scenes with and without a sign: each of its patches, and hardly one of a thing or the ground."""
    right = wrong = missed = alarms = 0
    for seed in range(80):
        rng = random.Random(f"lettering {seed}")
        scene = sample_scene(rng)
        sign = put_sign(scene, rng)
        found = set(
            lettering(pixels_of(render_with(scene, sign)), PATCH).flatten().nonzero().flatten().tolist()
        )
        truth = set(sign.patches)
        right, wrong, missed = (
            right + len(found & truth),
            wrong + len(found - truth),
            missed + len(truth - found),
        )
        alarms += int(lettering(pixels_of(render(scene).image), PATCH).sum())
    assert (right, missed) == (80 * 6, 0)
    assert right / (right + wrong) >= 0.995
    assert alarms <= 0.001 * 80 * 64


@pytest.mark.parametrize(
    ("ink", "ground"), [((20, 20, 25), (245, 244, 236)), ((250, 250, 240), (30, 60, 120))]
)
@pytest.mark.parametrize("size", [11, 14, 18])
def test_print_of_any_polarity_and_size(ink, ground, size):
    image = Image.new("RGB", (140, 56), ground)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size)
    pen.multiline_text((3, 1), "some\nprint\nhere", fill=ink, font=font, spacing=1)
    found = lettering(pixels_of(image), 14)[0]
    assert found[:2].any(0)[:2].all()
    assert not found[:, 9].any()
    blank = lettering(pixels_of(Image.new("RGB", (140, 56), ground)), 14)
    assert not blank.any()


def test_a_line_or_an_edge_is_no_text():
    image = Image.new("RGB", (56, 56), (200, 190, 180))
    pen = ImageDraw.Draw(image)
    pen.line((0, 20, 56, 30), fill=(20, 20, 20), width=2)
    pen.rectangle((30, 36, 56, 56), fill=(30, 80, 30))
    assert not lettering(pixels_of(image), 14).any()


@pytest.mark.parametrize("size", [(48, 24), (30, 48), (10, 200), (90, 31), (40, 44)])
def test_tiles_are_put_in_the_order_of_the_rows_patches(size):
    """By LLaVA-NeXT's own unpadding of the same grid of numbers."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    tiling = Tiling.up_to(4, 24, 8)
    down, right = tiling.grid(size)
    values = torch.arange((1 + down * right) * 9).view(-1, 3, 3)
    lines = values[1:].view(down, right, 3, 3).permute(0, 2, 1, 3).reshape(1, down * 3, right * 3)
    expected = torch.cat([values[0].flatten(), unpad_image(lines, torch.tensor(size)).flatten()])
    assert torch.equal(tiling.in_order(values, size), expected)
    assert len(expected) == tiling.block(size).patches


@pytest.mark.parametrize("more", [{}, {"tiles": 4}, {"tiles": 4, "image_size": 32, "pool": 2}])
def test_batches_say_which_patches_hold_text(tmp_path, more):
    """One value for each (pooled) patch of each picture, in the order of the layout's patches."""
    assembled = tiny_assembled(**more)
    page = np.random.default_rng(0).choice([0, 255], (60, 30)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    Image.fromarray(page).convert("RGB").save(tmp_path / "page.png")
    Image.new("RGB", (50, 40), (200, 180, 170)).save(tmp_path / "wall.png")
    talks = [
        ("<image>\n<image>\nWhich?", ["page.png", "wall.png"]),
        ("Hello?", []),
        ("<image>", ["page.png"]),
    ]
    rows = [
        {"id": str(number), "conversations": [*turns(said)], **({"image": names} if names else {})}
        for number, (said, names) in enumerate(talks)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    opened, transform = open_rows(tmp_path / "rows.json"), assembled.transform("pad")
    given = {"max_length": None, "lettering": assembled.patch_side}
    dataset = assembled.supervised(opened, assembled.template, transform, **given)
    layout = assembled.collator()([dataset[row] for row in range(3)])["layout"]
    assert layout.spared is not None
    assert layout.spared.shape == layout.patch.shape
    each = layout.spared.split(layout.patch_count.int().tolist())
    assert each[0].any()
    assert not each[1].any()
    assert torch.equal(each[0], each[2])
    square = transform(Image.open(tmp_path / "page.png"))
    shown = lettering(square if square.dim() == 4 else square[None], assembled.patch_side)
    assert torch.equal(each[0][: shown[0].numel()], shown[0].flatten())
    part = layout.part(1, 3, 1)  # the last picture alone
    assert torch.equal(part.spared, each[2])
    plain = assembled.supervised(opened, assembled.template, transform, max_length=None)
    assert assembled.collator()([plain[0]])["layout"].spared is None
    assert assembled.collator()([dataset[1]])["layout"].spared is None


def turns(said: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": said}, {"from": "gpt", "value": "This one."}]
