"""The planner against figures of another hand: peaks, largest micro-batches, FLOPs; and against the goals.

They were derived apart from this code, from bytes per token of fused modules and 0.9 GB of context, rounded
to 0.1 GB, for CLIP-L-336, captions of 64 tokens, conversations of 824 and adapters of rank 128. Run with
`pytest tests/memory/test_anchors.py -rP` to see each of ours, the anchor, and the deviation.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory.goals import GOALS

from basic_lite.memory.activations import narrow_bytes
from basic_lite.memory.choice import Kind, budget_bytes, candidates, fit, needed, step_of
from basic_lite.memory.peak import Step, allocated, peak
from basic_lite.memory.sizes import TOWERS, TowerSize, published_decoder
from basic_lite.memory.speed import flops_per_sample

CLIP = TowerSize.of(TOWERS["clip-l-336"])
ROWS = (1, 4, 8, 16)

# GB at micro-batch 1, 4, 8, 16: stage 1 recomputing all and nothing, stage 2 recomputing all with fp32 and
# with 8-bit moments.
PEAKS: dict[str, tuple[tuple[float, ...], ...]] = {
    "vicuna-7b": (
        (6.1, 7.1, 8.4, 10.9),
        (7.8, 13.8, 21.8, 37.8),
        (11.8, 14.1, 16.9, 22.5),
        (8.6, 10.9, 13.7, 19.3),
    ),
    "vicuna-13b": (
        (9.8, 11.1, 12.9, 16.5),
        (12.5, 21.8, 34.2, 59.0),
        (18.5, 21.7, 25.6, 33.5),
        (13.5, 16.7, 20.6, 28.5),
    ),
    "gemma-2b": (
        (4.9, 5.0, 5.9, 7.5),
        (4.9, 8.3, 12.8, 21.2),
        (7.7, 8.9, 10.6, 13.9),
        (6.1, 7.3, 9.0, 12.3),
    ),
    "phi3-mini": (
        (4.3, 5.0, 6.0, 8.0),
        (5.5, 10.0, 16.0, 28.1),
        (8.5, 10.3, 12.4, 16.6),
        (6.1, 7.9, 10.0, 14.2),
    ),
    "mistral-7b": (
        (6.4, 7.4, 8.7, 11.4),
        (8.1, 14.2, 22.3, 38.6),
        (12.3, 14.8, 17.7, 23.5),
        (9.0, 11.4, 14.3, 20.1),
    ),
}
COLUMNS: tuple[tuple[Kind, bool, str], ...] = (
    ("stage1", True, "adamw"),
    ("stage1", False, "adamw"),
    ("stage2 --lora", True, "adamw"),
    ("stage2 --lora", True, "paged-adamw-8bit"),
)
CASES = [
    (name, *column, rows, anchor)
    for name, columns in PEAKS.items()
    for column, anchors in zip(COLUMNS, columns, strict=True)
    for rows, anchor in zip(ROWS, anchors, strict=True)
]


def step(name: str, kind: Kind, recompute: bool, optimizer: str, rows: int, dropout: float = 0.05) -> Step:
    decoder = published_decoder(name)
    layers = decoder.depth if recompute else 0
    found = replace(step_of(kind, decoder, CLIP), recompute=layers, optimizer=optimizer, micro_batch=rows)
    return replace(found, setup=replace(found.setup, dropout=dropout))


def counted_alike(anchor: float, planned: Step, recompute: bool) -> float:
    """Return an anchor with our buffers for the vocabulary in place of its own, in GB.

    The anchors hold 8 bytes for each of 512 logits of every token (what the head or `L_sds` needs there, 1 GB
    at Gemma's vocabulary), or of as many rows as the head has where nothing is recomputed. At micro-batch 1
    nothing else is left of them beside the weights and the layers' inputs. Here the head takes 4 bytes for
    256 rows of Gemma, and is done with them before a layer runs again; `L_sds` comes later still.
    """
    rows = 512 if recompute else min(planned.rows, 512)
    ours = peak(planned).get("head and losses", 0)
    return anchor + (ours - 8 * rows * planned.decoder.vocabulary) / 1e9


@pytest.mark.parametrize(("name", "kind", "recompute", "optimizer", "rows", "anchor"), CASES)
def test_a_peak_is_near_its_anchor(name, kind, recompute, optimizer, rows, anchor):
    planned = step(name, kind, recompute, optimizer, rows)
    if kind == "stage2 --lora":  # theirs trains bf16 with 8-bit moments; ours keeps bf16 copies without them
        bytes_more = 4 if optimizer == "paged-adamw-8bit" else 2
        anchor += bytes_more * planned.decoder.adapter_parameters(planned.setup.rank) / 1e9
    ours, alike = needed(planned) / 1e9, counted_alike(anchor, planned, recompute)
    layers = "all" if recompute else "nothing"
    what = f"{name} {kind}, {layers} recomputed, {optimizer}, micro-batch {rows}"
    print(f"{what}: {ours:.1f} against {alike:.1f} GB ({anchor:.1f} as derived), {ours / alike - 1:+.1%}")
    assert ours == pytest.approx(alike, rel=0.08)


@pytest.mark.parametrize(
    ("name", "largest"),
    {"vicuna-7b": 9, "vicuna-13b": 4, "gemma-2b": 19, "phi3-mini": 13, "mistral-7b": 9}.items(),
)
def test_stage_one_fits_24_gib_without_recomputation(name, largest):
    """At 23 of 24 GiB, as the anchors have it; the planner itself leaves half a GiB to a display."""
    fitting = [
        rows for rows in range(1, 64) if needed(step(name, "stage1", False, "adamw", rows)) <= 23 * 2**30
    ]
    assert abs(max(fitting) - largest) <= 1
    chosen = fit(step(name, "stage1", False, "adamw", 8), budget_bytes(24), candidates(256), 24)
    assert chosen.recompute == 0
    assert chosen.micro_batch == max(size for size in candidates(256) if size <= max(fitting))


# MiB that `max_memory_allocated` gave on an H200 (2026-11-27, torch 2.11, one micro-batch per optimizer
# step): stage, micro-batch, recomputed layers, optimizer. Adapters kept no bf16 copies then.
ON_A_CARD = [
    ("stage1", 8, 32, "adamw", 6799),
    ("stage1", 8, 0, "adamw", 19_324),
    ("stage2 --lora", 4, 32, "adamw", 10_836),
    ("stage2 --lora", 2, 0, "adamw", 20_355),
]


@pytest.mark.parametrize(("kind", "rows", "recompute", "optimizer", "mib"), ON_A_CARD)
def test_a_peak_is_near_what_a_card_said(kind, rows, recompute, optimizer, mib):
    planned = replace(step("vicuna-7b", kind, recompute > 0, optimizer, rows), accumulates=False)
    ours = allocated(planned) - narrow_bytes(planned.decoder, planned.setup)
    deviation = ours / (mib * 2**20) - 1
    print(f"{kind}, {recompute} recomputed: {ours / 2**20:.0f} against {mib} MiB, {deviation:+.1%}")
    assert abs(deviation) <= 0.05


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_the_goals_for_peaks_are_kept(goal):
    assert needed(goal.step) / 1e9 <= goal.gigabytes


# TFLOP per sample: the decoder's forward and backward pass, head on text rows, L_sds; stage 1 and stage 2.
FLOPS = {
    "vicuna-7b": ((8.40, 8.56, 0.034, 0.453), (19.5, 21.2, 0.43, 0.453)),
    "vicuna-13b": ((16.4, 16.7, 0.042, 0.566), (37.7, 40.3, 0.54, 0.566)),
    "gemma-2b": ((2.57, 2.61, 0.134, 1.812), (6.13, 6.79, 1.73, 1.812)),
    "phi3-mini": ((4.72, 4.84, 0.025, 0.340), (11.2, 12.5, 0.33, 0.340)),
    "mistral-7b": ((9.04, 9.20, 0.034, 0.453), (21.0, 22.7, 0.43, 0.453)),
}


@pytest.mark.parametrize("kind", ["stage1", "stage2 --lora"])
@pytest.mark.parametrize("name", FLOPS)
def test_flops_are_the_anchors_less_what_the_last_layer_leaves_out(name, kind):
    planned = step(name, kind, False, "adamw", 1)
    size, ours = planned.decoder, flops_per_sample(planned)
    forward, backward, head, sds = FLOPS[name][kind != "stage1"]
    for_all = {"k_proj", "v_proj", "qkv_proj"}
    behind = sum(linear.parameters for linear in size.linears if linear.name not in for_all)
    images = 1 + CLIP.tokens
    left_out = 2 * images * behind + 2 * images * (images + planned.text) * size.query
    assert (ours["decoder, forward"] + left_out) / 1e12 == pytest.approx(forward, rel=0.015)
    assert (ours["decoder, backward"] + left_out) / 1e12 == pytest.approx(backward, rel=0.03)
    assert ours["head"] / 1e12 == pytest.approx(head, rel=0.02)
    assert ours["L_sds"] / 1e12 == pytest.approx(sds, rel=0.002)
    assert ours["tower"] / 1e12 == pytest.approx(0.366, rel=0.005)
