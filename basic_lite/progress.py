"""How far a child process is: the diary that it writes, and the display that its parent makes of it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from basic_lite.writing import write_json


@dataclass
class Diary:
    """What a child has done so far, in a file that the parent's display reads while it grows.

    Attributes:
        path: The file.
        phase: What goes on.
        seconds: Of the phases that are done, with what interrupted attempts took.
        spent: Seconds of interrupted attempts at the phase that comes next.
        peak_mib: Highest memory at the end of each phase.
    """

    path: Path
    phase: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    spent: float = 0.0
    peak_mib: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Diary:
        """Go on with the diary in a file, or begin it."""
        if not path.is_file():
            return cls(path)
        return cls(path, **json.loads(path.read_text(encoding="utf-8")) | {"phase": ""})

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Note that a phase goes on, and then its time and the highest memory so far."""
        from basic_lite.memory import peak_mib

        self.phase, start = phase, time.monotonic()
        self.write()
        try:
            yield
        except BaseException:
            self.spent += time.monotonic() - start
            self.write()
            raise
        self.seconds[phase] = round(self.spent + time.monotonic() - start, 1)
        self.peak_mib[phase] = round(peak_mib("cpu"), 1)
        self.phase, self.spent = "", 0.0
        self.write()

    def does(self, phase: str, action: Callable[[], None]) -> None:
        """Do something unless it is done."""
        if phase not in self.seconds:
            with self.during(phase):
                action()

    def write(self) -> None:
        """Write the file."""
        write_json(self.path, {key: value for key, value in vars(self).items() if key != "path"})


@dataclass(frozen=True)
class State:
    """What a child does now: a phase, how much of how much of it is done, and its last figures."""

    phase: str
    done: int = 0
    total: int | None = None
    note: str = ""


def state_of(diary: Path) -> State:
    """Read a child's state from its diary, and from the log of the stage that it trains.

    A stage's run stands beside the diary: phase `stage 1` (or `stage1`) in `stage1`.
    """
    try:
        phase = json.loads(diary.read_text(encoding="utf-8"))["phase"]
    except (FileNotFoundError, ValueError):
        return State("starting")
    stage = phase.replace(" ", "")
    log = complete_lines(diary.parent / stage / "log.jsonl") if stage else []
    if not log:
        return State(phase)
    last = json.loads(log[-1])
    note = f"{'caption' if stage == 'stage1' else 'answer'} loss {last['lm']:.2f}"
    note += f"  cosine {last['cosine']:.2f}" if last.get("cosine") is not None else ""
    return State(phase, last["step"], last["steps"], note)


def complete_lines(path: Path) -> list[str]:
    """Return the complete lines of a file of JSON lines that may be growing; none if it is not there yet."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    except FileNotFoundError:
        return []


class Board:
    """A live display with one line for every child; without a terminal a line is printed when a phase begins.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console):
        self.console = console
        self._said: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._shown = Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.fields[phase]:<19}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Board:
        self._shown.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._shown.__exit__(*failure)

    def show(self, states: Mapping[str, State]) -> None:
        """Show these children and no others."""
        for name in [name for name in self._tasks if name not in states]:
            self._shown.remove_task(self._tasks.pop(name))
        for name, state in states.items():
            if name not in self._tasks:
                self._tasks[name] = self._shown.add_task(name, phase="", note="")
            fields = {"completed": state.done, "total": state.total, "phase": state.phase, "note": state.note}
            self._shown.update(self._tasks[name], **fields)
            if state.phase:
                self.say(f"{name}: {state.phase}")

    def say(self, line: str) -> None:
        """Print a line once, where there is no terminal to draw on."""
        if not self.console.is_terminal and line not in self._said:
            self._said.add(line)
            self.console.print(line, highlight=False)
