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


@pytest.mark.parametrize(
    "name", {row.family: name for name, row in zoo.LLMS.items() if name in DECODERS}.values()
)
def test_the_decoders_have_the_sizes_of_their_classes(name):
    assert size_of(name).parameters == parameters_of(DECODERS[name])


def test_the_decoders_have_their_published_sizes():
    """The totals that the hub's pages show for the safetensors, a tied head counted once."""
    published = {
        "llama3.2-1b": 1_235_814_400,
        "llama3.2-3b": 3_212_749_824,
        "llama3.1-8b": 8_030_261_248,
        "qwen2.5-0.5b": 494_032_768,
        "qwen2.5-1.5b": 1_543_714_304,
        "qwen2.5-3b": 3_085_938_688,
        "qwen2.5-7b": 7_615_616_512,
        "qwen3-0.6b": 596_049_920,
        "qwen3-1.7b": 1_720_574_976,
        "qwen3-4b": 4_022_468_096,
        "qwen3-8b": 8_190_735_360,
        "gemma2-2b": 2_614_341_888,
        "gemma3-270m": 268_098_176,
        "gemma3-1b": 999_885_952,
        "smollm2-135m": 134_515_008,
        "smollm2-360m": 361_821_120,
        "smollm2-1.7b": 1_711_376_384,
        "smollm3-3b": 3_075_098_624,
        "olmo2-1b": 1_484_916_736,
        "olmo2-7b": 7_298_617_344,
        "phi4-mini": 3_836_021_760,
        "mistral-7b-v0.3": 7_248_023_552,
    }
    assert {name: DecoderSize.of(DECODERS[name]).parameters for name in published} == published


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
    "7B, stage 2, tower, fused",
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
    from basic_lite.memory.activations import DecoderSetup
    from basic_lite.memory.peak import Step

    setup = DecoderSetup(16, "adapters", 128, 0.0, half=True)
    step = Step(size_of("vicuna-7b"), CLIP, setup)
    whole, half = static_parts(step), static_parts(replace(step, shards=2))
    linear, norms = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 65 * 4096
    adapters = 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert whole["decoder"] == 2 * (linear + norms)
    assert half["decoder"] == linear + norms
    assert half["adapters"] == 16 * adapters / 2
    assert whole["adapters"] == (16 + 2) * adapters  # and their narrow copies, which stay
    assert half.pop("layers at work") == (2 * 2 * (linear + norms) + 12 * adapters) / 32
    assert {k: v for k, v in half.items() if whole[k] != v}.keys() == {"decoder", "adapters"}
    four = static_parts(replace(step, setup=replace(setup, bits=4), shards=2))
    scales = linear * (1 / 64 + 4 / (64 * 256))
    assert four["decoder"] == linear / 4 + norms + scales
