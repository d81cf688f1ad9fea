"""Measure every goal for speed and memory, and say which are met."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


@o.command
def goals(
    model: Annotated[
        list[str] | None, o.option("Only this model; can be repeated.", default="all five", panel=o.MODEL)
    ] = None,
    cap: Annotated[
        float,
        o.option("Emulate a card of so many GiB, on a GPU.", panel=o.MEMORY, callback=o.within(above=0)),
    ] = 24.0,
    decoder_layers: Annotated[
        int | None,
        o.option("Fewer layers, to try the command.", default="all", panel=o.MODEL, callback=o.within(1)),
    ] = None,
    bits: o.BitsOption = 4,
    micro_batch: Annotated[int, o.option("Rows per forward pass in stage 1.", callback=o.within(1))] = 8,
    text: Annotated[
        int | None, o.option("Text tokens per row.", default="64 and 824", callback=o.within(1))
    ] = None,
    rank: o.RankOption = o.zoo.RANK,
    patches: Annotated[int, o.option("Rows of L_sds.", callback=o.within(1))] = 4608,
    steps: Annotated[int, o.option("Steps to measure in every turn.", callback=o.within(1))] = 10,
    rounds: Annotated[int, o.option("Turns of every variant.", callback=o.within(1))] = 3,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Also a second start of a 7B: 18 GB of disk.")
    ] = True,
    out: Annotated[Path | None, o.option("JSON file for the results.", default="none")] = None,
) -> None:
    """Measure every goal for speed and memory: goal, measured, met. Random weights; nothing is fetched.

    Goals are judged at the real sizes on a GPU; the one for a CPU everywhere. A part that fails is one row,
    and the others go on.

    Examples:

      python -m bench.goals_command --out goals.json

      python -m bench.goals_command --model gemma-2b --decoder-layers 2 --micro-batch 1 --steps 1   (CPU)
    """
    from bench.goals import Size, machine, markdown
    from bench.runs import cpu_rows, every_goal, or_why
    from bench.start import start_rows

    from basic_lite.bench.synthetic import DECODERS
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.memory.sizes import published_decoder
    from basic_lite.models import devices

    console = quiet_console()
    device = devices.choose_device()
    for name in model or ():
        published_decoder(name)
    size = Size(
        device=device,
        dtype=devices.choose_dtype("auto", device),
        cap_gib=cap if device == "cuda" else None,
        layers=decoder_layers,
        bits=bits,
        micro_batch=micro_batch,
        text=(64, 824) if text is None else (text, text),
        rank=rank,
        patches=patches,
        steps=steps,
        rounds=rounds,
    )
    rows, about = [], machine(device)

    def write() -> None:
        if out is not None:
            write_json(out, about | {"rows": [row.json() for row in rows]})

    parts = [or_why("L_sds on a CPU", cpu_rows)]
    if start:
        parts.append(or_why("starts of a 7B", partial(start_rows, device, decoder_layers)))
    parts.append(every_goal(size, tuple(model or DECODERS), console.print))
    try:
        for row in chain.from_iterable(parts):
            rows.append(row)
            write()  # what is there stays there whatever comes next
    finally:
        for name, value in about.items():
            console.print(f"{name}: {value}", highlight=False, soft_wrap=True)
        console.print(markdown(rows), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(goals)
