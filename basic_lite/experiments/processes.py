"""Processes that train for a command: how they begin, and how they are stopped.

A command starts a child with `start`, inside `together`, which stops all of them whatever happens. The child
calls `begin` and trains with `train`. Between the two there are files and one number: `STOPPED`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from basic_lite import console as whole_console
from basic_lite import files
from basic_lite.data.world.dataset import World
from basic_lite.experiments.measure import path_of
from basic_lite.files import checkpoints, is_finished, write_json

STOPPED: int = 75
"""Exit code of a child that a signal stopped and that can go on where it was (EX_TEMPFAIL: try again)."""

PATIENCE: float = 120.0
"""Seconds that a child waits for an earlier one in its folder, whose parent is gone."""

ERRORS: str = "errors.txt"
"""What a child wrote to standard error, in its folder."""


def start(module: str, task: Mapping[str, Any], folder: Path, threads: int) -> subprocess.Popen:
    """Start a module in a process of its own.

    Args:
        module: What `python -m` runs; it reads `task` from its first argument.
        task: Plain JSON.
        folder: Of the child; made if it is not there.
        threads: Of the CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, json.dumps({**task, "threads": threads})]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (folder / ERRORS).open("w") as errors:
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which tells each child once.
        return subprocess.Popen(
            command, stdout=errors, stderr=errors, env=environment, start_new_session=True
        )


@contextlib.contextmanager
def together() -> Iterator[dict[str, subprocess.Popen]]:
    """Give a dict for running children; those in it at the end are told to stop and waited for.

    The end may have come by an exception.

    Raises:
        KeyboardInterrupt: Within, on Ctrl-C and on SIGTERM alike: neither may leave children behind.
    """
    running: dict[str, subprocess.Popen] = {}
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, old)


def succeeded(process: subprocess.Popen) -> bool:
    """Say whether a child that has ended did what it was started for.

    Raises:
        KeyboardInterrupt: If a signal stopped it. Somebody wants the work stopped: the other children's too.
    """
    if process.returncode in (STOPPED, -signal.SIGTERM):
        raise KeyboardInterrupt
    return process.returncode == 0


def last_words(folder: Path) -> str:
    """Return the last line that a child wrote to standard error, and where the others are."""
    log = folder / ERRORS
    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no message"]
    return f"{last[0]} (all of it in {log})"


@contextlib.contextmanager
def begin(folder: Path, threads: int) -> Iterator[None]:
    """Be a child: few threads, prints in `console.txt`, and an end when the parent is gone."""
    import torch

    torch.set_num_threads(threads)
    _follow_parent()
    # A child whose parent was killed stops after its step: the next one waits for that.
    with (
        files.held(folder, wait=PATIENCE),
        (folder / "console.txt").open("a", encoding="utf-8") as console,
        contextlib.redirect_stdout(console),
        whole_console.aside(),
    ):
        yield


def _follow_parent(interval: float = 2.0) -> None:
    """Stop this process, as a signal would, when the one that started it is gone (killed, say)."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()


def train(stage: Callable[..., None], folder: Path, **options: object) -> None:
    """Train a stage, or go on with it, unless it is finished.

    Raises:
        SystemExit: With `STOPPED`, if a signal stopped it with a checkpoint.
    """
    if is_finished(folder):
        return
    resume = bool(checkpoints(folder))
    stage(out=folder, resume=resume, overwrite=not resume, **options)
    if not is_finished(folder):
        sys.exit(STOPPED)


# How far a child process is: the diary that it writes, and the display that its parent makes of it.


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
        from basic_lite.memory.available import peak_mib

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


# Many runs in processes of their own, as many at a time as the machine holds.


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm: its key.
        seed: of the world, the projector and the order of rows.
        folder: of its stages and measures.
        steps: what is to be done, in order; each leaves a file of measures.
        task: what the process is told, plain JSON.
    """

    arm: str
    seed: int
    folder: Path
    steps: tuple[str, ...]
    task: dict[str, object]

    @property
    def finished(self) -> bool:
        """Whether every step has been measured."""
        return all(path_of(self.folder, step).is_file() for step in self.steps)

    @property
    def name(self) -> str:
        """For a display."""
        return f"{self.arm}, seed {self.seed}"


def free_bytes() -> int:
    """Return the memory that the system says can be taken now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def jobs_for(runs: int, needed: int, on_gpu: bool) -> int:
    """Return how many runs to have at a time: a core each within nine tenths of the memory; one on a GPU.

    Args:
        runs: how many there are.
        needed: bytes that one takes.
        on_gpu: they share one card.
    """
    if on_gpu:
        return 1
    return max(1, min(runs, cores(), int(0.9 * free_bytes()) // needed))


def start_run(run: Run, threads: int) -> subprocess.Popen:
    """Start a run's process; what it prints goes to files in its folder."""
    return start("basic_lite.recipes.arm", run.task, run.folder, threads)


def run_all(
    runs: Sequence[Run],
    jobs: int,
    threads: int,
    look: Callable[[Sequence[Run], int, int], None],
    interval: float = 0.5,
) -> None:
    """Do all runs that are not finished, and stop them all when this process is told to stop.

    Args:
        runs: finished ones among them are left alone.
        jobs: how many at a time.
        threads: of the CPU, each.
        look: called every `interval` seconds with the running ones, how many are done and how many failed.
        interval: seconds.

    Raises:
        KeyboardInterrupt: On Ctrl-C or SIGTERM, here or in a run, when all runs have saved and stopped.
        ValueError: If runs failed, when the others are done; says where the first one's output is.
    """
    waiting = [run for run in runs if not run.finished]
    done, failed = len(runs) - len(waiting), []
    started: dict[str, Run] = {}
    with together() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                started[run.name], running[run.name] = run, start_run(run, threads)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if succeeded(process) and started[name].finished:
                    done += 1
                else:
                    failed.append(started[name])
            look([started[name] for name in running], done, len(failed))
            if running:
                time.sleep(interval)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed, first {failed[0].name}: "
            f"{last_words(failed[0].folder)}; the same command tries them again"
        )


# Follow many runs at work from the files that they write: one live display.

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


# Follow two twins at work from the files that they write: one live display.

DEMO_DIARY: str = "twin.json"
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
                if not succeeded(twins[name]):
                    raise ValueError(f"the {name} twin failed: {last_words(folders[name])}")
            if not running:
                return
            time.sleep(interval)


def _look(folder: Path, questions: int) -> State:
    """Return a twin's state; the questions are counted by its answers."""
    state = state_of(folder / DEMO_DIARY)
    if state.phase != QUESTIONS:
        return state
    answers = (folder / "stage2" / "eval").glob("*/predictions.jsonl")
    return replace(state, done=sum(len(complete_lines(path)) for path in answers), total=questions)
