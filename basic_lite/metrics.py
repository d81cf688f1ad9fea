"""Sums of the loss terms between two logged steps, kept on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from basic_lite.types import LossTerm, Refinement, Window

_ALWAYS = ("loss", "lm", "das", "sds", "cosine", "grad_norm", "learning_rate")
_MEASURED = ("samples_per_second", "peak_mib", "micro_batch", "rows_per_chunk", "skipped")
"""In a line of `log.jsonl` always, and where they were measured."""


class Metrics:
    """Sums of the terms since the last log, kept on the device: reading one would stop the host."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.step: dict[str, torch.Tensor] = {}
        """Of the optimizer step in progress alone."""
        self.rows = 0
        self.started = time.monotonic()
        self._windows: dict[str, list[Window]] = {}
        self.mark()

    def add(self, terms: list[LossTerm], refinement: Refinement | None, window: Window) -> None:
        """Add one micro-batch's shares of its step."""
        for term in terms:
            self._add(term.name, term.total.detach() / window.items(term.name), window)
        if refinement is not None:
            with torch.no_grad():
                cosine = F.cosine_similarity(refinement.initial.float(), refinement.target.float(), dim=-1)
                # The mean over an image's patches, summed over images; every image has equally many.
                share = cosine.mean() * refinement.images / window.items("das")
            self._add("cosine", share, window)

    def _add(self, name: str, value: torch.Tensor, window: Window) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.step[name] = self.step[name] + value if name in self.step else value
        windows = self._windows.setdefault(name, [])
        if not windows or windows[-1] is not window:  # micro-batches of one step share one window
            windows.append(window)

    def mark(self) -> None:
        """Note the sums as they are when an optimizer step begins, to come back to."""
        self.step = {}
        self._marked = dict(self.sums), {name: list(windows) for name, windows in self._windows.items()}

    def rewind(self) -> None:
        """Forget what was added since `mark`."""
        sums, windows = self._marked
        self.step = {}
        self.sums, self._windows = dict(sums), {name: list(kept) for name, kept in windows.items()}

    def take(self) -> dict[str, float]:
        """Return means per step since the last call, and samples per second; waits for the device."""
        now = time.monotonic()
        found = {name: float(total) / len(self._windows[name]) for name, total in self.sums.items()}
        found["samples_per_second"] = round(self.rows / max(now - self.started, 1e-9), 3)
        self.sums, self._windows, self.rows, self.started = {}, {}, 0, now
        return found


def line_of(logs: Mapping[str, float], step: int, steps: int) -> dict[str, float | None]:
    """Return a line of `log.jsonl`: JSON has no infinity, so a figure that is not finite is `None`."""
    row = {"step": step, "steps": steps} | {name: logs.get(name) for name in _ALWAYS}
    row |= {name: logs[name] for name in _MEASURED if name in logs}
    return {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
