"""One table of what several runs reached: a line for each run, a column for each benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def main(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders that eval wrote into.")],
    benchmark: Annotated[
        str | None, o.option("Only these, separated by commas.", default="every one that a run has")
    ] = None,
    as_csv: Annotated[bool, o.option("As comma-separated values, with intervals.", "--csv")] = False,
) -> None:
    """Put the results of runs beside one another; runs without results are named below the table.

    Values of different scorers, prompts, splits or sizes stand in columns of their own.

    Examples:

      basic-lite results runs/*

      basic-lite results runs/plain runs/basic --benchmark mmbench,pope --csv
    """
    from basic_lite.console import command_console
    from basic_lite.evaluation import show, table

    console = command_console()
    wanted = None if benchmark is None else {table.name_of(name) for name in benchmark.split(",")}
    results = {str(run): show.results_in(run, wanted) for run in runs}
    have = {run: contents for run, contents in results.items() if contents}
    if not have:
        raise ValueError(f"no results in {', '.join(results)}; run `basic-lite eval` first")
    if as_csv:
        print(show.across_csv(have), end="")
    else:
        console.print(show.across(have))
    without = [run for run in results if run not in have]
    if without and not as_csv:
        console.print(f"Without results: {', '.join(without)}")
