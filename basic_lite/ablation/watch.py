"""Follow many runs at work from the files that they write: one live display."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from basic_lite.ablation.runs import Run

DIARY: str = "run.json"
"""What a run has done so far, in its folder."""


@contextmanager
def shown_on(console: Console, total: int) -> Iterator[Callable[[Sequence[Run], int, int], None]]:
    """Give the function that `run_all` calls; without a terminal a line is printed for every run.

    Args:
        console: where to show it.
        total: how many runs there are.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    said: set[str] = set()
    counted = [-1]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        whole = progress.add_task("runs", total=total, note="")
        tasks: dict[str, TaskID] = {}

        def look(running: Sequence[Run], done: int, failed: int) -> None:
            progress.update(whole, completed=done, note=f"{failed} failed" if failed else "")
            names = {run.name for run in running}
            for name in [name for name in tasks if name not in names]:
                progress.remove_task(tasks.pop(name))
            for run in running:
                if run.name not in tasks:
                    tasks[run.name] = progress.add_task(run.name, total=None, note="starting")
                phase, step, steps, note = state_of(run.folder)
                progress.update(tasks[run.name], completed=step, total=steps, note=f"{phase}  {note}".strip())
                if not console.is_terminal and run.name not in said:
                    said.add(run.name)
                    console.print(f"{run.name}: begins", highlight=False)
            if not console.is_terminal and done != counted[0]:
                counted[0] = done
                console.print(f"{done} of {total} runs are done", highlight=False)

        yield look


def state_of(folder: Path) -> tuple[str, int, int | None, str]:
    """Return a run's phase, its step, its steps, and its last figures."""
    try:
        phase = json.loads((folder / DIARY).read_text(encoding="utf-8"))["phase"]
    except (FileNotFoundError, ValueError):
        return "starting", 0, None, ""
    log = folder / phase.replace(" ", "") / "log.jsonl"
    try:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        last = json.loads(lines[-1])
    except (OSError, IndexError, ValueError):
        return phase, 0, None, ""
    note = f"loss {last['lm']:.2f}"
    note += f"  cosine {last['cosine']:.2f}" if last.get("cosine") is not None else ""
    return phase, last["step"], last["steps"], note
