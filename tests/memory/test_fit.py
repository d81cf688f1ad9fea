"""`--fit`: the choice keeps global batch and memory, is printed by a dry run and kept in the manifest."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from command import run, stage1, stage2
from tiny import llm_folder, tower_folder

from basic_lite.memory.choice import KINDS, budget_bytes, candidates, dequantise, fit, least, needed, step_of
from basic_lite.memory.peak import activation_bytes, peak
from basic_lite.memory.sizes import TOWERS, TowerSize, published_decoder

CLIP = TowerSize.of(TOWERS["clip-l-336"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vicuna-7b", "gemma-2b"])
def test_more_rows_need_more_and_recomputing_keeps_less(name, kind):
    step = step_of(kind, published_decoder(name), CLIP)
    sizes = [needed(replace(step, micro_batch=rows)) for rows in (1, 2, 4, 8, 16)]
    assert sizes == sorted(sizes)
    kept = [activation_bytes(step, count) for count in range(step.decoder.depth)]
    assert kept == sorted(kept, reverse=True)
    assert needed(replace(step, recompute=step.decoder.depth)) < needed(replace(step, recompute=0))
    assert needed(replace(step, text=step.text + 100)) > needed(step)


@pytest.mark.parametrize("kind", ["stage1", "stage2 --lora"])
def test_a_larger_card_is_never_slower_and_the_choice_fits(kind):
    step = step_of(kind, published_decoder("vicuna-7b"), CLIP)
    from basic_lite.memory.speed import CARDS, seconds_per_sample

    card, times = CARDS[2], []
    for gib in (16, 20, 24, 32, 48, 80):
        chosen = fit(step, budget_bytes(gib), candidates(128), 24, ("adamw",))
        assert needed(chosen) <= budget_bytes(gib)
        if chosen.recompute:  # as few as fit: one layer less is too much
            fewer = replace(chosen, recompute=chosen.recompute - 1)
            assert needed(fewer) > budget_bytes(gib)
        times.append(seconds_per_sample(chosen, card))
    assert times == pytest.approx(sorted(times, reverse=True), rel=0.02)


@pytest.mark.parametrize("kind", ["stage1", "stage2 --lora"])
def test_memory_that_is_left_holds_dequantised_layers(kind):
    step, budget = step_of(kind, published_decoder("vicuna-7b"), CLIP), budget_bytes(16)
    step = replace(step, micro_batch=4, recompute=32)
    held = dequantise(step, budget)
    one = 2 * (4 * 4096**2 + 3 * 4096 * 11008)  # bytes of a layer's matrices in bf16
    assert 0 < held.dequantised < 31
    assert needed(held) == pytest.approx(needed(step) + held.dequantised * one)
    assert needed(held) <= 0.95 * budget < needed(held) + one
    assert dequantise(step, needed(step)).dequantised == 0
    text = step.text + (700 if kind == "stage1" else 200)
    longest = dequantise(step, budget, longest=text)
    assert 0 < longest.dequantised < held.dequantised
    assert needed(replace(longest, text=text)) <= 0.95 * budget
    assert dequantise(step, 1e12).dequantised == 31  # the last layer has no such code


@pytest.mark.parametrize(
    "change", [{"family": "olmo2"}, {"bits": 16}, {"training": "decoder"}, {"shards": 2}]
)
def test_what_cannot_be_held_dequantised_is_not(change):
    step = step_of("stage1", published_decoder("vicuna-7b"), CLIP)
    if "family" in change:
        step = replace(step, decoder=replace(step.decoder, **change))
    elif "shards" in change:
        step = replace(step, **change)
    else:
        step = replace(step, setup=replace(step.setup, **change))
    assert dequantise(step, 1e12).dequantised == 0


def test_a_step_of_one_pass_is_planned_as_one():
    step, budget = step_of("stage2 --lora", published_decoder("vicuna-7b"), CLIP), budget_bytes(80)
    assert fit(step, budget, [4], 80, rows=8).accumulates
    assert not fit(step, budget, [4], 80, rows=4).accumulates


def test_l_sds_goes_through_in_tiles_where_that_alone_makes_a_step_fit():
    decoder = replace(published_decoder("gemma-2b"), depth=2)
    step = replace(step_of("stage1", decoder, CLIP), micro_batch=2)
    assert step.chunk.columns == decoder.vocabulary
    assert "head and losses" in peak(step)
    budget = min(needed(replace(step, recompute=layers)) for layers in range(3)) - 100e6
    chosen = fit(step, budget, [2], 24)
    assert chosen.chunk.columns < decoder.vocabulary
    assert chosen.chunk_bytes <= chosen.workspace < step.chunk_bytes
    assert needed(chosen) <= budget
    given = replace(step, rows_per_chunk=step.chunk.rows)
    assert fit(given, budget, [2], 24) is None


def test_the_optimizer_changes_only_where_nothing_else_fits():
    step = step_of("stage2 --lora", published_decoder("vicuna-7b"), CLIP)
    both = ("adamw", "paged-adamw-8bit")
    smallest = needed(least(step, ("adamw",)))
    assert fit(step, smallest, [1], 24, both).optimizer == "adamw"
    assert fit(step, smallest - 1e9, [1], 24, both).optimizer == "paged-adamw-8bit"
    assert fit(step, smallest - 1e9, [1], 24, ("adamw",)) is None


def test_a_stage_runs_as_it_was_fitted(world, tmp_path):
    done = run(*stage1(world, "--dry-run"), cwd=tmp_path)
    assert "memory plan: " in done.stdout
    assert "micro-batch 2 x 2, 0 layers recompute" in done.stdout.replace("\n", " ")
    run(*stage1(world, "--fit", 24, "--max-steps", 1), cwd=tmp_path)
    manifest = json.loads((tmp_path / "runs/stage1/manifest.json").read_text())
    plan = manifest["memory"]
    assert plan["micro_batch"] * plan["accumulation"] == manifest["training"]["global_batch"] == 4
    assert manifest["training"]["micro_batch"] == plan["micro_batch"]
    assert plan["peak_gb"] == pytest.approx(sum(plan["parts"].values()), abs=0.002)
    run(*stage2(world, "--lora", "--rank", 4, "--fit", "auto", "--max-steps", 1), cwd=tmp_path)
    manifest = json.loads((tmp_path / "runs/stage2/manifest.json").read_text())
    assert manifest["memory"]["stage"] == "stage2 --lora"
    assert manifest["training"]["optimizer"] == "adamw"


def test_what_cannot_fit_is_said(world, tmp_path):
    refused = run(*stage1(world, "--fit", 1), cwd=tmp_path, expect=2)
    assert "--fit 1: stage1 of" in refused.stderr
    assert "GB at least and 0.5 GB may be used; take a smaller --model" in refused.stderr
    refused = run(*stage1(world, "--fit", "lots"), cwd=tmp_path, expect=2)
    assert "--fit takes the card's memory in GiB, such as 24, or auto; got 'lots'" in refused.stderr
    for wanted, answer in (
        ("many", "--keep-dequantised takes a number of decoder layers, or auto; got 'many'"),
        (99, "--keep-dequantised 99: at most "),
    ):
        refused = run(*stage1(world, "--keep-dequantised", wanted), cwd=tmp_path, expect=2)
        assert answer in refused.stderr
    assert not (tmp_path / "runs").exists()
    assert llm_folder().is_dir()
    assert tower_folder().is_dir()
