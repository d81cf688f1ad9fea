"""Scenes with signs: what is drawn where, and which patches hold text."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from basic_lite.data.world.parts import DECODER
from basic_lite.data.world.render import PATCH, SIDE, render
from basic_lite.data.world.scenes import sample_scene
from basic_lite.data.world.signs import PLATES, WORDS, Sign, put_sign, render_with, write_signs


@pytest.mark.parametrize("size", PLATES)
@pytest.mark.parametrize("seed", range(8))
def test_a_sign_changes_its_own_patches_and_covers_no_thing(seed, size):
    rng = random.Random(seed)
    scene = sample_scene(rng)
    sign = put_sign(scene, rng, size)
    plain, signed = (
        np.asarray(image).astype(int) for image in (render(scene).image, render_with(scene, sign))
    )
    grid = SIDE // PATCH
    changed = (plain != signed).any(2).reshape(grid, PATCH, grid, PATCH).any((1, 3)).flatten()
    assert np.flatnonzero(changed).tolist() == sign.patches
    assert (sign.row, sign.column) not in {(thing.row, thing.column) for thing in scene.things}
    left, top, right, bottom = sign.box
    assert 0 <= left < right <= SIDE
    assert 0 <= top < bottom <= SIDE


def test_a_small_sign_is_in_one_tile_and_in_one_patch_of_half_the_size():
    for row in range(3):
        for column in range(3):
            left, top, right, bottom = Sign("red", row, column, PLATES["small"]).box
            for first, end in ((left, right), (top, bottom)):
                assert first // (SIDE // 2) == (end - 1) // (SIDE // 2)
                assert (first % (2 * PATCH), end - first) == (0, 2 * PATCH)


def test_words_look_different():
    scene = sample_scene(random.Random(0))
    sign = put_sign(scene, random.Random(1))
    pictures = {render_with(scene, type(sign)(word, sign.row, sign.column)).tobytes() for word in WORDS}
    assert len(pictures) == len(WORDS)


def test_the_files(tmp_path):
    for folder in ("one", "two"):
        write_signs(tmp_path / folder, seed=3, captions=6, held_out=4)
    files = sorted(
        path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()
    )
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    rows = {
        name: json.loads((tmp_path / "one" / name).read_text()) for name in ("stage1.json", "held_out.json")
    }
    assert [len(found) for found in rows.values()] == [6, 4]
    for found in rows.values():
        for row in found:
            assert row["conversations"][1]["value"].removesuffix(".") in WORDS
            assert (tmp_path / "one" / row["image"]).is_file()


@pytest.mark.skipif(not DECODER.exists(), reason="the decoder is not in the package: python -m parts.command")
def test_words_are_single_tokens_of_their_own():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(WORDS)
