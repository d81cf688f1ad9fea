"""Take a finished run elsewhere: a standard LLaVA folder, an adapter, or GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.training import settings as o


def main(
    run: Annotated[Path, typer.Argument(help="Run folder; with --check or --push alone an exported one.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder to make; must not exist.", show_default=False)
    ] = None,
    to: Annotated[
        Literal["hf", "peft", "gguf"],
        o.option(
            "hf: transformers, vLLM, lmms-eval. peft: adapter and projector over a base. "
            "gguf: llama.cpp, Ollama."
        ),
    ] = "hf",
    base: Annotated[
        Literal["bf16", "dequantised"] | None,
        o.option(
            "Of a run on a 4-bit base: the original weights, or those that were trained on, rounded "
            "as they were.",
            default="required for such a run",
        ),
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None, o.option("Dtype of the weights.", default="the run's")
    ] = None,
    shard_gib: Annotated[float, o.option("Maximum size of a file in GiB.", callback=o.within(0.001))] = 2.0,
    device: Annotated[
        str | None, o.option("Where run and folder are compared.", default="a GPU where there is one")
    ] = None,
    old_gemma: Annotated[
        bool, o.option("For readers that scale Gemma's image features (transformers < 5.4).", "--old-gemma")
    ] = False,
    quantise: Annotated[
        str | None,
        o.option(
            "Format of GGUF: f16, bf16, f32, q8_0; q4_k_m and others by llama.cpp's llama-quantize.",
            default="f16",
        ),
    ] = None,
    class_token: Annotated[
        Literal["first", "last"] | None,
        o.option("GGUF: where its reader puts a CLIP tower's class token.", default="last"),
    ] = None,
    check: Annotated[
        bool, o.option("Open an exported folder again and report what it holds.", "--check")
    ] = False,
    push: Annotated[
        str | None, o.option("Send the folder to the Hugging Face hub, private.", default="not sent")
    ] = None,
    public: Annotated[bool, o.option("With --push: make it public.", "--public")] = False,
    yes: Annotated[bool, o.option("With --push: do not ask.", "--yes")] = False,
) -> None:
    """Write a run in another layout, read it back, and compare it with the run.

    The folder gets its name only if it answers as the run does: the same ids, logits within rounding.

    Examples:

      basic-lite export runs/stage2 my-llava --base bf16

      basic-lite export runs/stage2 my-adapter --to peft

      basic-lite export runs/stage2 my-gguf --to gguf --quantise q8_0

      basic-lite export --check my-llava

      basic-lite export my-llava --push me/my-llava
    """
    from basic_lite import files
    from basic_lite.console import quiet_console
    from basic_lite.export import adapter, inspection, publication
    from basic_lite.export import folder as exported
    from basic_lite.models import devices

    console = quiet_console()
    say = console.print
    device = device or devices.choose_device()
    if out is None and not check and push is None:
        raise ValueError(f"say where the export of {run} goes: basic-lite export {run} OUT")
    if public and push is None:
        raise ValueError("--public is for --push")
    if push is not None:
        publication.check_hub_id(push)
    folder = out or run
    if out is None:
        inspection.kind_of(folder)
    else:
        with files.held(out, beside=True):
            size = int(shard_gib * 2**30)
            plan = exported.plan(run, out, base, dtype, device, size, old_gemma, to, quantise, class_token)
            export = {"hf": exported.export_hf, "peft": adapter.export_peft}.get(to)
            if export is None:
                from basic_lite.export.gguf import export_gguf as export  # its package is an extra
            if base == "bf16" and plan.base is None:
                held = plan.quantise or str(plan.dtype).removeprefix("torch.")
                say(f"{run} holds no quantised base; its own weights are exported, in {held}")
            content = export(plan, lambda line: console.print(f"{line} ..."))
        for line in exported.summary(content):
            say(line)
        console.print(f"Written: {out}")
    if check:
        for line in inspection.inspect(folder, device):
            say(line)
    if push is not None:
        if not yes and not _agreed(publication.question(folder, push, public)):
            raise ValueError(f"nothing was sent: --push {push} needs a typed yes, or --yes")
        say(f"Sent: {publication.push(folder, push, public)}")


def _agreed(question: str) -> bool:
    """Ask on the terminal; no answer, or the end of the input, is a no."""
    try:
        return input(f"{question}: ").strip().lower() == "yes"
    except EOFError:
        return False
