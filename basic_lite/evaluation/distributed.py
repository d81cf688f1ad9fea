"""Several processes of one command, a device each: they share the questions, and fail or finish together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TypeVar

from basic_lite.console import rank_and_count
from basic_lite.files import one_line

T = TypeVar("T")

_CUTS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""What `accelerate config` may have stored for training; here every process holds the whole model."""

_PATIENCE = timedelta(days=2)  # while the first process downloads, the others wait; a death shows at once


class ProcessLost(OSError):
    """Another process of this command has ended, so this one cannot go on."""


@dataclass(frozen=True)
class Processes:
    rank: int = 0  # number of this one; only the first, 0, prints and writes
    count: int = 1  # how many there are

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Call `work` in every process and return all results, in order of rank, in each of them.

        Raises what the first of those that failed raised, in every process; ProcessLost if one has ended.
        """
        if self.count == 1:
            return [work()]
        from accelerate.utils import gather_object

        result, failure = None, None
        try:
            result = work()
        except ProcessLost:
            raise
        except (ValueError, OSError) as error:
            failure = ValueError if isinstance(error, ValueError) else OSError, one_line(error, 1000)
        try:
            everything = gather_object([(result, failure)])
        except RuntimeError as error:
            raise ProcessLost(
                f"another of the {self.count} processes of this command has ended; the same command, with "
                "any number of processes, goes on"
            ) from error
        for _, failed in everything:
            if failed is not None:
                kind, text = failed
                raise kind(text)
        return [result for result, _ in everything]

    def first(self, work: Callable[[], T]) -> T:
        """Call `work` in the first process alone and return its result in all; raises as `gather`."""
        return self.gather(work if self.rank == 0 else lambda: None)[0]  # type: ignore[return-value]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Call `work` in the first process and then, if that went well, in the others; raises as `gather`."""
        results: list[T] = []
        for turn in (True, False):
            self.gather(lambda turn=turn: results.append(work()) if (self.rank == 0) == turn else None)
        return results[0]


ALONE = Processes()


@contextmanager
def processes() -> Iterator[Processes]:
    """Connect the processes that `accelerate launch` or `torchrun` started, usually one.

    They talk through gloo on GPUs too: unlike NCCL it notices at once that a process has died. An error that
    all share is raised in the first alone; the others leave with exit code 0, so that the launcher does not
    end the first before it has spoken.
    """
    rank, count = rank_and_count()
    if count == 1:
        yield ALONE
        return
    from accelerate import PartialState

    for name in _CUTS:
        os.environ.pop(name, None)

    def stop(number: int, frame: FrameType | None) -> None:
        raise ProcessLost(
            "stopped by SIGTERM, which a launcher sends when another process has ended; the same command "
            "goes on"
        )

    before = signal.signal(signal.SIGTERM, stop)
    state = PartialState(cpu=True, timeout=_PATIENCE)
    try:
        yield Processes(rank, count)
    except ProcessLost:
        if rank > 1:  # the first, or in its place the second, says it
            raise SystemExit(1) from None
        raise
    except (ValueError, OSError):
        if rank > 0:
            raise SystemExit(0) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        state.destroy_process_group()
