"""What stands for the building of a part: light to import, as each process does it anew."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[int, dict[str, float]], None]


def counted(progress: Progress) -> dict[str, float]:
    import torch

    for step in range(250):
        progress(step, {"loss": float(step)})
    return {"threads": torch.get_num_threads()}


def endless(progress: Progress) -> dict[str, float]:
    time.sleep(1000)
    return {}


def broken(progress: Progress) -> dict[str, float]:
    raise ValueError("a part that cannot be built")
