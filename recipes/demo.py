"""Plain and BASIC through the whole method in the embedded world, and a report of the difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from basic_lite.training import settings as o


def main(
    out: Annotated[Path, o.option("Folder of both runs, `summary.json` and `report.html`.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[
        int, o.option("Seed of the world, the projectors and the order of rows.", callback=o.a_seed)
    ] = 0,
    seeds: Annotated[
        int,
        o.option(
            "How many demos to run, with seeds from --seed on; figures are averaged.", callback=o.within(1)
        ),
    ] = 1,
    scenes: Annotated[int, o.option("Held-out scenes to inspect.", callback=o.within(8))] = 200,
    resume: Annotated[bool, o.option("Continue an interrupted demo in --out.", "--resume")] = False,
    overwrite: Annotated[bool, o.option("Replace the demo in --out.", "--overwrite")] = False,
) -> None:
    """Watch BASIC at work in minutes: offline, without a GPU, in an embedded world of drawn scenes.

    Two variants, plain and BASIC, go through stage 1, stage 2 and the questions side by side.

    Examples:

      basic-lite demo

      basic-lite demo --seeds 5 --out runs/five
    """
    from basic_lite import files
    from basic_lite.console import quiet_console
    from basic_lite.data.world.world import world_at
    from basic_lite.experiments import demo, processes, report, table

    console = quiet_console()
    with files.held(out):
        _prepare(out, {"seed": seed, "seeds": seeds, "scenes": scenes}, resume, overwrite)
        folders = {
            out if seeds == 1 else out / f"seed-{number}": number for number in range(seed, seed + seeds)
        }
        for folder, number in folders.items():
            world_at(folder / "world", console.print, number)
        runs = [run for folder, number in folders.items() for run in demo.runs(folder, number, scenes)]
        console.print("Two variants, plain and BASIC: stage 1, stage 2, questions.")
        again = "the same command with --resume"
        try:
            processes.run_shown(runs, console, demo.BYTES_OF_A_RUN, again=again)
        except KeyboardInterrupt:
            return
        for folder, number in folders.items():
            results = demo.Results([folder], [number])
            summary = demo.write_summary(results)
            minutes, rest = divmod(round(results.seconds), 60)
            title = f"plain against BASIC, embedded world, seed {number}, {minutes} min {rest} s"
            console.print(table.side_by_side(results.table, title))
            for line in results.sentences:
                console.print(line, style="bold")
            console.print(results.cost)
            console.print(f"Report: {report.write_demo(results)}   figures: {summary}")
        if seeds > 1:
            results = demo.Results(list(folders), list(folders.values()))
            files.write_json(out / "seeds.json", {"seeds": results.seeds, **results.as_dict()})
            table.write_side_by_side(results.table, out / "seeds.md")
            console.print(table.side_by_side(results.table, "means over seeds"))
            page = report.write_demos(results, out / "seeds.html")
            for line in results.sentences:
                console.print(line, style="bold")
            where = f"figures: {out / 'seeds.json'}   for a README: {out / 'seeds.md'}"
            console.print(f"Report: {page}   {where}")


def _prepare(out: Path, settings: dict[str, int], resume: bool, overwrite: bool) -> None:
    """Make the demo's folder, or see that the one to go on with is of the same demo."""
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
