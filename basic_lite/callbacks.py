"""What happens around the steps of a run: the display, gradients against the contract, and signals."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from basic_lite.console import progress_bar
from basic_lite.startup import Clock
from basic_lite.trainable import GradientContract


class GradientCheck(TrainerCallback):
    """Check the gradients of the first steps against the trainable-set contract."""

    def __init__(self, args: TrainingArguments) -> None:
        self.contract: GradientContract | None = None
        self.patience = 20 + (args.warmup_steps if args.warmup_steps >= 1 else 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what is trained and what is frozen."""
        self.contract = GradientContract(kwargs["model"], int(self.patience))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients until every trained parameter has shown one."""
        if self.contract is not None and not self.contract.done:
            self.contract.check()


class AtStart(TrainerCallback):
    """Do something when everything that a run goes on from has been read, before its first step."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do it, in the process that writes."""
        if state.is_world_process_zero:
            self.action()


class FirstStep(TrainerCallback):
    """Say once how long it took from the command to the end of the first step."""

    def __init__(self, clock: Clock, console: Console) -> None:
        self.clock: Clock | None = clock
        self.console = console

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What came before is preparation."""
        self.clock.mark("preparation")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the device once, and say it."""
        if self.clock is not None:
            if args.device.type == "cuda":
                torch.cuda.synchronize(args.device)
            self.clock.mark("first step")
            self.console.print(self.clock.line(), highlight=False, soft_wrap=True)
            self.clock = None


class Stopper(TrainerCallback):
    """Remember a signal and stop the run after the step in progress, with a checkpoint."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.requested = self.agreed = False

    def request(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if a signal came."""
        if self.agreed or (self.requested and self.processes == 1):
            control.should_save = control.should_training_stop = True


class StepProgress(TrainerCallback):
    """Show a training run on one line; without a terminal, print a line per logged step instead."""

    def __init__(self, console: Console, title: str) -> None:
        """Show `title` on `console`."""
        self.console, self.title = console, title
        self.progress: Progress | None = None
        self.task = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the display."""
        if self.console.is_terminal and state.is_world_process_zero:
            self.progress = progress_bar(self.console)
            self.progress.start()
            self.task = self.progress.add_task(self.title, total=state.max_steps, note="")
            self.progress.update(self.task, completed=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the terms of the last logged step."""
        if not logs or "samples_per_second" not in logs:
            return
        if "rows_per_chunk" in logs and state.is_world_process_zero:
            chunk = f"L_sds: {logs['rows_per_chunk']} patches per pass over the vocabulary"
            self.console.print(chunk, highlight=False, soft_wrap=True)
        names = ("loss", "lm", "das", "sds", "cosine")
        note = "  ".join(f"{name} {logs[name]:.3f}" for name in names if logs.get(name) is not None)
        note += f"  {logs['samples_per_second']:.2f} samples/s  {logs['peak_mib']:.0f} MiB"
        if self.progress is not None:
            self.progress.update(self.task, note=note)
        elif state.is_world_process_zero:
            step = f"{self.title} {state.global_step}/{state.max_steps}"
            self.console.print(f"{step}  {note}", highlight=False, soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the display."""
        self.close()

    def close(self) -> None:
        """Stop the display, also when the run ended with an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
