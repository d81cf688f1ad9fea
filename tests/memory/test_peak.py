"""The predicted peak against the bytes that the real trainer's step holds at real shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory.measure_steps import POINTS, step_at
from memory.separate import chosen, printed_by
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from basic_lite.bench.synthetic import DECODERS
from basic_lite.memory.available import parameters_of
from basic_lite.memory.peak import allocated, static_parts
from basic_lite.memory.sizes import TOWERS, DecoderSize, TowerSize
from basic_lite.models import zoo

CLIP = TowerSize.of(TOWERS["clip-l-336"])


def size_of(name: str, depth: int | None = None) -> DecoderSize:
    size = DecoderSize.of(DECODERS[name])
    return replace(size, depth=depth or size.depth)


@pytest.mark.parametrize("name", DECODERS)
def test_the_decoders_have_their_published_sizes(name):
    assert size_of(name).parameters == parameters_of(DECODERS[name])


@pytest.mark.parametrize(
    "config",
    [
        AutoConfig.for_model(**vars(TOWERS["clip-l-336"])),
        AutoConfig.for_model(**vars(TOWERS["siglip-so400m-384"])),
        CLIPVisionConfig(),
        SiglipVisionConfig(vision_use_head=False),
        Dinov2Config(image_size=518),
    ],
    ids=["clip-l-336", "siglip-so400m-384", "clip", "siglip without head", "dinov2"],
)
def test_a_tower_has_as_many_parameters_as_its_model(config):
    import torch

    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    assert TowerSize.of(config).parameters == expected


def test_the_towers_are_the_zoo_s():
    for name, config in TOWERS.items():
        assert TowerSize.of(config).tokens == zoo.TOWERS[name].tokens


@pytest.fixture(scope="module")
def measured(request) -> dict[str, int]:
    points = [point for (point,) in chosen(request, "point")]
    return {name: size for line in printed_by("measure_steps.py", *points) for name, size in line.items()}


DEFAULT = (
    "7B, stage 1, nothing recomputed, fused",
    "7B, stage 2, two of three",
    "Gemma-2B, stage 2, all, fused",
    "Phi-3, stage 1, one of three, fused",
)
"""Each family, stage and way of recomputing once."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", [point if point in DEFAULT else pytest.param(point, marks=pytest.mark.full) for point in POINTS]
)
def test_the_peak_is_predicted(point, measured):
    step = step_at(point)[1]
    weights = sum(static_parts(step).values())
    assert allocated(step) == pytest.approx(measured[point], rel=0.05)
    assert allocated(step) - weights == pytest.approx(measured[point] - weights, rel=0.12)


def test_cut_layers_are_counted_once_over_the_processes_and_two_more_are_whole():
    """Vicuna-7B in bf16 under adapters: 12.95 GB of layers and 5.1 GB of adapters, by hand."""
    from basic_lite.memory.activations import Held
    from basic_lite.memory.peak import Step

    held = Held(16, "adapters", 128, 0.0, half=True)
    step = Step(size_of("vicuna-7b"), CLIP, held)
    whole, half = static_parts(step), static_parts(replace(step, shards=2))
    linear, norms = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 65 * 4096
    adapters = 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert whole["decoder"] == 2 * (linear + norms)
    assert half["decoder"] == linear + norms
    assert half["adapters"] == 16 * adapters / 2
    assert whole["adapters"] == (16 + 2) * adapters  # and their narrow copies, which stay
    assert half.pop("layers at work") == (2 * 2 * (linear + norms) + 12 * adapters) / 32
    assert {k: v for k, v in half.items() if whole[k] != v}.keys() == {"decoder", "adapters"}
    four = static_parts(replace(step, held=replace(held, bits=4), shards=2))
    scales = linear * (1 / 64 + 4 / (64 * 256))
    assert four["decoder"] == linear / 4 + norms + scales
