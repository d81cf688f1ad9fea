"""How fast this machine prepares data, and how long a training would wait for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from basic_lite.data.images import ImageTransform, load_image
from basic_lite.data.samples import ImageRef


@dataclass(frozen=True)
class Waiting:
    """What a loop over a loader measured.

    Attributes:
        steps: batches measured, the first ones left out while workers start.
        rows: rows in them.
        waited_seconds: time in `next(loader)`.
        step_seconds: time of everything else.
        first_batch_seconds: from the start of the loop to its first batch.
    """

    steps: int
    rows: int
    waited_seconds: float
    step_seconds: float
    first_batch_seconds: float

    @property
    def share(self) -> float:
        """Return which part of the loop was spent waiting."""
        return self.waited_seconds / max(self.waited_seconds + self.step_seconds, 1e-9)


def pictures_per_second(
    refs: Sequence[ImageRef], transform: ImageTransform, *, seconds: float = 3.0
) -> tuple[float, float]:
    """Read, decode and transform pictures on one core for a while.

    Args:
        refs: the pictures, gone through again and again.
        transform: to the tower's pixels.
        seconds: how long.

    Returns:
        Pictures per second of this process's own time, which other processes do not change, and per second.
    """
    done, started, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        transform(load_image(refs[done % len(refs)]))
        done += 1
    return done / (time.process_time() - busy), done / (time.perf_counter() - started)


def measure_waiting(loader: Any, *, step_seconds: float = 0.2, steps: int = 50, warm_up: int = 5) -> Waiting:
    """Go through a loader as a training would, with a pause where the model would compute.

    Args:
        loader: gives batches of `Collator`.
        step_seconds: the pause.
        steps: batches to measure.
        warm_up: batches before them.

    Returns:
        What was measured.
    """
    waited, rows, first = 0.0, 0, 0.0
    batches, begun = iter(loader), time.perf_counter()
    for step in range(warm_up + steps):
        asked = time.perf_counter()
        batch = next(batches)
        given = time.perf_counter()
        first = first or given - begun
        if step >= warm_up:
            waited += given - asked
            rows += len(batch["rows"])
        time.sleep(step_seconds)
    return Waiting(steps, rows, waited, steps * step_seconds, first)


def write_photos(folder: Path, count: int = 32, size: tuple[int, int] = (500, 375)) -> list[ImageRef]:
    """Write JPEG files as large and as detailed as those of COCO, for measuring where there are none.

    Args:
        folder: where to.
        count: how many.
        size: width and height.

    Returns:
        Where they are.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        waves = sum(np.sin(x * rng.normal(0, 0.1) + y * rng.normal(0, 0.1)) for _ in range(6))
        pixels = waves[..., None] * rng.uniform(10, 40, 3) + 128 + rng.normal(0, 12, (*waves.shape, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number}.jpg", quality=85)
    return [ImageRef(f"{number}.jpg", str(folder)) for number in range(count)]


def rows_of(refs: Sequence[ImageRef], count: int) -> list[dict[str, object]]:
    """Return `count` LLaVA rows over these pictures, for measuring."""
    turns = [
        {"from": "human", "value": "<image>\nWhat is shown in the picture?"},
        {"from": "gpt", "value": "Waves of several colours that run over each other, with some noise."},
    ]
    return [{"id": str(i), "image": refs[i % len(refs)].name, "conversations": turns} for i in range(count)]
