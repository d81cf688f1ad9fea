"""Measure how long a training takes from the command to its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def start(
    model: Annotated[
        str, o.option("vicuna-7b, vicuna-13b, gemma-2b, phi3-mini or mistral-7b.", panel=o.MODEL)
    ] = "vicuna-7b",
    decoder_layers: Annotated[
        int | None,
        o.option("Fewer layers, for a small machine.", default="all", panel=o.MODEL, callback=o.within(1)),
    ] = None,
    folder: Annotated[
        Path | None, o.option("Where the models lie meanwhile.", default="the system's temporary folder")
    ] = None,
    out: Annotated[Path | None, o.option("JSON file for the results.", default="none")] = None,
) -> None:
    """Start stage 1 twice on random weights of real size: the first leaves a 4-bit copy, the second reads it.

    Examples:

      python -m bench.start_command                          (18 GB of disk)

      python -m bench.start_command --decoder-layers 4       (on a CPU)
    """
    from bench.start import measure_starts

    from basic_lite.bench.sds import markdown
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.memory.sizes import published_decoder
    from basic_lite.models import devices

    published_decoder(model)
    console = quiet_console()
    found = measure_starts(model, devices.choose_device(), decoder_layers, folder)
    console.print(markdown(found), highlight=False, soft_wrap=True)
    if out is not None:
        write_json(out, {"model": model, "decoder_layers": decoder_layers, "results": found})


if __name__ == "__main__":
    typer.run(start)
