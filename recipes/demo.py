"""Both twins through the whole method in the embedded world, and a report of what BASIC changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from basic_lite.recipes import options as o


def main(
    out: Annotated[Path, o.option(help="Folder of both runs, `summary.json` and `report.html`.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, o.option(help="Of the world, the projectors and the order of rows.")] = 0,
    scenes: Annotated[int, o.option(help="Held-out scenes to look into.", min=8)] = 200,
    overwrite: o.Overwrite = False,
) -> None:
    """Watch BASIC at work in minutes: offline, without a GPU, in an embedded world of drawn scenes.

    Two twins, one plain and one with BASIC, go through stage 1, stage 2 and the questions side by side.

    Examples:

      basic-lite demo

      basic-lite demo --seed 1 --out runs/demo-1
    """
    import shutil
    import time

    from basic_lite import launch
    from basic_lite.demo import outcome, report
    from basic_lite.demo.watch import watch
    from basic_lite.demo.world import world_at

    console = launch.quiet_console()
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} is not empty; choose another --out, or replace it with --overwrite")
        shutil.rmtree(out)
    start = time.monotonic()
    world = world_at(out / "world", lambda line: console.print(line, highlight=False), seed)
    console.print("Two twins, plain and BASIC: stage 1, stage 2, questions. Ctrl-C stops both.")
    folders = {"plain": out / "plain", "BASIC": out / "basic"}
    threads = max((os.cpu_count() or 2) // 2, 1)
    twins = {}
    try:
        for name, folder in folders.items():
            folder.mkdir()
            task = {"out": str(folder), "basic": name == "BASIC", "seed": seed, "threads": threads}
            task |= {"world": str(world.images), "scenes": scenes}
            with (folder / "errors.txt").open("w") as errors:
                command = [sys.executable, "-m", "basic_lite.recipes.twin", json.dumps(task)]
                # One thread each for two twins on two cores: more would only wait for each other.
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                twins[name] = subprocess.Popen(command, stdout=errors, stderr=errors, env=environment)
        watch(twins, folders, world, console)
    finally:
        for process in twins.values():
            process.terminate()
        for process in twins.values():
            process.wait()
    found = outcome.collect(out, seed, seconds=time.monotonic() - start)
    console.print(outcome.table(found))
    page = report.write(out, found)
    console.print(f"Report: {page}   figures: {out / 'summary.json'}", highlight=False)
