"""Runs in processes of their own, as many at a time as the machine holds, and a display of how far they are.

The parent calls `run_all`; a child calls `begin` and trains with `train`. Between the two there are files in
the run's folder and one exit code: `STOPPED`.
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
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from basic_lite import files
from basic_lite.console import aside
from basic_lite.data.workers import cores
from basic_lite.data.world.dataset import world_in
from basic_lite.experiments.measure import BEFORE, QUESTIONS, path_of
from basic_lite.files import checkpoints, is_finished, write_json
from basic_lite.models.devices import choose_device

STOPPED: int = 75
"""Exit code of a child that a signal stopped and that can go on where it was (EX_TEMPFAIL: try again)."""

PATIENCE: float = 120.0  # seconds that a child waits for an earlier one in its folder, whose parent is gone

ERRORS, PROGRESS = "errors.txt", "run.json"
"""What a run's process wrote to standard error, and how far it is; in the run's folder."""

_PHASES = {BEFORE: "before training", "stage1": "stage 1", "stage2": "stage 2"}
_ASKING = f"measuring {QUESTIONS}"


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str  # its key
    seed: int  # of the world, the projector and the order of rows
    folder: Path  # of its stages and measures
    steps: tuple[str, ...]  # what is to be done, in order; each leaves a file of measures
    task: dict[str, dict]  # the rest for its process, plain JSON: options of each stage and what is measured

    @property
    def finished(self) -> bool:
        return all(path_of(self.folder, step).is_file() for step in self.steps)

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def start(run: Run, threads: int) -> subprocess.Popen:
    """Start a run's process; what it prints goes to files in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    task = {"folder": str(run.folder), "steps": run.steps, "seed": run.seed, "threads": threads, **run.task}
    command = [sys.executable, "-m", "basic_lite.recipes.ablate_run", json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (run.folder / ERRORS).open("w") as errors:
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which tells each child once.
        return subprocess.Popen(
            command, stdout=errors, stderr=errors, env=environment, start_new_session=True
        )


@contextlib.contextmanager
def _stopped_at_the_end() -> Iterator[dict[str, subprocess.Popen]]:
    """Give a dict for running children; those in it when the block ends, however it ends, are stopped.

    Within, SIGTERM raises KeyboardInterrupt, as Ctrl-C does: neither may leave children running.
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
    """Return whether a child that has ended did what it was started for.

    Raises KeyboardInterrupt if a signal stopped it: whoever sent it wants the other children stopped, too.
    """
    if process.returncode in (STOPPED, -signal.SIGTERM):
        raise KeyboardInterrupt
    return process.returncode == 0


def jobs_for(runs: int, needed: int, on_gpu: bool) -> int:
    """Return how many runs to have at a time: a core each within nine tenths of the memory; one on a GPU.

    A run takes `needed` bytes.
    """
    if on_gpu:
        return 1
    return max(1, min(runs, cores(), int(0.9 * psutil.virtual_memory().available) // needed))


def run_shown(
    runs: Sequence[Run],
    console: Console,
    needed: int,
    jobs: int | None = None,
    again: str = "the same command",
) -> None:
    """Do all runs that are not finished as `run_all` does, on a display of how far they are.

    `jobs` go on at a time, `None` for as many as fit where each needs `needed` bytes.
    """
    left = sum(not run.finished for run in runs)
    jobs = jobs or jobs_for(left, needed, choose_device() == "cuda")
    threads = max(cores() // jobs, 1)
    console.print(
        f"{left} runs, {jobs} at a time with {threads} threads each. Ctrl-C stops them; {again} goes on."
    )
    try:
        with progress_board(console) as show:
            run_all(runs, jobs, threads, show, again)
    except KeyboardInterrupt:
        console.print(f"Stopped. What is done stays; {again} goes on.")
        raise


def run_all(
    runs: Sequence[Run],
    jobs: int,
    threads: int,
    show: Callable[[Mapping[str, State]], None],
    again: str = "the same command",
    interval: float = 0.5,
) -> None:
    """Do all runs that are not finished, and stop them all on a signal to this process.

    `jobs` go on at a time, with `threads` of the CPU each. `show` is called every `interval` seconds with the
    state of the whole (`runs`) and of each running one. `again` is what a user repeats to go on.

    Raises KeyboardInterrupt on Ctrl-C or SIGTERM, here or in a run, when all runs have saved and stopped, and
    ValueError if runs failed, when the others are done; it says where the first one's output is.
    """
    waiting = [run for run in runs if not run.finished]
    done, failed = len(runs) - len(waiting), []
    started: dict[str, Run] = {}
    with _stopped_at_the_end() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                started[run.name], running[run.name] = run, start(run, threads)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if succeeded(process) and started[name].finished:
                    done += 1
                else:
                    failed.append(started[name])
            note = f"{len(failed)} failed" if failed else ""
            states = {name: state_of(started[name]) for name in running}
            show({"runs": State("", done, len(runs), note)} | states)
            if running:
                time.sleep(interval)
    if failed:
        log = failed[0].folder / ERRORS
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no message"]
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed, first {failed[0].name}: {last[0]} (all of it in "
            f"{log}); {again} tries them again"
        )


@contextlib.contextmanager
def begin(folder: Path, threads: int) -> Iterator[None]:
    """Be a child: few threads, prints in `console.txt`, and an end when the parent is gone."""
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_follow_parent, args=[os.getppid()], daemon=True).start()
    # A child whose parent was killed stops after its step: the next one waits for that.
    with (
        files.held(folder, wait=PATIENCE),
        (folder / "console.txt").open("a", encoding="utf-8") as console,
        contextlib.redirect_stdout(console),
        aside(),
    ):
        yield


def _follow_parent(parent: int) -> None:
    """Stop this process, as a signal would, when the one that started it is gone (killed, say)."""
    while os.getppid() == parent:  # psutil's wait would take a zombie for alive
        time.sleep(2)
    os.kill(os.getpid(), signal.SIGTERM)


def train(stage: Callable[..., None], folder: Path, **options: object) -> None:
    """Train a stage, or go on with it, unless it is finished.

    Exits with `STOPPED` (SystemExit) if a signal stopped it with a checkpoint.
    """
    if is_finished(folder):
        return
    resume = bool(checkpoints(folder))
    stage(out=folder, resume=resume, overwrite=not resume, **options)
    if not is_finished(folder):
        sys.exit(STOPPED)


def for_stage(options: Mapping[str, object]) -> dict[str, object]:
    """Return options as a stage takes them: data and images as lists, as several data sets may be mixed."""
    several = ("data", "images")
    return {k: [str(v)] if k in several and isinstance(v, str | Path) else v for k, v in options.items()}


def phase_of(step: str, measuring: bool = False) -> str:
    """Return how a step is called in the progress file and on the display."""
    name = _PHASES.get(step, step)
    return f"measuring {name}" if measuring else name


@dataclass
class ProgressFile:
    """What a run's process has done so far, in a file that the display reads while it grows."""

    path: Path
    phase: str = ""  # what goes on
    # Seconds of the phases that are done, with what interrupted attempts took
    seconds: dict[str, float] = field(default_factory=dict)
    spent: float = 0.0  # seconds of interrupted attempts at the phase that comes next
    peak_mib: dict[str, float] = field(default_factory=dict)  # highest memory at the end of each phase

    @classmethod
    def open(cls, path: Path) -> ProgressFile:
        """Go on with a progress file, or begin it."""
        if not path.is_file():
            return cls(path)
        return cls(path, **json.loads(path.read_text(encoding="utf-8")) | {"phase": ""})

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Note that a phase goes on, and then its time and the highest memory so far."""
        from basic_lite.memory.available import peak_mib

        self.phase, begun = phase, time.monotonic()
        self._write()
        try:
            yield
        except BaseException:
            self.spent += time.monotonic() - begun
            self._write()
            raise
        self.seconds[phase] = round(self.spent + time.monotonic() - begun, 1)
        self.peak_mib[phase] = round(peak_mib("cpu"), 1)
        self.phase, self.spent = "", 0.0
        self._write()

    def _write(self) -> None:
        write_json(self.path, {key: value for key, value in vars(self).items() if key != "path"})


@dataclass(frozen=True)
class State:
    """What a process does now: a phase, how much of how much of it is done, and its last figures."""

    phase: str
    done: int = 0
    total: int | None = None
    note: str = ""


def state_of(run: Run) -> State:
    """Read a run's state from its progress file, and from the log or the answers that it writes."""
    try:
        phase = json.loads((run.folder / PROGRESS).read_text(encoding="utf-8"))["phase"]
    except (FileNotFoundError, ValueError):
        return State("starting")
    if phase == _ASKING:
        answers = run.folder.glob("stage*/eval/*/predictions.jsonl")
        done = sum(path.read_bytes().count(b"\n") for path in answers)
        return State(phase, done, _asked(run.task["measure"]["world"]))
    stage = phase.replace(" ", "")
    log = files.read_log(run.folder / stage / "log.jsonl") if stage in _PHASES else []
    steps = (row for row in reversed(log) if "lm" in row)  # not those of held-out rows
    if (last := next(steps, None)) is None:
        return State(phase)
    note = f"{'caption' if stage == 'stage1' else 'answer'} loss {last['lm']:.2f}"
    note += f"  cosine {last['cosine']:.2f}" if last.get("cosine") is not None else ""
    return State(phase, last["step"], last["steps"], note)


@cache
def _asked(world: str) -> int:
    """Return how many questions a world asks, rotations included."""
    return sum(path.read_bytes().count(b"\n") - 1 for path in world_in(Path(world)).mmbench.values())


@contextlib.contextmanager
def progress_board(console: Console) -> Iterator[Callable[[Mapping[str, State]], None]]:
    """Give a function that shows these processes and no others.

    A live display has a line for each; without a terminal each phase is printed once.
    """
    printed: set[tuple[str, str]] = set()
    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"),
        TextColumn("{task.fields[phase]:<25}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    ) as display:

        def show(states: Mapping[str, State]) -> None:
            for name in tasks.keys() - states.keys():
                display.remove_task(tasks.pop(name))
            for name, state in states.items():
                if name not in tasks:
                    tasks[name] = display.add_task(name, phase="", note="")
                display.update(
                    tasks[name],
                    completed=state.done,
                    total=state.total,
                    phase=state.phase,
                    note=state.note,
                )
                line = state.phase or (f"{state.done} of {state.total} done" if state.total else "")
                if line and not console.is_terminal and (name, line) not in printed:
                    printed.add((name, line))
                    console.print(f"{name}: {line}")

        yield show
