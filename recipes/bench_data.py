"""Measure how this machine prepares data: pictures per second, waiting, memory of every process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o

CLIP = o.zoo.TOWERS["clip-l-336"]


def main(
    annotations: Annotated[
        Path | None,
        typer.Argument(help="Data to measure with. Left out: photos made for it.", show_default=False),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder, zip or tar of the images.")] = None,
    image_size: Annotated[
        int, typer.Option(help="Side of the tower's input in pixels.", callback=o.within(1))
    ] = CLIP.image_size,
    tokens_per_image: Annotated[
        int, typer.Option(help="Tokens of one image.", callback=o.within(1))
    ] = CLIP.tokens,
    batch: Annotated[int, typer.Option(help="Rows per batch.", callback=o.within(1))] = 16,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.", callback=o.within(0))] = 2,
    step_ms: Annotated[
        float, o.option("How long the model computes on a batch.", callback=o.within(0))
    ] = 200,
    steps: Annotated[int, typer.Option(help="Batches to measure.", callback=o.within(1))] = 50,
    tokenizer: Annotated[
        str | None,
        o.option("Tokenizer, name or folder, whose lengths the padding is for.", default="letters"),
    ] = None,
) -> None:
    """Measure how fast this machine prepares batches, how long a training would wait, and what is padding.

    Without data of your own the padding is that of rows of LLaVA-665k's shape.

    Examples:

      basic-lite bench data

      basic-lite bench data llava_v1_5_mix665k.json --images data/ --workers 4

      basic-lite bench data --tokenizer lmsys/vicuna-7b-v1.5
    """
    from basic_lite.bench.data import measure_data
    from basic_lite.bench.padding import measure_padding
    from basic_lite.console import quiet_console
    from basic_lite.data.conversation import choose_template
    from basic_lite.models.repository import read_tokenizer

    console = quiet_console()
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
    reader = None if tokenizer is None else read_tokenizer(tokenizer)
    template = "vicuna_v1" if reader is None else choose_template(reader)
    padding = measure_padding(
        annotations, tokenizer=reader, template=template, tokens_per_image=tokens_per_image
    )
    for line in [*facts.lines(), *padding.lines()]:
        console.print(line)
