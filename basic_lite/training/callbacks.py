"""What happens around the steps of a run: progress, the check of gradients, measurements and signals."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import nn
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

from basic_lite import files
from basic_lite.console import progress_bar
from basic_lite.method.types import LossTerm, Refinement, Window
from basic_lite.models.parts import piece

_OF_PICTURES = re.compile(r"multi_modal_projector|vision_tower")


class GradientContract:
    """Every trained parameter must get a nonzero gradient within `patience` steps, and no frozen one any.

    An adapter's A has none until its B has moved, and B moves when the learning rate has left 0: some steps.
    For projector and tower only steps with a picture count, which may be few among those of text.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        self.waiting = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
        self.patience = patience
        self.steps = self.pictured = 0

    def check(self, pictured: bool = True) -> None:
        """Check the gradients of a step, with a picture or without, waiting for the device.

        Raises RuntimeError if a parameter breaks the contract.
        """
        self.steps += 1
        self.pictured += pictured
        for name, parameter in self.frozen:
            if parameter.grad is not None:
                raise RuntimeError(f"{name} is frozen but received a gradient")
        present = {name: piece(p.grad) for name, p in self.waiting.items() if p.grad is not None}
        for name in [name for name, gradient in present.items() if not gradient.numel()]:
            del present[name], self.waiting[name]  # cut into fewer pieces than there are processes
        if present:
            largest = torch.stack([gradient.abs().amax().float() for gradient in present.values()]).tolist()
            for name, value in zip(present, largest, strict=True):
                if 0 < value < math.inf:  # a step that is not finite is the guard's matter, and is not taken
                    del self.waiting[name]
        late = list(self.waiting) if self.pictured >= self.patience else []
        if self.steps >= self.patience and not late:
            late = [name for name in self.waiting if not _OF_PICTURES.search(name)]
        if late:
            raise RuntimeError(
                f"{len(late)} trained parameters had no gradient in {self.steps} steps, first: "
                f"{', '.join(late[:4])}"
            )


def process_age() -> float:
    """Return how many seconds ago this process was started; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22; a name may hold spaces
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


class Clock:
    """Seconds that each part of a start takes."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}  # seconds, in order
        self._last = time.monotonic() - process_age()

    def mark(self, part: str) -> None:
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def line(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"first step {sum(self.parts.values()):.1f} s after the command ({parts})"


class GradientCheck(TrainerCallback):
    """Check the gradients of the first steps against the trainable-set contract."""

    def __init__(self, args: Arguments, metrics: Metrics) -> None:
        self.contract: GradientContract | None = None
        self.metrics = metrics
        self.patience = 20 + (args.warmup_steps if args.warmup_steps >= 1 else 0)

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self.contract = GradientContract(kwargs["model"], int(self.patience))

    def on_pre_optimizer_step(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self.contract is not None and self.contract.waiting:
            window = self.metrics.window
            self.contract.check(pictured=window is not None and window.images > 0)


class Begin(TrainerCallback):
    """Call a function before the first step, when a checkpoint to go on from has been read."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self.function()


def cut_log(path: Path, step: int) -> None:
    """Drop the lines of a log after a step, and one that a kill left unfinished."""
    if path.is_file():
        kept = [row for row in files.read_log(path) if row["step"] <= step]
        files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


class Measurements(TrainerCallback):
    """Ask for a measurement of the held-out rows every `every` steps and after the last one."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        """Ask for it: it comes after the step's log and before its checkpoint, which then includes it."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            control.should_evaluate = True


class FirstStep(TrainerCallback):
    """Print once the time from the command to the end of the first step."""

    def __init__(self, clock: Clock, console: Console) -> None:
        self.clock: Clock | None = clock
        self.console = console

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self.clock is not None:
            self.clock.mark("preparation")

    def on_evaluate(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        """Count a measurement before the first step apart."""
        if self.clock is not None:
            self.clock.mark("validation")

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        """Wait for the device once, and print the time."""
        if self.clock is not None:
            if args.device.type == "cuda":
                torch.cuda.synchronize(args.device)
            self.clock.mark("first step")
            self.console.print(self.clock.line())
            self.clock = None


class Stopper(TrainerCallback):
    """Remember a signal and stop the run after the step in progress, with a checkpoint."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.requested = self.agreed = False

    def request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self.agreed or (self.requested and self.processes == 1):
            control.should_save = control.should_training_stop = True


class StepProgress(TrainerCallback):
    """Show a training run on one line; without a terminal, print a line per logged step instead."""

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.progress: Progress | None = None
        self.task = TaskID(0)  # of `progress`, which has one

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self.console.is_terminal and state.is_world_process_zero:
            self.progress = progress_bar(self.console)
            self.progress.start()
            self.task = self.progress.add_task(self.title, total=state.max_steps, note="")
            self.progress.update(self.task, completed=state.global_step)

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "samples_per_second" not in logs:
            return
        if "rows_per_chunk" in logs and state.is_world_process_zero:
            self.console.print(f"L_sds: {logs['rows_per_chunk']} patches per pass over the vocabulary")
        names = ("loss", "lm", "das", "sds", "cosine")
        note = "  ".join(f"{name} {logs[name]:.3f}" for name in names if logs.get(name) is not None)
        note += f"  {logs['samples_per_second']:.2f} samples/s  {logs['peak_mib']:.0f} MiB"
        if self.progress is not None:
            self.progress.update(self.task, note=note)
        elif state.is_world_process_zero:
            self.console.print(f"{self.title} {state.global_step}/{state.max_steps}  {note}")

    def on_evaluate(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        if not state.is_world_process_zero:
            return
        shown = {name: metrics.get(f"eval_{name}") for name in ("lm", "das", "sds", "cosine", "named")}
        if shown["named"] is not None:
            shown["named"] = 100 * shown["named"]
        note = "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
        note += " %" if shown["named"] is not None else ""
        best = "  (the best yet)" if metrics["is_best"] else ""
        self.console.print(f"validation {state.global_step}/{state.max_steps}  {note}{best}")
        for sample in metrics["samples"]:
            self.console.print(f"  {sample['id']}: {sample['answer']} (true: {sample['true']})")

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


_ALWAYS = ("loss", "lm", "das", "sds", "cosine", "grad_norm", "learning_rate")
_MEASURED = ("samples_per_second", "peak_mib", "micro_batch", "rows_per_chunk", "skipped")
"""Keys of a line of `log.jsonl`: always there, and there where they were measured."""


class Metrics:
    """Sums of the terms since the last log, kept on the device: reading one would stop the host."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor | float] = {}  # a number where a checkpoint had it
        self.steps: dict[str, int] = {}  # optimizer steps that have a term, in this process or another
        self.step: dict[str, torch.Tensor] = {}  # of the optimizer step in progress alone
        self.rows = 0
        self.started = time.monotonic()
        self.window: Window | None = None  # of the step in progress
        self._windows: dict[str, Window] = {}  # of the last step that was counted
        self.mark()

    def count(self, names: Iterable[str], window: Window) -> None:
        """Count an optimizer step for terms, once for all micro-batches, which share its window.

        A process whose rows have no picture counts it as well, or its mean would be over fewer steps.
        """
        self.window = window
        for name in names:
            if self._windows.get(name) is not window:
                self._windows[name], self.steps[name] = window, self.steps.get(name, 0) + 1

    def add(self, terms: list[LossTerm], refinement: Refinement | None, window: Window) -> None:
        for term in terms:
            self._add(term.name, term.total.detach() / window.items(term.name), window)
        if refinement is not None:
            with torch.no_grad():
                cosine = F.cosine_similarity(refinement.initial.float(), refinement.target.float(), dim=-1)
                share = refinement.sum_of_means(cosine) / window.items("das")
            self._add("cosine", share, window)

    def _add(self, name: str, value: torch.Tensor, window: Window) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.step[name] = self.step[name] + value if name in self.step else value
        self.count([name], window)

    def mark(self) -> None:
        """Remember the sums at the start of an optimizer step, for `rewind`."""
        self.step = {}
        self._marked = dict(self.sums), dict(self.steps), dict(self._windows)

    def rewind(self) -> None:
        """Forget what was added since `mark`."""
        self.step = {}
        sums, steps, windows = self._marked
        self.sums, self.steps, self._windows = dict(sums), dict(steps), dict(windows)

    def take(self) -> dict[str, float]:
        """Return means per step since the last call, and samples per second; waits for the device."""
        now = time.monotonic()
        means = {name: float(self.sums.get(name, 0.0)) / count for name, count in self.steps.items()}
        means["samples_per_second"] = round(self.rows / max(now - self.started, 1e-9), 3)
        self.sums, self.steps, self._windows, self.rows, self.started = {}, {}, {}, 0, now
        return means


def line_of(logs: Mapping[str, float], step: int, steps: int) -> dict[str, float | None]:
    row: dict[str, float | None] = {"step": step, "steps": steps}
    row |= {name: logs.get(name) for name in _ALWAYS}
    return finite(row | {name: logs[name] for name in _MEASURED if name in logs})


def finite(row: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return a line of figures for JSON, which has no infinity: `None` stands for what is not finite."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
