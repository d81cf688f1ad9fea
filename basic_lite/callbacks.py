"""What happens around the steps of a run: gradients against the contract, and stopping on a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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
