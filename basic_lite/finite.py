"""A step whose gradient is not finite is not taken: weights and Adam's moments stay as they were.

The host does not wait to learn of it. A fused optimizer reads the verdict on the device; the host gets it,
with the values of the terms, by a copy that it looks at when it has arrived, some steps later. On a CPU
there is nothing to wait for.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from basic_lite.types import Diverged

PATIENCE: int = 3
"""Steps in a row without a finite gradient after which a run stops."""

BACKLOG: int = 64
"""Steps whose verdict may be under way; then the host waits for the oldest."""

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
    """Skips steps, notes which, and ends a run that takes no more."""

    def __init__(self, folder: Path, ids: Callable[[list[int]], list], rank: int = 0) -> None:
        """Prepare.

        Args:
            folder: of the run.
            ids: gives the ids of rows.
            rank: of this process, for the dump.
        """
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
        """Keep `optimizer` from taking a step whose gradient norm is not finite.

        The norm is the same on all processes, so they skip together.

        Args:
            optimizer: whose gradients are complete.
            norm: their norm.
            terms: means of this step, for the dump.
            step: its number.

        Raises:
            Diverged: If the third step in a row was skipped.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
        norm = torch.as_tensor(norm).detach().float()
        bad = (~torch.isfinite(norm)).float()
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad  # the kernel reads it and leaves everything alone
        elif bool(bad):
            optimizer.zero_grad(set_to_none=True)  # Adam passes over what has no gradient
        values = torch.stack([bad, norm, *(terms[name].detach().float() for name in terms)])
        arrived = None
        if values.is_cuda:
            there = torch.empty(values.shape, pin_memory=True)
            values, arrived = there.copy_(values, non_blocking=True), torch.cuda.Event()
            arrived.record()
        names = ["grad_norm", *terms]
        self._pending.append(_Verdict(step, names, values, self.rows, arrived))
        self.look(wait=len(self._pending) > BACKLOG)

    def look(self, wait: bool = False) -> None:
        """Take in the verdicts that have arrived, or all of them.

        Raises:
            Diverged: If three steps in a row were skipped.
        """
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
