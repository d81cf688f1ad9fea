"""What is known by name: hub id, licence, size, template, and the card that each stage needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from basic_lite.training import settings as o

if TYPE_CHECKING:
    from basic_lite.memory.choice import Kind
    from basic_lite.memory.peak import Optimizer


def main(json: Annotated[bool, o.option("One JSON object per line.", "--json")] = False) -> None:
    """List the language models and vision towers that are known by name. Loads and downloads nothing.

    Examples:

      basic-lite models

      basic-lite models --json
    """
    import json as encoder

    from rich.table import Table

    from basic_lite.console import command_console
    from basic_lite.models import zoo

    models, towers = model_rows(), tower_rows()
    if json:
        for row in [*models, *towers]:
            print(encoder.dumps(row))
        return
    console = command_console(max(command_console().width, 150))  # a hub id that is cut off is of no use
    table = Table("--model", "hub id", "licence", box=None, pad_edge=False)
    for head in ("size", "template", "k of", "stage 1", "stage 2"):
        table.add_column(head, justify="left" if head == "template" else "right")
    for row in models:
        cards = (
            f"{row[f'{stage}_gb']:.1f} GB: {row[f'{stage}_gib'] or '-'} GiB"
            for stage in ("stage1", "stage2_lora")
        )
        table.add_row(
            row["model"],
            row["hub_id"],
            f"{row['licence']}{', gated' if row['gated'] else ''}",
            f"{row['parameters'] / 1e9:.2g} B",
            row["template"],
            f"{row['k']} of {row['layers']}",
            *cards,
        )
    console.print(table, "")
    table = Table("--tower", "hub id", "pixels", "tokens", box=None, pad_edge=False)
    for row in towers:
        table.add_row(row["tower"], row["hub_id"], str(row["image_size"]), str(row["tokens"]))
    console.print(table, "")
    console.print(
        "gated: accept the licence on the model's page and log in (hf auth login) before the first run.",
        "stage 1, stage 2: smallest card by prediction, CLIP-L-336, 4 bits, --lora (see basic-lite plan).",
        f"Any other decoder of type {', '.join(zoo.FAMILIES)} goes in as --llm ID_OR_FOLDER.",
        sep="\n",
    )


def model_rows() -> list[dict]:
    """Return one row per language model.

    `stage1_gb` is the least peak in GB (one row at a time, every layer recomputed), `stage1_gib` the memory
    of the smallest card that holds it, or `None`; the same of stage 2 with adapters.
    """
    from basic_lite.memory import choice, peak, sizes, speed
    from basic_lite.models import zoo

    _, clip = sizes.towers_named(None, None, every=False)[0]
    stages: tuple[tuple[str, Kind, tuple[Optimizer, ...]], ...] = (
        ("stage1", "stage1", ("adamw",)),
        ("stage2_lora", "stage2 --lora", ("adamw", "paged-adamw-8bit")),
    )
    rows = []
    for name, llm in zoo.LLMS.items():
        size = sizes.published_decoder(name)
        row = {
            "model": name,
            "hub_id": llm.hub_id,
            "licence": llm.licence,
            "gated": llm.gated,
            "parameters": size.parameters,
            "template": llm.template,
            "layers": size.depth,
            "k": size.depth // 2,  # half of the layers, the paper's choice
        }
        for stage, kind, optimizers in stages:
            least = sum(peak.peak(choice.least(choice.step_of(kind, size, clip), optimizers)).values())
            fitting = (card.gib for card in speed.CARDS if choice.budget_bytes(card.gib) >= least)
            row |= {f"{stage}_gb": round(least / 1e9, 2), f"{stage}_gib": next(fitting, None)}
        rows.append(row)
    return rows


def tower_rows() -> list[dict]:
    """Return one row per vision tower."""
    from basic_lite.models import zoo

    return [
        {"tower": name, "hub_id": tower.hub_id, "image_size": tower.image_size, "tokens": tower.tokens}
        for name, tower in zoo.TOWERS.items()
    ]
