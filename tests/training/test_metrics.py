"""What a run's figures are sums of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from basic_lite.method.types import Refinement, Window
from basic_lite.training.callbacks import Metrics


def test_the_logged_cosine_counts_each_picture_once_however_many_patches_it_has():
    initial, target = torch.randn(2, 7, 5, generator=torch.manual_seed(0))
    image = torch.tensor(
        [0, 0, 0, 0, 0, 2, 2]
    )  # the second picture lies in another micro-batch's share: none
    metrics, window = Metrics(), Window(text_tokens=9, images=4)
    metrics.add([], Refinement(initial, target, torch.ones(7), image, images=3), window)
    each = F.cosine_similarity(initial, target, dim=-1)
    expected = (each[:5].mean() + each[5:].mean()) / 4
    assert metrics.take()["cosine"] == pytest.approx(float(expected), abs=1e-6)
