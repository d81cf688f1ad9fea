"""Which card is needed: memory part by part, micro-batch and time, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from basic_lite.training import settings as o

if TYPE_CHECKING:
    from rich.table import Table


def main(
    model: Annotated[
        str | None, o.option("A model by name.", default="all of them, at a glance", panel=o.MODEL)
    ] = None,
    llm: o.LlmOption = None,
    tower: Annotated[
        str | None,
        o.option("By name, or hub id or folder.", default="clip-l-336; all at a glance", panel=o.MODEL),
    ] = None,
    image_size: o.ImageSizeOption = None,
    tiles: o.TilesOption = 1,
    pool: o.PoolOption = 1,
    gpu: Annotated[
        float | None,
        o.option("Memory of the card in GiB.", default="12 16 24 32 48 80", callback=o.within(1)),
    ] = None,
    stage: Annotated[int | None, o.option("1 or 2.", default="both", callback=o.within(1, 2))] = None,
    text: Annotated[
        int | None,
        o.option("Text tokens per row.", default="64 in stage 1, 824 in stage 2", callback=o.within(1)),
    ] = None,
    rank: o.RankOption = o.zoo.RANK,
    basic: o.BasicOption = True,
    train_tower: o.TrainTowerOption = False,
    tower_lora: o.TowerLoraOption = None,
    json: Annotated[bool, o.option("One JSON object per line.", "--json")] = False,
) -> None:
    """Predict memory and time of each stage, and what fits a card. Loads and downloads nothing.

    Of one model also what evaluation, chat and export need, and how many prompts a card answers at once; with
    --tiles or --pool also what 1, 4 and 9 tiles cost.

    Examples:

      basic-lite plan

      basic-lite plan --model vicuna-7b --gpu 24

      basic-lite plan --llm ./my-llama --stage 1 --json

      basic-lite plan --model vicuna-7b --tiles 4

      basic-lite plan --model vicuna-7b --gpu 24 --train-tower
    """
    import json as encoder
    from dataclasses import asdict

    from basic_lite.console import command_console
    from basic_lite.memory import choice, inference, resolution, sizes, speed, tables

    models = sizes.decoders_named(model, llm)
    towers = sizes.towers_named(tower, image_size, model is None and llm is None, tiles, pool)
    cards = [gpu] if gpu is not None else [card.gib for card in speed.CARDS]
    o.Tower(train_tower, tower_lora)  # refuses both
    options = tables.Options(rank, text, basic, train_tower, tower_lora)
    console = command_console(max(command_console().width, 130))  # a figure that is cut off is of no use
    remedies = []

    def show(rows: list, *shown: Table) -> None:
        if json:
            print(*(encoder.dumps(asdict(row)) for row in rows), sep="\n")
            return
        for table in shown:
            console.print(table, "")

    for kind in tables.kinds_of(stage):
        plans = tables.plan_rows(kind, models, towers, cards, options)
        rows = [row for row, _ in plans]
        if len(models) > 1:
            show(rows, tables.overview(kind, rows))
        else:
            of_tower = ([p for p in plans if p[0].tower == name] for name, _ in towers)
            show(rows, *(tables.stage_table(kind, some) for some in of_tower))
        too_large: dict[str, choice.Row] = {}
        for row, step in plans:
            refused = tables.too_many_tokens((row.model, step.decoder), step.tower)
            if not refused and row.micro_batch is None and row.gpu_gib == cards[-1]:
                too_large.setdefault(row.model, row)
        for row in [] if json else too_large.values():
            remedies.append(tables.remedy(row, tables.fitting(kind, row, towers[0], options)))
    for named in towers if len(models) == 1 and stage is None else []:
        uses = [
            inference.row_of(use, models[0], named, gib, rank) for use in inference.SETTINGS for gib in cards
        ]
        show(uses, tables.inference_table(uses))
    for kind in tables.kinds_of(stage) if len(models) == 1 and (tiles > 1 or pool > 1) else []:
        for named in towers:
            ways = resolution.resolutions(kind, models[0], named, options)
            show(ways, resolution.resolution_table(ways))
    if json:
        return
    if len(models) > 1:
        console.print("micro-batch/layers that recompute, seconds per sample; - where nothing fits")
    refused = (tables.too_many_tokens(named, size) for named in models for _, size in towers)
    basis = "Predicted, not measured on this card; seconds assume half of the card's peak arithmetic."
    hint = "--tiles 4 shows what a picture in tiles costs, for text and small things."
    hints = [hint if tiles == pool == 1 else resolution.LEGEND] if len(models) == 1 else []
    console.print(*filter(None, refused), *remedies, *hints, basis, sep="\n")
