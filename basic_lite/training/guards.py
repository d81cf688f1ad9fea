"""A step whose gradient is not finite is not taken: weights and Adam's moments stay as they were.

The host does not wait to learn of it: a fused optimizer reads the verdict on the device, and the host, some
steps later, a copy of it and of the terms' values.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basic_lite.data.layout import Layout
from basic_lite.method.types import Diverged
from basic_lite.training.callbacks import Metrics

PATIENCE: int = 3  # steps in a row without a finite gradient after which a run stops

BACKLOG: int = 64  # steps whose verdict may be under way; then the host waits for the oldest

DUMP: str = "nonfinite.jsonl"
"""Skipped steps, one JSON object each, in the run folder: rows, and the terms' values."""


@dataclass
class _Verdict:
    step: int
    names: list[str]
    values: torch.Tensor
    rows: list[int]
    arrived: torch.cuda.Event | None


class FiniteGuard:
    """Skips steps without a finite gradient, records them, and ends a run of nothing else."""

    def __init__(self, folder: Path, ids: Callable[[list[int]], list], rank: int = 0) -> None:
        self.path, self.ids, self.rank = folder / DUMP, ids, rank
        self.rows: list[int] = []
        self.skipped = 0
        self._streak = 0
        self._pending: deque[_Verdict] = deque()

    def judge(
        self,
        optimizer: torch.optim.Optimizer,
        norm: torch.Tensor | float,
        terms: dict[str, torch.Tensor],
        step: int,
    ) -> None:
        """Keep `optimizer` from taking a step whose gradient norm is not finite, the same on all processes.

        `terms` are means of this step, for the dump. Raises Diverged if the third step in a row was skipped.
        """
        inner: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
        # Where there is no gradient at all, torch's norm is on the host.
        device = next((value.device for value in terms.values()), None)
        norm = torch.as_tensor(norm, device=device).detach().float()
        bad = (~torch.isfinite(norm)).float()
        if inner.defaults.get("fused"):
            inner.found_inf = bad  # the kernel reads it and leaves everything alone
        elif bool(bad):
            inner.zero_grad(set_to_none=True)  # Adam passes over what has no gradient
        values = torch.stack([bad, norm, *(terms[name].detach().float() for name in terms)])
        arrived = None
        if values.is_cuda:
            there = torch.empty(values.shape, pin_memory=True)
            values, arrived = there.copy_(values, non_blocking=True), torch.cuda.Event()
            arrived.record()
        names = ["grad_norm", *terms]
        self._pending.append(_Verdict(step, names, values, self.rows, arrived))
        self.collect(wait=len(self._pending) > BACKLOG)

    def collect(self, wait: bool = False) -> None:
        """Read the verdicts that have arrived, or all; raises Diverged after three skipped steps in a row."""
        while self._pending:
            verdict = self._pending[0]
            if verdict.arrived is not None and not verdict.arrived.query():
                if not wait:
                    return
                verdict.arrived.synchronize()
            self._pending.popleft()
            bad, *values = verdict.values.tolist()
            if not bad:
                self._streak = 0
                continue
            self.skipped += 1
            self._streak += 1
            self._write(verdict, values)
            if self._streak == PATIENCE:
                broken = [n for n, v in zip(verdict.names, values, strict=True) if not math.isfinite(v)]
                raise Diverged(
                    f"{PATIENCE} steps in a row, up to step {verdict.step}, had no finite gradient (not "
                    f"finite: {', '.join(broken)}); none was taken, so the last checkpoint is good. Their "
                    f"rows and terms are in {self.path}; look at them, or lower --learning-rate, and go on "
                    "with --resume"
                )

    def _write(self, verdict: _Verdict, values: list[float]) -> None:
        shown = {
            name: value if math.isfinite(value) else str(value)
            for name, value in zip(verdict.names, values, strict=True)
        }
        line = {"step": verdict.step, **shown, "rows": verdict.rows, "ids": self.ids(verdict.rows)}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line | ({"rank": self.rank} if self.rank else {})) + "\n")


class Splitter:
    """Run the micro-batches of a step; where one does not fit, halve the size and begin the step again.

    Every sum is divided by the counts of the whole step, so its micro-batches may be cut anywhere. A pass
    that fails has added to some gradients, and a copy of them would cost what the adapters weigh; the rows of
    the earlier micro-batches are still at hand. (Dropout draws its masks anew.)
    """

    def __init__(self, model: nn.Module, metrics: Metrics) -> None:
        self.limit: int | None = None  # rows that a micro-batch may have; `None` while nothing was split
        self.bound = ""  # option by which the loss depends on which rows share a pass, so that none is split
        self._model, self._metrics = model, metrics
        self._done: list[dict] = []

    def begin(self) -> None:
        """Note that an optimizer step begins: no gradient is there yet."""
        self._done = []
        self._metrics.mark()

    def run(self, batch: dict, train: Callable[[dict], torch.Tensor]) -> torch.Tensor:
        """Train on one micro-batch, in as many pieces as it takes, and return its loss; a row must fit."""
        self._done.append(batch)
        loss = self._attempt(batch, train)
        while loss is None:
            self._model.zero_grad(set_to_none=True)
            self._metrics.rewind()
            for earlier in self._done:
                loss = self._attempt(earlier, train)
                if loss is None:
                    break
        return loss

    def _attempt(self, batch: dict, train: Callable[[dict], torch.Tensor]) -> torch.Tensor | None:
        rows = batch["layout"].rows
        size = min(rows, self.limit or rows)
        try:
            total = None
            for start in range(0, rows, size):
                whole = size == rows
                part = train(batch if whole else rows_of(batch, start, min(start + size, rows)))
                total = part if total is None else total + part
            return total
        except torch.OutOfMemoryError:
            pass  # and with it everything that its frames held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._halve(size, batch["input_ids"].shape[1])
        return None

    def _halve(self, size: int, tokens: int) -> None:
        if size == 1:
            raise ValueError(
                f"out of memory with a single row of {tokens} tokens: recompute the decoder's layers "
                "(--recompute), take a smaller --rank or --max-length, or hold the decoder in --bits 4"
            )
        if self.bound:
            raise ValueError(
                f"out of memory with {size} rows at a time, and {self.bound} depends on which rows share a "
                f"pass: start again with --micro-batch {(size + 1) // 2}"
            )
        self.limit = (size + 1) // 2
        logging.getLogger(__name__).warning(
            f"out of memory with {size} rows at a time; the step is done again with {self.limit}, and so are "
            f"the next ones (same result; --micro-batch {self.limit} avoids the failed attempt)"
        )


def rows_of(batch: dict, start: int, stop: int) -> dict:
    """Return rows `start` to `stop` of a batch, with their pictures and their part of the layout."""
    layout: Layout = batch["layout"]
    first, last = (sum(layout.images_in_row[:row]) for row in (start, stop))
    part = dict(batch)
    for key, value in batch.items():
        if isinstance(value, (torch.Tensor, list)) and len(value) == layout.rows:
            part[key] = value[start:stop]
    part["layout"] = layout.part(start, stop, batch["input_ids"].shape[1])
    if batch.get("image_sizes") is not None:
        part["image_sizes"] = batch["image_sizes"][first:last]
    if batch.get("pixel_values") is not None:
        # Packed squares, of a picture all; otherwise (I, most, 3, h, w), as a standard processor pads.
        if batch["pixel_values"].dim() == 4:
            first, last = (sum(block.squares for block in layout.blocks[:end]) for end in (first, last))
        part["pixel_values"] = batch["pixel_values"][first:last] if last > first else None
    return part
