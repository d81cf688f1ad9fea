"""What a run's visual embeddings mean to its LLM, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def tokens(
    run: Annotated[Path, typer.Argument(help="Run folder, of stage 1 or 2.")],
    images: Annotated[
        Path | None,
        o.option(
            help="Folder of pictures. A drawn world's folder stands for its held-out scenes.",
            default="the embedded world, for a run of the tiny model",
            panel="Data",
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        o.option(help="LLaVA JSON or JSONL that says what they show.", default="none", panel="Data"),
    ] = None,
    words: Annotated[
        Path | None,
        o.option(help="File of words that mean something, one per line.", default="none", panel="Data"),
    ] = None,
    limit: Annotated[int, o.option(help="Pictures, evenly drawn.", panel="Data", callback=o.within(1))] = 64,
    against: Annotated[
        Path | None, o.option(help="Another run of the same models, such as the plain twin.", default="none")
    ] = None,
    before: Annotated[
        bool,
        o.option("--before/--no-before", help="Also the run's beginning: fresh projector, LLM as it came."),
    ] = True,
    max_new_tokens: Annotated[
        int, o.option(help="Longest text of the replacement test; 0 generates none.", callback=o.within(0))
    ] = 48,
    views: Annotated[int, o.option(help="Pictures in the report.", callback=o.within(0))] = 6,
    seed: Annotated[
        int, o.option(help="Seed of the embedded world's scenes, without --images.", callback=o.a_seed)
    ] = 0,
    out: Annotated[
        Path | None, o.option(help="Folder of `tokens.html` and `tokens.json`.", default="RUN/analysis")
    ] = None,
) -> None:
    """Read visual embeddings as words: the nearest vocabulary token of every patch, at every layer.

    Shows how many matches mean something, and how deep layers drift to end tokens.

    Shows how far the states move from what the projector made.

    Shows how much of a caption is left when matched tokens stand in for the picture.

    Examples:

      basic-lite analyze tokens runs/stage2 --images pictures --captions captions.json

      basic-lite analyze tokens runs/basic/stage2 --against runs/plain/stage2 --images pictures

      basic-lite analyze tokens runs/stage2     (a run of the tiny model, in its own world)
    """
    from basic_lite import files
    from basic_lite.analysis import exhibits, report
    from basic_lite.analysis import tokens as analysis
    from basic_lite.analysis.exhibits import exhibit
    from basic_lite.console import progress_bar, quiet_console
    from basic_lite.data.world.world import is_embedded
    from basic_lite.models import devices

    console = quiet_console()
    chosen = exhibits.subjects(run, against, before)
    if images is None and not is_embedded(chosen[0].manifest["sources"]["llm"]):
        raise ValueError(
            "give the pictures to look at: --images DIR (only a run of the tiny model has its own)"
        )
    with files.held(out or run):
        shown = exhibit(images, captions, limit, seed)
        with progress_bar(console) as progress:
            total = len(chosen) * len(shown.exhibits)
            task = progress.add_task("pictures", total=total, note="")

            def advance(label: str) -> None:
                progress.update(task, advance=1, note=label)

            found = analysis.analyse(
                chosen,
                shown,
                devices.choose_device(),
                words=words,
                views=views,
                max_new_tokens=max_new_tokens,
                advance=advance,
            )
        console.print(report.depth_table(found), highlight=False)
        console.print(report.common_table(found), highlight=False)
        if any(one.tried for one in found.looks):
            console.print(report.replacement_table(found), highlight=False)
        folder = out or run / "analysis"
        files.write_json(folder / "tokens.json", found.as_dict())
        page = report.write(folder / "tokens.html", found)
        console.print(f"Report: {page}   figures: {folder / 'tokens.json'}", highlight=False)
