"""Look at training data before training: `basic-lite data check` and `basic-lite data convert`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import typer

from basic_lite.data.rows import TOKENS_PER_IMAGE
from basic_lite.training import settings as o

app = typer.Typer(
    help="Look at training data before training.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.command()
def check(
    annotations: Annotated[
        list[str],
        typer.Argument(
            help=".json or .jsonl, .gz too, or a folder of them; WebDataset .tar; Arrow, Parquet; a hub id. "
            "Several as for --data of a stage; weights change nothing here.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder, zip or tar of the images; one for all, or one for each in the same order. "
            "Without it only texts are checked."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write all findings here, bad.jsonl beside it.")] = None,
    pictures: Annotated[
        Literal["decode", "header", "present"],
        typer.Option(
            metavar="HOW",
            help="What to check of a picture: decode all of it, read its header, or see that it is present.",
        ),
    ] = "decode",
    max_length: Annotated[
        int,
        typer.Option(
            help="Maximum tokens of a row, with its images but without those of --tiles.",
            callback=o.within(1),
        ),
    ] = o.Data.max_length,
    tokens_per_image: Annotated[
        int, typer.Option(help="Tokens of one image: 576 for CLIP-336, 729 for SigLIP.", callback=o.within(1))
    ] = TOKENS_PER_IMAGE,
    tiles: o.TilesOption = 1,
    pool: o.PoolOption = 1,
    tower: Annotated[
        str, typer.Option(help="With --tiles, --pool or --image-size: name, folder or hub id.")
    ] = "clip-l-336",
    image_size: o.ImageSizeOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "--llm",
            "--model",
            help="Count tokens with this LLM's tokenizer: name, folder or hub id.",
            show_default="estimate them",
        ),
    ] = None,
    template: o.TemplateOption = None,
    stage: Annotated[
        int, typer.Option(help="1: every row must be one image and its caption.", callback=o.within(1, 2))
    ] = 2,
    background: Annotated[
        str, typer.Option(help="Colour behind transparent pictures.", callback=o.a_colour, metavar="COLOUR")
    ] = "white",
    follow_links: o.FollowLinksOption = False,
    min_rating: o.MinRatingOption = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes.", show_default="one per core", callback=o.within(1))
    ] = None,
) -> None:
    """Find every row that cannot be trained on, before training meets it.

    Exit code 0: nothing wrong, 1: findings, 2: the data cannot be read.

    After Ctrl-C the same command goes on where it stopped.

    Training uses the index and the results that it leaves.

    Examples:

      basic-lite data check blip_laion_cc_sbu_558k.json --images images.zip --stage 1

      basic-lite data check llava_v1_5_mix665k.json --images data/ --report findings.json

      basic-lite data check a.json b.json --images a/ --images b/

      basic-lite data check mix.jsonl --images data/ --pictures present --tokenizer vicuna-7b --workers 16
    """
    from rich.console import Console

    from basic_lite.console import command_console
    from basic_lite.data.checks import check_data
    from basic_lite.data.findings import faulty_rows, findings_table, progress_bars, write_report
    from basic_lite.data.mix import open_sources, parse_sources
    from basic_lite.data.tiles import Tiling, picture_sizes
    from basic_lite.data.workers import cores
    from basic_lite.files import one_line
    from basic_lite.memory.sizes import towers_named
    from basic_lite.models import zoo
    from basic_lite.models.generate import counting_encoder
    from basic_lite.models.llava import longest_with

    started = time.monotonic()
    template = template or ("plain" if stage == 1 else None)
    processes, tiling = cores() if workers is None else workers, None
    try:
        if tiles > 1 or pool > 1 or image_size is not None:
            ((_, size),) = towers_named(tower, image_size, False, 1, pool)
            tokens_per_image = size.tokens
        if tiles > 1:
            tiling = Tiling.up_to(tiles, size.image_size, size.patch_size * pool)
            # Of an LLM by name the context is known, and limits a row as in training.
            decoder = SimpleNamespace(**zoo.DECODER_CONFIGS.get(tokenizer or "", {}))
            max_length = longest_with(tiling, max_length, decoder)
        limits = {"max_length": max_length, "tokens_per_image": tokens_per_image}
        encoder = counting_encoder(tokenizer, template, **limits) if tokenizer else None
        sources = parse_sources(annotations, images)
        with progress_bars(Console(stderr=True)) as progress:
            rows = open_sources(
                sources,
                follow_links=follow_links,
                min_rating=min_rating,
                background=background,
                workers=processes,
                progress=progress,
            )
            if tiling is not None:
                if not images and not rows.stored:
                    raise ValueError("--tiles go by the pictures' sizes: add --images FOLDER")
                for part in rows.parts:
                    part.sizes = picture_sizes(part, processes)
            findings = check_data(
                rows,
                pictures=pictures if images or rows.stored else None,
                encoder=encoder,
                tiling=tiling,
                stage=stage,
                workers=processes,
                progress=progress,
                **limits,
            )
    except ValueError as error:
        if report is not None:
            write_report(report, 0, [], error=one_line(error, 1000))
        raise
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    seconds = round(time.monotonic() - started, 1)
    if report is not None:
        facts = {"annotations": ", ".join(annotations), "images": ", ".join(images or []) or None}
        write_report(report, len(rows), findings, **facts, sha256=rows.sha256, seconds=seconds)
    console = command_console()
    if findings:
        console.print(findings_table(findings))
    faulty = faulty_rows(findings)
    console.print(f"{len(rows):,} rows in {seconds} s, {faulty:,} with faults")
    if not (images or rows.stored) and rows.has_image.any():
        console.print("Pictures were not checked: give --images FOLDER (training looks beside the file).")
    raise typer.Exit(1 if faulty else 0)


@app.command()
def convert(
    annotations: Annotated[Path, typer.Argument(help="As for check.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    images: Annotated[
        Path | None, typer.Option(help="Folder, zip or tar of the images.", show_default=False)
    ] = None,
    follow_links: o.FollowLinksOption = False,
    min_rating: o.MinRatingOption = None,
) -> None:
    """Write rows of any layout as LLaVA's: OUT/rows.jsonl, and OUT/images/ where rows carry their pictures.

    Exit code 0: all rows, 1: some cannot be trained on and are left out, 2: the data cannot be read.

    Examples:

      basic-lite data convert shards/ llava/

      basic-lite data convert chats.json.gz llava/ --images pictures.zip
    """
    from collections import Counter
    from functools import partial

    from rich.console import Console

    from basic_lite.data.conversion import convert as write
    from basic_lite.data.findings import progress_bars
    from basic_lite.data.readers import open_rows

    with progress_bars(Console(stderr=True)) as progress:
        given = {"follow_links": follow_links, "min_rating": min_rating, "progress": progress}
        rows = open_rows(annotations, images, **given)
        left_out = write(rows, out, partial(progress, "rows"))
    codes = Counter(finding.code for finding in left_out)
    reasons = ", ".join(f"{count:,} {code}" for code, count in codes.most_common())
    why = f", {len(left_out):,} left out ({reasons})" if left_out else ""
    print(f"{len(rows) - len(left_out):,} rows in {out / 'rows.jsonl'}{why}")
    raise typer.Exit(1 if left_out else 0)
