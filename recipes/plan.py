"""Which card is needed: memory part by part, micro-batch and time, before anything is loaded."""

from __future__ import annotations

from typing import Annotated

from basic_lite.recipes import options as o


def main(
    model: Annotated[
        str | None,
        o.option(help="A model by name.", default="all of them, at a glance", panel=o.MODEL),
    ] = None,
    llm: o.Llm = None,
    tower: Annotated[
        str | None,
        o.option(help="By name, or hub id or folder.", default="clip-l-336; all at a glance", panel=o.MODEL),
    ] = None,
    image_size: o.ImageSize = None,
    gpu: Annotated[
        float | None,
        o.option(help="Memory of the card in GiB.", default="12 16 24 32 48 80", callback=o.within(1)),
    ] = None,
    stage: Annotated[int | None, o.option(help="1 or 2.", default="both", callback=o.within(1, 2))] = None,
    text: Annotated[
        int | None,
        o.option(help="Text tokens per row.", default="64 in stage 1, 824 in stage 2", callback=o.within(1)),
    ] = None,
    rank: Annotated[
        int, o.option(help="Rank of stage 2's adapters.", panel=o.MODEL, callback=o.within(1))
    ] = 128,
    basic: o.Basic = True,
    json: Annotated[bool, o.option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Predict memory and time of each stage, and what fits a card. Loads and downloads nothing.

    Examples:

      basic-lite plan

      basic-lite plan --model vicuna-7b --gpu 24

      basic-lite plan --llm ./my-llama --stage 1 --json
    """
    import json as encoder
    from dataclasses import replace

    from rich.console import Console

    from basic_lite.memory import choice, sizes, speed, tables

    models = sizes.decoders_named(model, llm)
    towers = sizes.towers_named(tower, image_size, every=model is None and llm is None)
    cards = [gpu] if gpu is not None else [card.gib for card in speed.CARDS]
    console = Console()
    missing: dict[str, str] = {}
    for kind in tables.kinds_of(stage):
        changes = {"basic": basic, "held": replace(choice.KINDS[kind], rank=rank)}
        changes |= {"text": text} if text is not None else {}
        planned = [
            tables.plan_row(kind, one, eye, gib, **changes)
            for one in models
            for eye in towers
            for gib in cards
        ]
        if json:
            for row, _ in planned:
                print(encoder.dumps(row.json()))
            continue
        if len(models) > 1:
            console.print(tables.overview(kind, [row for row, _ in planned]), "")
        else:
            for eye, _ in towers:
                console.print(tables.stage_table(kind, [p for p in planned if p[0].tower == eye]), "")
        for row, _ in planned:
            if row.micro_batch is None and (gpu is not None or row.gpu_gib == cards[-1]):
                named = [
                    (name, sizes.published_decoder(name)) for name in sizes.DECODERS if name != row.model
                ]
                fitting = [
                    one[0]
                    for one in named
                    if tables.plan_row(kind, one, towers[0], row.gpu_gib, **changes)[0].micro_batch
                ]
                missing.setdefault(f"{kind} {row.model} {row.gpu_gib}", tables.remedy(row, fitting))
    if not json:
        if len(models) > 1:
            console.print("micro-batch/layers that recompute, seconds per sample; - where nothing fits")
        for line in missing.values():
            console.print(line, highlight=False, soft_wrap=True)
        console.print(
            "Predicted, not yet measured on a GPU; seconds assume half of the card's peak arithmetic.",
            highlight=False,
            soft_wrap=True,
        )
