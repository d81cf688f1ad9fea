"""What tiles and joined patches cost, by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from command import run

from basic_lite.memory.choice import step_of
from basic_lite.memory.peak import peak
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
        assert "too many" not in run("plan", "--model", "vicuna-7b", *more, cwd=tmp_path).stdout


def test_the_table_names_the_tokens():
    towers = towers_named("clip-l-336", None, False, 4)
    model = "vicuna-7b", published_decoder("vicuna-7b")
    table = stage_table("stage1", [plan_row("stage1", model, towers[0], 24)])
    cells = [[*column.cells] for column in table.columns]
    assert dict(zip(*cells, strict=True))["its tokens"] == "2,928"
