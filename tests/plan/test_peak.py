"""The predicted peak against the bytes that the real trainer's step holds at real shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from measure_steps import POINTS, step_at
from separate import printed_by
from transformers import AutoModel, CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from basic_lite import zoo
from basic_lite.memory import parameters_of
from basic_lite.plan.peak import allocated, static_parts
from basic_lite.plan.sizes import TOWERS, DecoderSize, TowerSize
from basic_lite.synthetic import DECODERS

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
        TOWERS["clip-l-336"],
        TOWERS["siglip-so400m-384"],
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
def measured() -> dict[str, int]:
    found = {}
    for line in printed_by("measure_steps.py"):
        found |= line
    return found


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_the_peak_is_predicted(point, measured):
    step = step_at(point)[1]
    weights = sum(static_parts(step).values())
    assert allocated(step) == pytest.approx(measured[point], rel=0.05)
    assert allocated(step) - weights == pytest.approx(measured[point] - weights, rel=0.12)
