"""For every test: no hub, no cache, one thread, and of what hypothesis draws the same examples each time."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub fails at once
os.environ["BASIC_LITE_CACHE"] = "off"  # nothing is left in the home of who runs the tests

import pytest
import torch
from hypothesis import settings

# A gate that fails by chance fails somebody else's change; `--hypothesis-profile default` draws anew.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: a second thread only waits
