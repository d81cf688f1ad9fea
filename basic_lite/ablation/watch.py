"""Follow many runs at work from the files that they write: one live display."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from basic_lite.ablation.runs import Run
from basic_lite.progress import Board, State, state_of

DIARY: str = "run.json"
"""What a run has done so far, in its folder."""


@contextmanager
def shown_on(console: Console, total: int) -> Iterator[Callable[[Sequence[Run], int, int], None]]:
    """Give the function that `run_all` calls.

    Args:
        console: Where to show it.
        total: How many runs there are.
    """
    with Board(console) as board:

        def look(running: Sequence[Run], done: int, failed: int) -> None:
            whole = State("", done, total, f"{failed} failed" if failed else "")
            board.show({"runs": whole} | {run.name: state_of(run.folder / DIARY) for run in running})
            board.say(f"{done} of {total} runs are done")

        yield look
