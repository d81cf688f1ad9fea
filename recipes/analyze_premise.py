"""Whether an LLM's shallow layers can teach, from text alone: `basic-lite analyze premise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from basic_lite.training import settings as o


@o.command
def main(
    model: Annotated[
        str,
        o.option(help="vicuna-7b, vicuna-13b, gemma-2b, phi3-mini, mistral-7b, or tiny.", panel=o.MODEL),
    ] = "vicuna-7b",
    llm: o.LlmOption = None,
    bits: o.BitsOption = None,
    precision: o.PrecisionOption = "auto",
    random_weights: Annotated[
        bool,
        o.option("--random-weights", help="The same configuration with random weights.", panel=o.MODEL),
    ] = False,
    text: Annotated[
        Path | None,
        o.option(
            help="Captions as LLaVA JSON or any training data, or plain text.",
            default="shipped",
            panel="Data",
        ),
    ] = None,
    tokens: Annotated[
        int, o.option(help="Held-out tokens to read.", panel="Data", callback=o.within(64))
    ] = 512,
    layers: o.LayersOption = None,
    weighting: o.WeightingOption = "quadratic",
    out: Annotated[
        Path | None, o.option(help="JSON file for the figures; a page with a plot beside it.", default="none")
    ] = None,
) -> None:
    """See on text whether layers 1..k still speak of their tokens, and which --target to train with.

    No picture, no vision tower and no training are involved.

    Give the captions that you will train on as --text.

    Maps for --target translated are tried only where there are four tokens for each of their rows.

    Examples:

      basic-lite analyze premise --model gemma-2b --text blip_laion_cc_sbu_558k.json

      basic-lite analyze premise --llm ./my-llm --bits 16 --text captions.json --out premise.json

      basic-lite analyze premise --model tiny --random-weights
    """
    from basic_lite.analysis import premise as premise_page
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.method import premise
    from basic_lite.models import devices, llava, zoo

    console = quiet_console()
    device = devices.choose_device()
    sources = llava.Sources.named(
        model,
        llm=llm,
        bits=zoo.bits_of(model, llm) if bits is None else bits,
        dtype=devices.choose_dtype(precision, device),
    )
    spoken = premise_page.spoken(text, sources.llm)
    causal, tokenizer = premise_page.load(sources, device, random_weights)
    found = premise.examine(
        causal.model,
        causal.lm_head,
        tokenizer,
        spoken,
        layers=layers,
        weighting=weighting,
        read=tokens,
        progress=lambda line: console.print(f"[dim]{line}[/dim]", highlight=False),
    )
    console.print(premise_page.table(found))
    console.print(premise_page.summary(found), highlight=False)
    console.print(found.verdict.words, style="bold", highlight=False)
    if found.verdict.target is not None:
        # Speaking of words is not yet teaching: in the embedded world the raw target trains better.
        advice = f"Worth a try: --target {found.verdict.target} --layers {found.verdict.layers}"
        console.print(f"{advice}; basic-lite ablate target compares it with others", highlight=False)
    if out is not None:
        named = f"{llm or model}{' with random weights' if random_weights else ''}"
        settings = {
            "model": named,
            "bits": 16 if random_weights else sources.bits,
            "text": str(text or "shipped"),
            "weighting": weighting,
        }
        write_json(out, settings | found.json())
        premise_page.write_page(out.with_suffix(".html"), found, named)
        console.print(f"{out} and {out.with_suffix('.html')}", highlight=False)
