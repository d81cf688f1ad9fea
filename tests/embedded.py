"""What tests in the embedded world share: the parts must be in the package, and the world may be small."""

from __future__ import annotations

import pytest

from basic_lite.data.world import world
from basic_lite.data.world.parts import DECODER, TOWER
from basic_lite.experiments import comparison

needs_parts = pytest.mark.skipif(
    not (DECODER.exists() and TOWER.exists()),
    reason="not both parts are in the package: python -m parts.command",
)


@pytest.fixture
def small_world(monkeypatch):
    monkeypatch.setattr(world, "SCALE", {"captions": 32, "conversations": 32, "questions": 7})
    monkeypatch.setattr(comparison, "SCENES", 8)
