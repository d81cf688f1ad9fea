"""Follow two twins at work from the files that they write: one live display."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from basic_lite import children
from basic_lite.demo.dataset import World
from basic_lite.progress import Board, State, complete_lines, state_of

DIARY: str = "twin.json"
"""What a twin has done so far, in its folder."""

QUESTIONS: str = "questions"
"""The phase in which a twin answers both benchmarks."""


def watch(
    twins: Mapping[str, subprocess.Popen],
    folders: Mapping[str, Path],
    world: World,
    console: Console,
    interval: float = 0.5,
) -> None:
    """Show the twins until both are done.

    Args:
        twins: Name of each twin and its process.
        folders: Name of each twin and its folder.
        world: What they are trained on and asked.
        console: Where to show it.
        interval: Seconds between two looks.

    Raises:
        ValueError: If a twin failed; says where its output is.
        KeyboardInterrupt: If a signal stopped a twin.
    """
    questions = sum(path.read_bytes().count(b"\n") - 1 for path in world.mmbench.values())
    with Board(console) as board:
        while True:
            running = [name for name, process in twins.items() if process.poll() is None]
            board.show(
                {
                    name: _look(folder, questions) if name in running else State("done", 1, 1)
                    for name, folder in folders.items()
                }
            )
            for name in twins.keys() - running:
                if not children.succeeded(twins[name]):
                    raise ValueError(f"the {name} twin failed: {children.last_words(folders[name])}")
            if not running:
                return
            time.sleep(interval)


def _look(folder: Path, questions: int) -> State:
    """Return a twin's state; the questions are counted by its answers."""
    state = state_of(folder / DIARY)
    if state.phase != QUESTIONS:
        return state
    answers = (folder / "stage2" / "eval").glob("*/predictions.jsonl")
    return replace(state, done=sum(len(complete_lines(path)) for path in answers), total=questions)
