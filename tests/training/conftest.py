"""What several tests of training look at."""

from __future__ import annotations

import pytest

from basic_lite.training.trainer import BasicTrainer


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows of every batch that is trained on."""
    seen: list[list[int]] = []
    real = BasicTrainer.compute_loss

    def compute_loss(self, model, inputs, *more, **named):
        seen.append(list(inputs["rows"]))
        return real(self, model, inputs, *more, **named)

    monkeypatch.setattr(BasicTrainer, "compute_loss", compute_loss)
    return seen
