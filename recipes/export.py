"""Take a finished run elsewhere: a standard LLaVA folder, an adapter, or the original LLaVA's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.training import settings as o


def main(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    to: Annotated[
        Literal["hf", "peft", "llava"],
        o.option(
            help="hf: transformers, vLLM, SGLang, lmms-eval. peft: adapter and projector over a base. "
            "llava: the original LLaVA's files."
        ),
    ] = "hf",
    base: Annotated[
        Literal["bf16", "dequantised"] | None,
        o.option(
            help="Of a run on a 4-bit base: the original weights, or those that were trained on, rounded "
            "as they were.",
            default="must be said",
        ),
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None, o.option(help="Dtype of the weights.", default="the run's")
    ] = None,
    shard_gib: Annotated[float, o.option(help="Most GiB of one file.", callback=o.within(0.001))] = 2.0,
    device: Annotated[
        str | None, o.option(help="Where run and folder are compared.", default="a GPU where there is one")
    ] = None,
    old_gemma: Annotated[
        bool,
        o.option("--old-gemma", help="For readers that scale Gemma's image features (before 5.4)."),
    ] = False,
) -> None:
    """Write a run in another layout, read it back, and compare it with the run.

    The folder gets its name only if it says what the run says: the same ids, logits within rounding.

    Examples:

      basic-lite export runs/stage2 my-llava --base bf16

      basic-lite export runs/stage2 my-adapter --to peft

      basic-lite export runs/stage2 my-original --to llava --base dequantised
    """
    from basic_lite import files
    from basic_lite.console import quiet_console
    from basic_lite.export import adapter, folder, original
    from basic_lite.models import devices

    console = quiet_console()
    device = device or devices.choose_device()
    make = {"hf": folder.export_hf, "peft": adapter.export_peft, "llava": original.export_llava}[to]
    with files.held(out, beside=True):
        plan, manifest = folder.plan(run, out, base, dtype, device, int(shard_gib * 2**30), old_gemma, to)
        if base == "bf16" and plan.base is None:
            dtype = str(plan.dtype).removeprefix("torch.")
            line = f"{run} holds no quantised base; its own weights are exported, in {dtype}"
            console.print(line, highlight=False, soft_wrap=True)
        content = make(plan, manifest, lambda line: console.print(f"{line} ...", highlight=False))
    for line in folder.summary(content):
        console.print(line, highlight=False)
    console.print(f"Written: {out}")
