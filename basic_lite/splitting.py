"""An optimizer step that runs out of memory is done again in smaller micro-batches, with the same result."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from basic_lite.layout import Layout
from basic_lite.metrics import Metrics


class Splitter:
    """Run the micro-batches of a step; where one does not fit, halve the size and go on with that.

    Every sum is divided by the counts of the whole optimizer step, so its micro-batches may be cut
    anywhere. A backward pass that fails has already added to some gradients. Keeping a copy of all of them
    for that case would cost what the adapters weigh; instead the step begins again from its first
    micro-batch, whose rows are still at hand. (With dropout, its masks are drawn anew.)

    Attributes:
        limit: rows that a micro-batch may have; `None` while nothing had to be split.
    """

    def __init__(self, model: nn.Module, metrics: Metrics) -> None:
        self.limit: int | None = None
        self._model, self._metrics = model, metrics
        self._done: list[dict] = []

    def begin(self) -> None:
        """Note that an optimizer step begins: no gradient is there yet."""
        self._done = []
        self._metrics.mark()

    def run(self, batch: dict, train: Callable[[dict], torch.Tensor]) -> torch.Tensor:
        """Train on one micro-batch, in as many pieces as it takes, and return its loss.

        Args:
            batch: with its layout, on any device.
            train: runs forward and backward and returns the loss; may raise `torch.OutOfMemoryError`.

        Raises:
            ValueError: If a single row does not fit.
        """
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
    if batch.get("pixel_values") is not None:
        part["pixel_values"] = batch["pixel_values"][first:last] if last > first else None
    return part
