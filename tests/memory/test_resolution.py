"""What tiles and joined patches cost, by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from command import run
from tiny import tiny_assembled

from basic_lite.data.dataset import TextEncoder
from basic_lite.data.rows import ImageRef, Sample
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.tiles import Tiling
from basic_lite.memory.choice import step_of
from basic_lite.memory.peak import peak
from basic_lite.memory.resolution import PICTURES
from basic_lite.memory.sizes import projector_parameters, published_decoder, towers_named
from basic_lite.memory.speed import flops_per_sample
from basic_lite.memory.tables import plan_row, stage_table


def step(**tower):
    decoder, clip = published_decoder("vicuna-7b"), towers_named("clip-l-336", None, False)[0][1]
    return step_of("stage1", decoder, replace(clip, **tower))


@pytest.mark.parametrize(
    ("tiles", "pool", "tokens", "patches", "squares"),
    [
        (1, 1, 576, 576, 1),
        (4, 1, 576 + 48 * 49, 5 * 576, 5),
        (9, 1, 576 + 72 * 73, 10 * 576, 10),
        (1, 2, 144, 144, 1),
        (4, 2, 144 + 24 * 25, 5 * 144, 5),
    ],
)
def test_the_picture_that_takes_most(tiles, pool, tokens, patches, squares):
    tower, plain = step(tiles=tiles, pool=pool).tower, step().tower
    assert (tower.tokens, tower.patches, tower.squares) == (tokens, patches, squares)
    assert (tower.positions, tower.parameters) == (577, plain.parameters)
    assert step(tiles=tiles, pool=pool).tokens == 8 * (1 + tokens + 64)


def test_the_parts_of_a_step_grow_with_what_they_work_on():
    one, four, pooled = (flops_per_sample(step(**more)) for more in ({}, {"tiles": 4}, {"pool": 2}))
    for part in ("tower", "projector", "L_sds"):
        assert four[part] == pytest.approx(5 * one[part])
    assert four["decoder, forward"] > 4.3 * one["decoder, forward"]
    assert pooled["tower"] == one["tower"]
    assert pooled["L_sds"] == pytest.approx(one["L_sds"] / 4)
    assert sum(peak(step(tiles=4)).values()) > 2 * sum(peak(step()).values())
    assert sum(peak(step(pool=2)).values()) < sum(peak(step()).values())


def test_a_wider_projector_is_counted():
    plain, pooled = step(), step(pool=2)
    more = projector_parameters(pooled.tower, pooled.decoder) - projector_parameters(
        plain.tower, plain.decoder
    )
    assert more == 3 * 1024 * 4096


def test_a_picture_of_more_tokens_than_the_decoder_reads_is_no_plan(tmp_path):
    """As training refuses it: nine tiles of Vicuna's 4,096 tokens, though they fit the card."""
    said = run("plan", "--model", "vicuna-7b", "--tiles", 9, "--gpu", 80, cwd=tmp_path).stdout
    assert said.count("5,832: too many") == 3
    line = "vicuna-7b was made for 4,096 tokens, and a picture of --tiles 9 takes up to 5,832: it is refused"
    assert line in said
    assert "does not fit" not in said
    rows = run("plan", "--model", "vicuna-7b", "--tiles", 9, "--gpu", 80, "--json", cwd=tmp_path).stdout
    assert [json.loads(row).get("micro_batch") for row in rows.splitlines()][:3] == [None] * 3
    for more in (("--tiles", 4), ("--tiles", 9, "--pool", 2)):
        assert ": too many" not in run("plan", "--model", "vicuna-7b", *more, cwd=tmp_path).stdout


def test_the_table_names_the_tokens():
    towers = towers_named("clip-l-336", None, False, 4)
    model = "vicuna-7b", published_decoder("vicuna-7b")
    table = stage_table("stage1", [plan_row("stage1", model, towers[0], 24)])
    cells = [[*column.cells] for column in table.columns]
    assert dict(zip(*cells, strict=True))["its tokens"] == "2,928"


PHOTO = {1: 576, 4: 576 + 36 * 49, 9: 576 + 36 * 49}
PAGE = {1: 576, 4: 576 + 48 * 35, 9: 576 + 72 * 51}
PHOTO_POOLED = {1: 144, 4: 144 + 18 * 25, 9: 144 + 18 * 25}
PAGE_POOLED = {1: 144, 4: 144 + 24 * 17, 9: 144 + 36 * 27}
"""Tokens by tiles: 640 x 480 pixels become 48 x 36 patches in 2 x 2 tiles, also where there may be 9;
1240 x 1754 become 34 x 48 in 2 x 2, and 50 x 72 in 3 x 3 (an odd line of border stays)."""


def test_the_cost_of_a_resolution_is_the_one_of_the_rows_that_training_makes(tmp_path):
    said = run("plan", "--model", "vicuna-7b", "--tiles", 4, "--stage", 1, "--json", cwd=tmp_path).stdout
    rows = [row for row in map(json.loads, said.splitlines()) if "times" in row]
    assert [(row["pool"], row["tiles"]) for row in rows] == [(p, t) for p in (1, 2) for t in (1, 4, 9)]
    for row, photo, page in zip(
        rows, [*PHOTO.values(), *PHOTO_POOLED.values()], [*PAGE.values(), *PAGE_POOLED.values()], strict=True
    ):
        assert (row["tokens"]["photo"], row["tokens"]["page"]) == (photo, page)
        tower = step(tiles=row["tiles"], pool=row["pool"]).tower
        assert row["tokens"]["most"] == tower.tokens
        assert row["fits"] == (tower.tokens < 4096)
    one, four = rows[:2]
    assert one["times"] == {"photo": 1, "page": 1, "most": 1}
    of_four = sum(flops_per_sample(step(tiles=4)).values()) / sum(flops_per_sample(step()).values())
    assert four["times"]["most"] == pytest.approx(of_four, abs=0.005)
    assert one["times"]["photo"] < four["times"]["photo"] < four["times"]["most"]
    assert four["peak_gb"] == pytest.approx(
        sum(peak(replace(step(tiles=4), micro_batch=1)).values()) / 1e9, abs=0.005
    )


@pytest.mark.parametrize("size", [(480, 640), (1754, 1240)])
@pytest.mark.parametrize("tiles", [4, 9])
def test_the_tokens_of_a_picture_are_those_that_its_row_takes(size, tiles):
    """As training's encoder counts them, and as LLaVA-NeXT's processor does."""
    tower = step(tiles=tiles, picture=size).tower
    tiling = Tiling.up_to(tiles, 336, 14)
    assembled = tiny_assembled()
    image = assembled.image_token_id
    encoder = TextEncoder(TEMPLATES["plain"], assembled.tokenizer, image, 576, None, tiling)
    turns = [("user", "<image>"), ("assistant", "a page")]
    row = encoder(Sample("0", (ImageRef("page.png"),), turns), [size])
    assert row.input_ids.count(image) == tower.tokens
    assert (tower.patches, tower.squares) == (tiling.block(size).patches, tiling.block(size).squares)


def test_patches_that_cannot_be_joined_are_refused(tmp_path):
    said = run(
        "plan", "--model", "vicuna-7b", "--tower", "siglip-so400m-384", "--pool", 2, cwd=tmp_path, expect=2
    )
    assert "has 27 a side at 384 pixels: add --image-size 392, or leave --pool out" in said.stderr


def test_a_plan_shows_what_tiles_cost_of_each_stage(tmp_path):
    said = run("plan", "--model", "vicuna-7b", "--tiles", 9, "--pool", 2, "--gpu", 24, cwd=tmp_path).stdout
    for stage in ("stage1", "stage2 --lora", "stage2"):
        assert f"{stage}: tokens of a picture, GB of a pass of one row, operations per sample" in said
    assert said.count("too many") == 3  # 9 tiles without --pool, in each
    height, width = PICTURES["photo"]
    assert f"photo: {width} x {height} pixels; page: {' x '.join(map(str, PICTURES['page'][::-1]))};" in said
