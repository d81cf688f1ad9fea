"""Where a command prints, and the bar that shows how far it is; nothing here needs torch."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def rank_and_count() -> tuple[int, int]:
    """Return this process's number and how many there are, as `accelerate launch` and `torchrun` say."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def command_console() -> Console:
    """Return the console of a command; of several processes the first speaks."""
    return Console(quiet=rank_and_count()[0] > 0)


def quiet_console() -> Console:
    """Return the console of a command that loads models, with the libraries' own progress bars off."""
    silence_libraries()
    return command_console()


def silence_libraries() -> None:
    """Switch off the progress bars of transformers, and of datasets, which is not imported for that."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # heard at import; with pandas it takes 85 MB
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


def progress_bar(console: Console, *, transient: bool = False) -> Progress:
    """Return a progress display with a count, the time used and the time left.

    Args:
        console: where it is shown.
        transient: nothing stays when it ends; where no terminal is, nothing is shown at all.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
        disable=transient and not console.is_terminal,
    )
