"""Both twins through the whole method in the embedded world, and a report of what BASIC changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from basic_lite.recipes import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from basic_lite.demo.outcome import Outcome


def main(
    out: Annotated[Path, o.option(help="Folder of both runs, `summary.json` and `report.html`.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, o.option(help="Of the world, the projectors and the order of rows.")] = 0,
    seeds: Annotated[int, o.option(help="So many demos, a seed each, and their means.", min=1)] = 1,
    scenes: Annotated[int, o.option(help="Held-out scenes to look into.", min=8)] = 200,
    overwrite: o.Overwrite = False,
) -> None:
    """Watch BASIC at work in minutes: offline, without a GPU, in an embedded world of drawn scenes.

    Two twins, one plain and one with BASIC, go through stage 1, stage 2 and the questions side by side.

    Examples:

      basic-lite demo

      basic-lite demo --seeds 5 --out runs/five
    """
    import shutil

    from basic_lite.console import quiet_console
    from basic_lite.demo import outcome, report
    from basic_lite.demo import seeds as several

    console = quiet_console()
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} is not empty; choose another --out, or replace it with --overwrite")
        shutil.rmtree(out)
    folders = [out] if seeds == 1 else [out / f"seed-{number}" for number in range(seed, seed + seeds)]
    for number, folder in enumerate(folders, start=seed):
        found = _twins(folder, number, scenes, console)
        console.print(outcome.table(found))
        console.print(
            f"Report: {report.write(folder, found)}   figures: {folder / 'summary.json'}", highlight=False
        )
    if seeds > 1:
        console.print(several.table(several.collect(folders, out)))
        console.print(f"Figures: {out / 'seeds.json'}   for a README: {out / 'seeds.md'}", highlight=False)


def _twins(out: Path, seed: int, scenes: int, console: Console) -> Outcome:
    """Draw a world, train both twins in it side by side, and gather what they found."""
    import signal
    import time

    from basic_lite.demo import outcome
    from basic_lite.demo.watch import watch
    from basic_lite.demo.world import world_at

    start = time.monotonic()
    world = world_at(out / "world", lambda line: console.print(line, highlight=False), seed)
    console.print("Two twins, plain and BASIC: stage 1, stage 2, questions. Ctrl-C stops both.")
    folders = {"plain": out / "plain", "BASIC": out / "basic"}
    # One thread each for two twins on two cores: more would only wait for each other.
    threads = max((os.cpu_count() or 2) // 2, 1)
    twins: dict[str, subprocess.Popen] = {}
    # A SIGTERM must not leave two twins behind that nobody watches.
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name, folder in folders.items():
            folder.mkdir()
            task = {"out": str(folder), "basic": name == "BASIC", "seed": seed, "threads": threads}
            task |= {"world": str(world.images), "scenes": scenes}
            command = [sys.executable, "-m", "basic_lite.recipes.twin", json.dumps(task)]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            with (folder / "errors.txt").open("w") as errors:
                twins[name] = subprocess.Popen(command, stdout=errors, stderr=errors, env=environment)
        watch(twins, folders, world, console)
    finally:
        for process in twins.values():
            process.terminate()
        for process in twins.values():
            process.wait()
        signal.signal(signal.SIGTERM, old)
    return outcome.collect(out, seed, seconds=time.monotonic() - start)
