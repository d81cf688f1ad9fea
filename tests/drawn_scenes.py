"""Scenes of the drawn world, as fixtures of the tests that talk about them."""

from __future__ import annotations

import random

import pytest

from basic_lite.data.world.scenes import Scene, sample_scene


@pytest.fixture(scope="session")
def training_scenes() -> list[Scene]:
    rng = random.Random(5)
    return [sample_scene(rng) for _ in range(150)]


@pytest.fixture(scope="session")
def held_out_scenes() -> list[Scene]:
    rng = random.Random(6)
    return [sample_scene(rng, held_out=True) for _ in range(150)]
