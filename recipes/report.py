"""The page of a run: its curves, held-out rows and sample answers; of several, beside one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def main(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of stage1 or stage2, finished or not.")],
    out: Annotated[
        Path | None,
        o.option("The HTML file.", default="report.html in the run, or beside the first of several"),
    ] = None,
) -> None:
    """Draw what a run has logged: losses over steps, held-out rows (--val-share) and their sample answers.

    Examples:

      basic-lite report runs/stage1

      basic-lite report runs/plain runs/basic --out both.html
    """
    from basic_lite.console import command_console
    from basic_lite.training import report

    place = out or (runs[0] if len(runs) == 1 else runs[0].parent) / report.PAGE
    page, summaries = report.write(runs, place)
    command_console().print(*summaries, f"Report: {page}", sep="\n")
