"""Both twins through the whole method in the embedded world, and a report of what BASIC changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from basic_lite.training import settings as o

if TYPE_CHECKING:
    from rich.console import Console


def main(
    out: Annotated[Path, o.option(help="Folder of both runs, `summary.json` and `report.html`.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[
        int, o.option(help="Seed of the world, the projectors and the order of rows.", callback=o.a_seed)
    ] = 0,
    seeds: Annotated[
        int,
        o.option(
            help="Run so many demos, a seed each from --seed on, and average them.", callback=o.within(1)
        ),
    ] = 1,
    scenes: Annotated[
        int, o.option(help="How many held-out scenes are looked into.", callback=o.within(8))
    ] = 200,
    resume: Annotated[bool, o.option("--resume", help="Go on with an interrupted demo in --out.")] = False,
    overwrite: Annotated[bool, o.option("--overwrite", help="Replace the demo in --out.")] = False,
) -> None:
    """Watch BASIC at work in minutes: offline, without a GPU, in an embedded world of drawn scenes.

    Two twins, one plain and one with BASIC, go through stage 1, stage 2 and the questions side by side.

    Examples:

      basic-lite demo

      basic-lite demo --seeds 5 --out runs/five
    """
    from basic_lite import files
    from basic_lite.console import quiet_console
    from basic_lite.experiments import report, table
    from basic_lite.experiments import table as several

    console = quiet_console()
    with files.held(out):
        _prepare(out, {"seed": seed, "seeds": seeds, "scenes": scenes}, resume, overwrite)
        folders = [out] if seeds == 1 else [out / f"seed-{number}" for number in range(seed, seed + seeds)]
        for number, folder in enumerate(folders, start=seed):
            try:
                if not (folder / "summary.json").is_file():
                    _twins(folder, number, scenes, console)
            except KeyboardInterrupt:
                console.print("Stopped. The same command with --resume goes on.")
                return
            found = table.collect_outcome(folder, number, _seconds(folder))
            console.print(table.outcome_table(found))
            console.print(
                f"Report: {report.write(folder, found)}   figures: {folder / 'summary.json'}", highlight=False
            )
        if seeds > 1:
            console.print(several.table(several.collect(folders, out)))
            console.print(
                f"Figures: {out / 'seeds.json'}   for a README: {out / 'seeds.md'}", highlight=False
            )


def _prepare(out: Path, settings: dict[str, int], resume: bool, overwrite: bool) -> None:
    """Make the demo's folder, or see that the one to go on with is of the same demo.

    Raises:
        ValueError: If the folder is in use, or there is nothing to resume, or it was another demo.
    """
    from basic_lite.files import contents, remove, write_json

    stamp = out / "demo.json"
    if resume:
        if not stamp.is_file():
            raise ValueError(f"{out} holds no demo to go on with; start without --resume")
        before = json.loads(stamp.read_text(encoding="utf-8"))
        if before != settings:
            raise ValueError(f"the demo in {out} was started with {before}, now {settings}; resume the same")
        return
    if contents(out):
        if not overwrite:
            raise ValueError(
                f"{out} is not empty; go on with --resume, take another --out, or replace it with --overwrite"
            )
        for path in contents(out):
            remove(path)
    write_json(stamp, settings)


def _seconds(out: Path) -> float:
    """Return how long a demo has taken, with all its interrupted parts."""
    path = out / "elapsed.json"
    return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else 0.0


def _twins(out: Path, seed: int, scenes: int, console: Console) -> None:
    """Draw a world and train both twins in it side by side; what is done already stays."""
    import time

    from basic_lite.data.world.world import world_at
    from basic_lite.experiments import processes
    from basic_lite.experiments.processes import watch
    from basic_lite.files import write_json

    before, begun = _seconds(out), time.monotonic()
    world = world_at(out / "world", lambda line: console.print(line, highlight=False), seed)
    console.print("Two twins, plain and BASIC: stage 1, stage 2, questions. Ctrl-C stops, --resume goes on.")
    folders = {"plain": out / "plain", "BASIC": out / "basic"}
    # One thread each for two twins on two cores: more would only wait for each other.
    threads = max((os.cpu_count() or 2) // 2, 1)
    try:
        with processes.together() as twins:
            for name, folder in folders.items():
                task = {"out": str(folder), "basic": name == "BASIC", "seed": seed}
                task |= {"world": str(world.images), "scenes": scenes}
                twins[name] = processes.start("basic_lite.recipes.twin", task, folder, threads)
            watch(twins, folders, world, console)
    finally:
        write_json(out / "elapsed.json", {"seconds": before + time.monotonic() - begun})
