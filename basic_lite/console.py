"""One live line while a run goes on: step, losses, speed and the time that is left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def progress_bar(console: Console) -> Progress:
    """Return a progress display with a count, the time used and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=False,
    )


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
