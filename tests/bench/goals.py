"""The goals for speed and memory, and a line of their table.

A goal is about a model's real size on a GPU. At other sizes, or on a CPU, the same figures can be measured,
but nothing is judged.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

import torch

from basic_lite.models import zoo

STEP_RATIO: dict[str, float] = {
    "vicuna-7b": 1.035,
    "vicuna-13b": 1.025,
    "phi3-mini": 1.05,
    "mistral-7b": 1.035,
    "gemma-2b": 1.35,
}
STAGE1_GB: dict[str, float] = {
    "vicuna-7b": 9.5,
    "vicuna-13b": 14.2,
    "gemma-2b": 6.8,
    "phi3-mini": 6.8,
    "mistral-7b": 9.8,
}
STAGE2_GB: dict[str, dict[str, float]] = {
    "vicuna-7b": {"adamw": 15.5, "paged-adamw-8bit": 12.0},
    "vicuna-13b": {"adamw": 24.0, "paged-adamw-8bit": 18.5},
}
LIGER_SPEED: dict[str, float] = {"vicuna-7b": 1.4, "gemma-2b": 3.0}
PATCHES: int = 4608
"""Of eight pictures of CLIP-L-336."""


@dataclass(frozen=True)
class Size:
    """How large everything is; the defaults are the goals' own.

    Attributes:
        device: `"cuda"` or `"cpu"`.
        dtype: of everything but what is trained.
        cap_gib: the card that is emulated; `None` for the device's own memory.
        layers: decoder layers; `None` for the real number.
        bits: of the decoder.
        micro_batch: rows per forward pass in stage 1; half as many in stage 2.
        text: text tokens per row in stage 1 and stage 2.
        rank: of the adapters.
        patches: rows of `L_sds`.
        steps: measured steps of every variant and round.
        rounds: turns.
    """

    device: str
    dtype: torch.dtype
    cap_gib: float | None = None
    layers: int | None = None
    bits: int = 4
    micro_batch: int = 8
    text: tuple[int, int] = (64, 824)
    rank: int = zoo.RANK
    patches: int = PATCHES
    steps: int = 10
    rounds: int = 3

    @property
    def judged(self) -> bool:
        """Whether these are the sizes and the kind of machine that the goals are about."""
        own = Size(self.device, self.dtype, self.cap_gib, steps=self.steps, rounds=self.rounds)
        return self.device == "cuda" and self == own


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: is measured.
        goal: the limit; `None` in a row that stands for a part that failed.
        most: whether the figure may be at most the goal; else at least.
        measured: the figure; `None` where there is none.
        note: how it came about, or why there is none.
        judged: whether the figure is one that the goal is about.
    """

    what: str
    goal: float | None
    most: bool = True
    measured: float | None = None
    note: str = ""
    judged: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; `None` where nothing can be said."""
        if self.measured is None or self.goal is None or not self.judged:
            return None
        return self.measured <= self.goal if self.most else self.measured >= self.goal

    def json(self) -> dict[str, object]:
        """Return the row as plain values."""
        return asdict(self) | {"met": self.met}


def machine(device: str) -> dict[str, str]:
    """Return what every row is worth nothing without: date, card, versions, and the command."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "triton", "liger-kernel", "unsloth")
    versions = []
    for name in names:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "card": torch.cuda.get_device_name() if device == "cuda" else "none",
        "versions": ", ".join(versions),
        "command": shlex.join(sys.argv),
    }


def markdown(rows: list[Row]) -> str:
    """Return the table of goals: goal, measured, met."""
    lines = ["| | goal | measured | met | |", "|---|---|---|---|---|"]
    for row in rows:
        goal = "-" if row.goal is None else f"{'at most' if row.most else 'at least'} {row.goal:g}"
        figure = "-" if row.measured is None else f"{row.measured:.4g}"
        met = {True: "yes", False: "no", None: "-"}[row.met]
        lines.append(f"| {row.what} | {goal} | {figure} | {met} | {row.note} |")
    return "\n".join(lines)
