"""How fast this machine prepares data, and how long a training would wait for it."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader

from basic_lite.data.batches import Batches, Collator
from basic_lite.data.dataset import SupervisedRows
from basic_lite.data.pictures import ImageTransform, load_image
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import MAX_LENGTH, TOKENS_PER_IMAGE, ImageRef
from basic_lite.data.workers import shared_heap


@dataclass(frozen=True)
class Footprint:
    """The memory of one process, in MiB, as Linux accounts for it.

    A forked process shares what its parent had until one of the two writes to it: `memory` of the parent and
    `own` of its workers count every page once.
    """

    resident: float  # all that is in memory and that the process can reach (RSS)
    # Of these, pages of files, above all code of libraries: shared, and the kernel may drop them at any time
    files: float
    own: float  # pages that no other process can reach (USS): what would be free again if it ended

    @property
    def memory(self) -> float:
        """Return what is no page of a file, shared with other processes or not."""
        return self.resident - self.files


def footprint(process: int | None = None) -> Footprint | None:
    """Measure a process, this one by default; `None` where the system does not say, as only Linux does."""
    try:
        taken = psutil.Process(process).memory_full_info()
    except psutil.Error:
        return None
    if not hasattr(taken, "shared"):
        return None
    return Footprint(taken.rss / 2**20, taken.shared / 2**20, taken.uss / 2**20)


@dataclass(frozen=True)
class Measured:
    # Of one core's own time, which other processes do not change, and by the clock
    pictures_per_second: tuple[float, float]
    steps: int  # batches measured, the first ones left out while workers start
    rows: int  # in these batches
    waited_seconds: float  # in `next(loader)`
    step_seconds: float  # everything else
    first_batch_seconds: float  # from the start of the loop
    process: Footprint | None = None  # at the loop's end
    workers: tuple[Footprint, ...] = ()  # the processes that it started

    @property
    def share(self) -> float:
        """Return which part of the loop was spent waiting."""
        return self.waited_seconds / max(self.waited_seconds + self.step_seconds, 1e-9)

    def lines(self) -> list[str]:
        busy, clock = self.pictures_per_second
        step = 1000 * self.step_seconds / self.steps
        lines = [
            f"{busy:7.0f} pictures a second of one core's own time ({clock:.0f} by the clock)",
            f"{self.share:7.2%} of the time spent waiting, at steps of {step:.0f} ms",
            f"{self.first_batch_seconds:7.1f} s to the first batch of {self.rows / self.steps:.0f} rows",
        ]
        if self.process is not None:
            lines.append(
                f"{self.process.memory:7.0f} MiB of memory in this process, no model loaded "
                f"({self.process.resident:.0f} resident, {self.process.files:.0f} of them files of libraries)"
            )
        if self.workers:
            largest = max(self.workers, key=lambda worker: worker.own)
            shared = largest.memory - largest.own
            lines.append(
                f"{largest.own:7.0f} MiB of memory of its own in the largest worker ({largest.resident:.0f} "
                f"resident, {shared:.0f} of them this process's, {largest.files:.0f} files of libraries)"
            )
        return lines


def pictures_per_second(
    refs: Sequence[ImageRef], transform: ImageTransform, *, seconds: float = 3.0
) -> tuple[float, float]:
    """Read, decode and transform pictures on one core, again and again, for `seconds`.

    Returns pictures per second of this process's own time, which other processes do not change, and by the
    clock.
    """
    done, started, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        transform(load_image(refs[done % len(refs)]))
        done += 1
    return done / (time.process_time() - busy), done / (time.perf_counter() - started)


def measure_data(
    annotations: Path | None = None,  # as for `open_rows`; `None` makes photos
    images: Path | None = None,  # folder, zip or tar
    *,
    image_size: int = 336,  # side of the tower's input
    tokens_per_image: int = TOKENS_PER_IMAGE,
    batch_size: int = 16,
    workers: int = 2,
    step_seconds: float = 0.2,  # the pause where the model would compute
    steps: int = 50,  # batches to measure, at most
    picture_seconds: float = 3.0,  # how long to prepare pictures on one core alone
) -> Measured:
    """Prepare batches as a stage-2 training does, all rows at most once, and measure what that takes.

    Raises ValueError if the data cannot be opened, or has fewer than two batches.
    """
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        if annotations is None:
            annotations, images = Path(folder) / "rows.json", Path(folder)
            annotations.write_text(json.dumps(rows_of(write_photos(images), (steps + 5) * batch_size)))
        rows = open_rows(annotations, images)
        usable = rows.index.fault == 0
        transform = ImageTransform(image_size, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), "pad")
        pictured = np.flatnonzero(usable & rows.has_image)[:256].tolist()
        refs = [ref for row in pictured for ref in rows[row].images]
        dataset = SupervisedRows(
            rows,
            template="chatml",
            tokenizer=byte_tokenizer(),
            transform=transform,
            image_token_id=2**20,
            tokens_per_image=tokens_per_image,
            bad_budget=1.0,
        )
        lengths = rows.batch_lengths(tokens_per_image, MAX_LENGTH)
        batches = Batches(lengths, rows.has_image, batch_size=batch_size, seed=0, group=True, usable=usable)
        if len(batches) < 2:
            raise ValueError(
                f"{len(rows)} rows make {len(batches)} batches of {batch_size}; at least 2 are needed"
            )
        collate = Collator(pad_token_id=0, image_token_id=2**20)
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)
        warm_up = min(5, len(batches) - 1)
        loop = {"step_seconds": step_seconds, "steps": min(steps, len(batches) - warm_up), "warm_up": warm_up}
        speed = pictures_per_second(refs, transform, seconds=picture_seconds) if refs else (0.0, 0.0)
        with shared_heap():  # as a training does
            return measure_waiting(loader, pictures=speed, **loop)


def measure_waiting(
    loader: Any,
    *,
    step_seconds: float = 0.2,
    steps: int = 50,
    warm_up: int = 5,  # batches before the measured ones
    pictures: tuple[float, float] = (0.0, 0.0),
) -> Measured:
    """Go through a loader of `Collator`'s batches as a training would, pausing where the model would compute.

    `pictures`, what `pictures_per_second` measured, stands beside the result.
    """
    waited, rows, first = 0.0, 0, 0.0
    begun = time.perf_counter()
    batches = iter(loader)
    for step in range(warm_up + steps):
        asked = time.perf_counter()
        batch = next(batches)
        given = time.perf_counter()
        first = first or given - begun
        if step >= warm_up:
            waited += given - asked
            rows += len(batch["rows"])
        del batch  # to free it is the step's work, not the loader's
        time.sleep(step_seconds)
    workers = tuple(filter(None, (footprint(worker.pid) for worker in multiprocessing.active_children())))
    return Measured(pictures, steps, rows, waited, steps * step_seconds, first, footprint(), workers)


def write_photos(folder: Path, count: int = 32, size: tuple[int, int] = (500, 375)) -> list[ImageRef]:
    """Write JPEG files as large and as detailed as those of COCO; `size` is width and height."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        waves = np.sum([np.sin(x * rng.normal(0, 0.1) + y * rng.normal(0, 0.1)) for _ in range(6)], axis=0)
        pixels = waves[..., None] * rng.uniform(10, 40, 3) + 128 + rng.normal(0, 12, (*waves.shape, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number}.jpg", quality=85)
    return [ImageRef(f"{number}.jpg", str(folder)) for number in range(count)]


def rows_of(refs: Sequence[ImageRef], count: int) -> list[dict[str, object]]:
    turns = [
        {"from": "human", "value": "<image>\nWhat is shown in the picture?"},
        {"from": "gpt", "value": "Waves of several colours that run over each other, with some noise."},
    ]
    return [{"id": str(i), "image": refs[i % len(refs)].name, "conversations": turns} for i in range(count)]


def byte_tokenizer() -> Any:
    """Return a tokenizer with one token per byte and ChatML's special ones, where no real one is at hand."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: number for number, sign in enumerate(signs)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return made
