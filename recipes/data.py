"""Look at training data before training: `basic-lite data check`."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

    from basic_lite.data.findings import Finding
    from basic_lite.data.readers import Rows

app = typer.Typer(
    help="Look at training data before training.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.callback()
def _data() -> None:
    """Look at training data before training."""


@app.command()
def check(
    annotations: Annotated[
        Path, typer.Argument(help="LLaVA .json or .jsonl; Arrow or Parquet; a hub id.", show_default=False)
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder, zip or tar of the images. Left out: only texts are checked.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write all findings here, bad.jsonl beside it.")] = None,
    pictures: Annotated[
        Literal["decode", "header", "present"],
        typer.Option(
            help="How closely to look at images: decode them, read headers, or see that they exist."
        ),
    ] = "decode",
    max_length: Annotated[int, typer.Option(help="Most tokens of a row, images included.")] = 2048,
    tokens_per_image: Annotated[
        int, typer.Option(help="Tokens of one image: 576 for CLIP-336, 729 for SigLIP.")
    ] = 576,
    follow_links: Annotated[
        bool, typer.Option(help="Allow links that lead out of the image folder.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one per core")] = None,
) -> None:
    """Find every row that cannot be trained on, before training meets it.

    Exit code 0: nothing wrong, 1: findings, 2: the data cannot be read. Stopped with Ctrl-C and started
    again, it goes on where it was. Training uses the index and the results that it leaves.

    [bold]Examples[/bold]

      basic-lite data check blip_laion_cc_sbu_558k.json --images images.zip

      basic-lite data check llava_v1_5_mix665k.json --images data/ --report findings.json

      basic-lite data check mix.jsonl --images data/ --pictures present --workers 16
    """
    from rich.console import Console

    from basic_lite.data.report import findings_table, write_bad_rows, write_report
    from basic_lite.data.samples import NOTES

    started = time.monotonic()
    try:
        rows, findings = _check(
            annotations, images, pictures, max_length, tokens_per_image, follow_links, workers or _cores()
        )
    except ValueError as error:
        message = " ".join(str(error).split())
        if report is not None:
            write_report(report, 0, [], error=message)
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(2) from None
    seconds = round(time.monotonic() - started, 1)
    if report is not None:
        facts = {"annotations": str(annotations), "images": None if images is None else str(images)}
        write_report(report, len(rows), findings, **facts, sha256=rows.sha256, seconds=seconds)
        write_bad_rows(report.with_name("bad.jsonl"), findings)
    console = Console()
    if findings:
        console.print(findings_table(findings))
    faulty = len({finding.row for finding in findings if finding.code not in NOTES})
    console.print(f"{len(rows):,} rows in {seconds} s, {faulty:,} with faults", highlight=False)
    raise typer.Exit(1 if faulty else 0)


def _check(
    annotations: Path,
    images: Path | None,
    pictures: str,
    max_length: int,
    tokens_per_image: int,
    follow_links: bool,
    workers: int,
) -> tuple[Rows, list[Finding]]:
    """Check texts, then pictures, with a bar for each pass."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from basic_lite.data.findings import in_order, text_findings
    from basic_lite.data.gallery import check_pictures
    from basic_lite.data.readers import open_rows

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        rows = open_rows(annotations, images, follow_links=follow_links, workers=workers, progress=show)
        findings = text_findings(rows, max_length=max_length, tokens_per_image=tokens_per_image)
        if images is not None or rows.stored:
            looked = partial(show, "images")
            findings += check_pictures(rows, depth=pictures, workers=workers, progress=looked)
    return rows, in_order(findings)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bench(
    annotations: Annotated[
        Path | None,
        typer.Argument(help="Data to measure with. Left out: photos made for it.", show_default=False),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder, zip or tar of the images.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of the tower's input in pixels.")] = 336,
    tokens_per_image: Annotated[int, typer.Option(help="Tokens of one image.")] = 576,
    batch: Annotated[int, typer.Option(help="Rows per batch.")] = 16,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 2,
    step_ms: Annotated[float, typer.Option(help="How long the model computes on a batch.")] = 200,
    steps: Annotated[int, typer.Option(help="Batches to measure.")] = 50,
) -> None:
    """Measure how fast this machine prepares batches, and how long a training would wait for them.

    Examples:

      basic-lite bench data

      basic-lite bench data llava_v1_5_mix665k.json --images data/ --workers 4
    """
    from rich.console import Console

    from basic_lite.data.speed import measure_data

    facts = measure_data(
        annotations,
        images,
        image_size=image_size,
        tokens_per_image=tokens_per_image,
        batch_size=batch,
        workers=workers,
        step_seconds=step_ms / 1000,
        steps=steps,
    )
    console = Console(highlight=False)
    own, clock = facts.pictures_per_second
    console.print(f"{own:6.0f}    pictures a second of one core's own time ({clock:.0f} by the clock)")
    console.print(
        f"{facts.share:6.2%}  of the time spent waiting: {workers} workers, steps of {step_ms:.0f} ms"
    )
    console.print(f"{facts.first_batch_seconds:6.1f} s  to the first batch of {batch} rows")
