"""Follow two twins at work from the files that they write: one live display."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from basic_lite.demo.dataset import World

STOPPED: int = 75
"""Exit code of a twin that a signal stopped with a checkpoint (EX_TEMPFAIL: try again)."""

PHASES = ("look before", "stage 1", "look after stage 1", "stage 2", "look after stage 2", "questions")


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
        console: Where to show it; without a terminal a line is printed when a phase begins.
        interval: Seconds between two looks.

    Raises:
        ValueError: If a twin failed; says where its output is.
    """
    rows = sum(path.read_bytes().count(b"\n") - 1 for path in world.mmbench.values())
    columns = (
        TextColumn("{task.fields[twin]:<6}"),
        TextColumn("{task.description:<19}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    said: set[tuple[str, str]] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        tasks = {name: shown.add_task("starting", total=None, twin=name, note="") for name in twins}
        while True:
            running = [name for name, process in twins.items() if process.poll() is None]
            for name, task in tasks.items():
                phase, done, total, note = _look(folders[name], rows)
                shown.update(task, description=phase, completed=done, total=total, note=note)
                if not console.is_terminal and (name, phase) not in said:
                    said.add((name, phase))
                    console.print(f"{name}: {phase}", highlight=False)
            for name, process in twins.items():
                if process.poll() == STOPPED:
                    raise KeyboardInterrupt  # somebody else's signal: the other twin stops too
                if process.poll():
                    log = folders[name] / "errors.txt"
                    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no message"]
                    raise ValueError(f"the {name} twin failed: {last[0]} (all of it in {log})")
            if not running:
                return
            time.sleep(interval)


def _look(folder: Path, questions: int) -> tuple[str, int, int | None, str]:
    """Return a twin's phase, how much of how much is done, and its last figures."""
    try:
        diary = json.loads((folder / "twin.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return "starting", 0, None, ""
    phase = diary["phase"]
    if not phase:
        left = [name for name in PHASES if name not in diary["seconds"]]
        return ("done" if not left else "between"), len(diary["seconds"]), len(PHASES), ""
    if phase.startswith("stage"):
        run = folder / phase.replace(" ", "")
        log = _lines(run / "log.jsonl")
        if not log:
            return phase, 0, None, ""
        last = json.loads(log[-1])
        note = f"caption loss {last['lm']:.2f}" if phase == "stage 1" else f"answer loss {last['lm']:.2f}"
        note += f"  cosine {last['cosine']:.2f}" if last["cosine"] is not None else ""
        return phase, last["step"], last["steps"], note
    if phase == "questions":
        answers = (folder / "stage2" / "eval").glob("*/predictions.jsonl")
        return phase, sum(len(_lines(path)) for path in answers), questions, ""
    return phase, 0, None, ""


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a file that may be growing; none if it is not there yet."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    except FileNotFoundError:
        return []
