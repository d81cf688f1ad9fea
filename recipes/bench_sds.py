"""Measure the semantic distribution loss alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from basic_lite.training import settings as o


@o.command
def sds(
    rows: Annotated[int, o.option("Patches, N.", callback=o.within(1))] = 4608,
    width: Annotated[int, o.option("Width of the decoder, D.", callback=o.within(1))] = 4096,
    vocabulary: Annotated[int, o.option("Size of the vocabulary, V.", callback=o.within(2))] = 32_000,
    precision: o.PrecisionOption = "auto",
    repeats: Annotated[int, o.option("Rounds, after one to warm up.", callback=o.within(1))] = 10,
    cap: Annotated[
        float | None,
        o.option("Emulate a card with this many GiB.", default="the card's", callback=o.within(above=0)),
    ] = None,
    out: Annotated[Path | None, o.option("JSON file for the results.", default="none")] = None,
) -> None:
    """Time L_sds, its three matrix products, Liger's and TRL's divergences and the naive code, in turn.

    Examples:

      basic-lite bench sds                                          (Vicuna-7B, eight pictures)

      basic-lite bench sds --width 2048 --vocabulary 256000         (Gemma-2B; --rows 576: in tiles)

      basic-lite bench sds --rows 288 --width 1024 --repeats 3      (on a CPU)
    """
    from basic_lite.bench.sds import markdown, measure_sds
    from basic_lite.bench.step import emulate_card
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.models import devices

    console = quiet_console()
    device = devices.choose_device()
    emulate_card(cap, device)
    dtype = devices.choose_dtype(precision, device)
    results = measure_sds(rows, width, vocabulary, device, dtype, repeats)
    console.print(markdown(results))
    if out is not None:
        write_json(out, {"rows": rows, "width": width, "vocabulary": vocabulary, "results": results})
