"""What answering takes: the plan against models that answer, what is chosen by it, and batches in halves."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from command import run
from memory.measure_inference import POINTS
from memory.separate import chosen, printed_by

from basic_lite.memory import available, inference
from basic_lite.memory.available import Halves
from basic_lite.memory.inference import (
    Inference,
    batch_that_fits,
    cache_bytes,
    needed,
    peak,
    weight_bytes,
)
from basic_lite.memory.sizes import TOWERS, TowerSize, published_decoder
from basic_lite.models.projector import Projector

CLIP = TowerSize.of(TOWERS["clip-l-336"])


@pytest.fixture(scope="module")
def measured(request) -> dict[str, int]:
    points = [point for (point,) in chosen(request, "point")]
    return {name: size for line in printed_by("measure_inference.py", *points) for name, size in line.items()}


@pytest.mark.parametrize("point", POINTS)
def test_what_answering_holds_is_predicted(point, measured):
    plan = POINTS[point].plan
    weights = sum(weight_bytes(plan).values())
    tensors = sum(size for part, size in peak(plan).items() if part != "context and allocator")
    assert tensors == pytest.approx(measured[point], rel=0.04)
    assert tensors - weights == pytest.approx(measured[point] - weights, rel=0.08)


@pytest.mark.parametrize(
    ("name", "elements"),
    {
        "vicuna-7b": 32 * 1000 * 32 * 128,
        "mistral-7b": 32 * 1000 * 8 * 128,  # 8 heads of keys under 32 of queries
        "qwen3-4b": 36 * 1000 * 8 * 128,
        "gemma2-2b": 26 * 1000 * 4 * 256,  # its window is longer
        "gemma3-1b": (4 * 1000 + 22 * 512) * 256,  # every sixth of 26 layers sees everything
    }.items(),
)
def test_keys_and_values_of_a_family(name, elements):
    plan = Inference(published_decoder(name), CLIP, batch=3)
    assert cache_bytes(plan, 1000) == 3 * 2 * 2 * elements


def test_the_largest_batch_that_fits_is_taken():
    plan = Inference(published_decoder("vicuna-7b"), CLIP, batch=32)
    budgets = [inference.budget_bytes(gib) for gib in (8, 12, 16, 24, 48)]
    sizes = [batch_that_fits(plan, budget).batch for budget in budgets]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1 < sizes[1]
    assert sizes[-1] == 32
    for size, budget in zip(sizes[1:-1], budgets[1:-1], strict=True):
        assert needed(replace(plan, batch=size)) <= budget < needed(replace(plan, batch=2 * size))


def test_an_export_takes_of_the_machine_what_was_measured():
    """`tests/export/merge_memory.py` at a 7B's widths: 0.27 GB beyond the shard."""
    plan = Inference(published_decoder("vicuna-7b"), CLIP, **inference.SETTINGS["export"])
    beyond = inference.host_bytes(plan) - inference.SHARD_BYTES - 2 * CLIP.parameters
    assert beyond / 1e9 == pytest.approx(0.27, abs=0.01)


def test_a_plan_of_one_model_answers_what_its_uses_need(tmp_path):
    lines = run("plan", "--model", "mistral-7b", "--gpu", 24, "--json", cwd=tmp_path).stdout.splitlines()
    rows = {row["use"]: row for row in map(json.loads, lines) if "use" in row}
    assert list(rows) == ["evaluate", "chat", "export"]
    assert rows["evaluate"]["cache_mb_per_prompt"] == round(961 * 32 * 2 * 1024 * 2 / 1e6, 1)
    assert [row["bits"] for row in rows.values()] == [4, 4, 16]
    assert rows["export"]["host_gb"] == pytest.approx(2.147 + 0.607 + 6 * 4096 * 14336 / 1e9, abs=0.01)
    for row in rows.values():
        assert row["peak_gb"] == pytest.approx(sum(row["parts"].values()), abs=0.002)
    shown = run("plan", "--model", "mistral-7b", "--gpu", 12, cwd=tmp_path).stdout
    export = next(line for line in shown.splitlines() if line.startswith("export in 16 bits"))
    assert export.split()[-1] == "-"
    assert "evaluate in 4 bits" in shown
    stage = run("plan", "--model", "mistral-7b", "--gpu", 12, "--stage", 1, cwd=tmp_path).stdout
    assert "evaluate" not in stage


class _Config:
    model_type = "llava"

    def __init__(self, name: str = "vicuna-7b", tower: str = "clip-l-336") -> None:
        from basic_lite.memory.sizes import DECODERS

        self.text_config, self.vision_config = DECODERS[name], TOWERS[tower]


class _OnACard(torch.nn.Module):
    """Says that it is on a GPU, with adapters of rank 128."""

    def named_parameters(self, *args, **kwargs):
        yield "layers.0.q_proj.lora_A.default.weight", torch.empty(128, 4096, device="meta")

    def parameters(self, *args, **kwargs):
        class Parameter:
            device = torch.device("cuda")

        yield Parameter()


def test_a_batch_goes_by_what_is_free(monkeypatch):
    def free(gigabytes: float) -> tuple[int, str]:
        monkeypatch.setattr(available, "available_bytes", lambda device: gigabytes * 1e9)
        return inference.batch_for(_Config(), _OnACard(), 700, 64, default=16)

    sizes = [free(gigabytes)[0] for gigabytes in (0.1, 3, 6, 12, 100)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, 32)
    assert len(set(sizes)) == 5
    size, line = free(6)
    assert line.startswith(f"{size} prompts at once: beside the weights they take ")
    assert "of the 6.0 GB that are free (16 bits, up to 700 + 64 tokens)" in line
    taken = needed(Inference(published_decoder("vicuna-7b"), CLIP, 16, batch=size, text=123, new=64))
    there = sum(weight_bytes(Inference(published_decoder("vicuna-7b"), CLIP, 16)).values()) + 900e6
    assert f"take {(taken - there) / 1e9:.1f} " in line
    assert inference.batch_for(_Config(), torch.nn.Linear(1, 1), 700, 64, default=16) == (16, "")


def test_a_batch_goes_by_tiles_and_joined_patches(monkeypatch):
    monkeypatch.setattr(available, "available_bytes", lambda device: 6e9)
    plain, tiled, pooled, card = _Config("smollm2-135m"), _Config("smollm2-135m"), _Config(), _OnACard()
    tiled.image_grid_pinpoints = [[672, 672], [336, 1344]]
    sizes = [inference.batch_for(config, card, 3000, 64, default=16)[0] for config in (plain, tiled)]
    assert sizes == [32, 16]  # five squares pass the tower, 222 MB of a prompt, where one has 160 elsewhere
    card.projector = Projector.__new__(Projector)
    torch.nn.Module.__init__(card.projector)
    card.projector.pool = 2
    pooled.vision_config = SimpleNamespace(**{**vars(TOWERS["clip-l-336"]), "patch_size": 28})
    size, line = inference.batch_for(pooled, card, 700, 64, default=16)
    plan = Inference(published_decoder("vicuna-7b"), replace(CLIP, pool=2), 16, batch=size, text=555, new=64)
    there = sum(weight_bytes(plan).values()) + 900e6
    assert f"take {(needed(plan) - there) / 1e9:.1f} " in line


def test_bits_of_a_run_are_its_own_unless_the_card_is_too_small(stage1_run, monkeypatch):
    own = json.loads((stage1_run / "manifest.json").read_text())["sources"]["bits"]
    assert inference.bits_for(stage1_run, "chat", "cpu") == (own, "")
    monkeypatch.setattr(available, "available_bytes", lambda device: 24e9)
    bits, line = inference.bits_for(stage1_run, "chat", "cuda")
    assert (bits, line.split(":")[0]) == (own, f"{own} bits")
    monkeypatch.setattr(available, "available_bytes", lambda device: 0.5e9)
    bits, line = inference.bits_for(stage1_run, "chat", "cuda")
    assert bits == 4
    assert f"4 bits, as {own} bits need" in line
    assert line.endswith(", which may not fit")


# Of the largest of two grids, two squares of 3 x 3 patches one below the other, each line ends in a newline.
@pytest.mark.parametrize(("tiles", "pool", "picture"), [(2, 1, 9 + 6 * 4), (1, 3, 1), (2, 3, 1 + 2 * 2)])
def test_bits_of_a_run_go_by_its_tiles_and_its_pool(stage1_run, monkeypatch, tiles, pool, picture):
    monkeypatch.setattr(available, "available_bytes", lambda device: 24e9)
    path = stage1_run / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in (("tiles", tiles), ("pool", pool)):
        manifest["sources"][name] = value
    path.write_text(json.dumps(manifest))
    _, line = inference.bits_for(stage1_run, "chat", "cuda")
    assert line.endswith(f"GB for {1 + picture + 1024:,} + 512 tokens")


def test_every_tile_passes_the_tower():
    decoder = published_decoder("vicuna-7b")
    tiled = replace(CLIP, tiles=4)
    assert tiled.squares == 5
    one, five = (
        sum(inference._moments(Inference(decoder, tower, text=0, batch=32))[0].values())
        for tower in (CLIP, tiled)
    )
    assert five == 5 * one


def test_work_goes_on_in_halves_and_the_results_are_the_same(caplog):
    sizes = []

    def work(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        return [row * row for row in rows]

    halves = Halves()
    with caplog.at_level(logging.WARNING):
        assert halves(work, list(range(11))) == [row * row for row in range(11)]
    assert sizes == [11, 6, 3, 3, 3, 2]
    assert halves(work, [4, 5, 6, 7]) == [16, 25, 36, 49]
    assert sizes[6:] == [3, 1]  # what failed is not tried again
    assert [record.message for record in caplog.records][-1].startswith("out of memory with 6 prompts")

    def never(rows: list[int]) -> list[int]:
        raise torch.OutOfMemoryError

    with pytest.raises(ValueError, match="out of memory with a single prompt; hold the decoder in 4 bits"):
        Halves()(never, [1, 2])
