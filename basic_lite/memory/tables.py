"""Predictions as tables: one stage of one model on several cards, or everything at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from basic_lite.memory.choice import (
    GLOBAL_BATCH,
    KINDS,
    Kind,
    Row,
    budget_bytes,
    candidates,
    fit,
    least,
    row_of,
    step_of,
)
from basic_lite.memory.inference import InferenceRow
from basic_lite.memory.peak import Optimizer, Step, activation_bytes
from basic_lite.memory.sizes import DECODERS, DecoderSize, TowerSize, published_decoder
from basic_lite.memory.speed import CARDS, card_of
from basic_lite.models import zoo


@dataclass(frozen=True)
class Options:
    """Options of a plan beside model, tower and card."""

    rank: int = zoo.RANK  # of stage 2's adapters
    text: int | None = None  # tokens of a row; `None` for the stage's
    basic: bool = True  # BASIC's terms are on
    train_tower: bool = False  # stage 2 trains the tower's own weights
    # Rank of adapters in the tower, in a stage 2 with adapters; `None` for none
    tower_lora: int | None = None

    def step(self, kind: Kind, decoder: DecoderSize, tower: TowerSize) -> Step:
        step = step_of(kind, decoder, tower)
        return replace(
            step,
            setup=replace(step.setup, rank=self.rank),
            text=step.text if self.text is None else self.text,
            basic=self.basic,
            tower_trained=self.train_tower and kind != "stage1",
            tower_rank=self.tower_lora or 0 if kind == "stage2 --lora" else 0,
        )


def plan_row(
    kind: Kind,
    model: tuple[str, DecoderSize],
    tower: tuple[str, TowerSize],
    gib: float,
    options: Options = Options(),
) -> tuple[Row, Step]:
    """Plan one stage on one card of `gib` GiB, for a decoder and a tower with their names.

    Returns the row, and its step (of the least memory, where nothing fits: no card or, with tiles, no row of
    the decoder's).
    """
    step = options.step(kind, model[1], tower[1])
    optimizers: tuple[Optimizer, ...] = (
        ("adamw", "paged-adamw-8bit") if kind == "stage2 --lora" else ("adamw",)
    )
    batch = GLOBAL_BATCH[kind]
    chosen = None
    if not too_many_tokens(model, tower[1]):
        chosen = fit(step, budget_bytes(gib), candidates(batch), gib, optimizers)
    smallest = least(step, optimizers)
    return row_of(kind, model[0], tower[0], gib, batch, chosen, smallest), chosen or smallest


def too_many_tokens(model: tuple[str, DecoderSize], tower: TowerSize) -> str:
    """Describe in one line that a picture's tiles take more tokens than the decoder reads; else nothing."""
    name, decoder = model
    if decoder.positions is None or tower.squares == 1 or tower.tokens < decoder.positions:
        return ""
    return (
        f"{name} was made for {decoder.positions:,} tokens, and a picture of --tiles {tower.tiles} takes up "
        f"to {tower.tokens:,}: it is refused; take fewer tiles, or --pool 2"
    )


def plan_rows(
    kind: Kind,
    models: Sequence[tuple[str, DecoderSize]],
    towers: Sequence[tuple[str, TowerSize]],
    cards: Sequence[float],
    options: Options,
) -> list[tuple[Row, Step]]:
    """Plan one stage of every model with every tower on every card; see `plan_row`."""
    return [
        plan_row(kind, model, tower, gib, options) for model in models for tower in towers for gib in cards
    ]


def fitting(kind: Kind, row: Row, tower: tuple[str, TowerSize], options: Options) -> list[str]:
    """Return the models that are known by name and do fit where a plan's does not."""
    others = [(name, published_decoder(name)) for name in DECODERS if name != row.model]
    plans = plan_rows(kind, others, [tower], [row.gpu_gib], options)
    return [other.model for other, _ in plans if other.micro_batch]


def remedy(row: Row, others: Sequence[str]) -> str:
    """Describe in one line what to do where nothing fits; `others` are models that do fit on that card."""
    start = (
        f"{row.stage} of {row.model} does not fit {row.gpu_gib:g} GiB: it needs {row.peak_gb:.1f} GB at least"
    )
    if row.stage == "stage2":
        return f"{start}; add --lora"
    larger = [card.gib for card in CARDS if budget_bytes(card.gib) >= row.peak_gb * 1e9]
    ways = [f"a card of {larger[0]:g} GiB"] if larger else []
    ways += [f"--model {' or '.join(others)}"] if others else []
    ways += ["--rank 16"] if row.stage == "stage2 --lora" else []
    return f"{start}; take {', or '.join(ways) or 'a smaller model'}"


def _table(title: str, cards: Sequence[float]) -> Table:
    """Return a table with a column per card, by its GiB."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for gib in cards:
        table.add_column(f"{gib:g} GiB", justify="right", no_wrap=True)
    return table


def stage_table(kind: Kind, rows: Sequence[tuple[Row, Step]]) -> Table:
    """Show one stage of one model: a column per card, a line per part, in GB."""
    table = _table(f"{kind}, GB", [row.gpu_gib for row, _ in rows])
    names = list(dict.fromkeys(name for row, _ in rows for name in row.parts))
    for name in names:
        table.add_row(name, *(f"{row.parts.get(name, 0):.2f}" for row, _ in rows))
    for title, share in (("  layers keeping all", 0), ("  layers recomputing all", 1)):
        figures = (activation_bytes(step, share * step.decoder.depth) for _, step in rows)
        table.add_row(title, *(f"{figure / 1e9:.2f}" for figure in figures), style="dim")
    table.add_row("total", *(f"{row.peak_gb:.2f}" for row, _ in rows), style="bold", end_section=True)
    fits = [row.micro_batch is not None for row, _ in rows]

    def line(title: str, values: Sequence[object]) -> None:
        shown = (str(value) if fit else "-" for value, fit in zip(values, fits, strict=True))
        table.add_row(title, *shown)

    line("micro-batch x accumulation", [f"{row.micro_batch} x {row.accumulation}" for row, _ in rows])
    line("layers that recompute", [f"{row.recompute_layers} of {step.decoder.depth}" for row, step in rows])
    line("rows per chunk", [row.rows_per_chunk for row, _ in rows])
    tower = rows[0][1].tower
    if tower.squares > 1 or tower.pool > 1:  # of the picture that takes most
        line("squares of a picture, at most", [tower.squares for _ in rows])
        refused = too_many_tokens(("", rows[0][1].decoder), tower) and ": too many"
        table.add_row("its tokens", *[f"{tower.tokens:,}{refused}" for _ in rows])
    if kind == "stage2 --lora":
        line("optimizer", [step.optimizer for _, step in rows])
    line("seconds per sample", [f"{row.seconds_per_sample or 0:.3f}" for row, _ in rows])
    line("  on a card like", [card_of(row.gpu_gib).name for row, _ in rows])
    return table


def overview(kind: Kind, rows: Sequence[Row]) -> Table:
    """Show one stage of every model and tower: micro-batch, recomputed layers and seconds per sample."""
    table = _table(kind, list(dict.fromkeys(row.gpu_gib for row in rows)))
    lines: dict[str, list[str]] = {}
    for row in rows:
        cell = f"{row.micro_batch}/{row.recompute_layers} {row.seconds_per_sample or 0:.2f} s"
        cell = cell if row.micro_batch else "-"
        lines.setdefault(f"{row.model}, {row.tower.split('-')[0]}", []).append(cell)
    for name, cells in lines.items():
        table.add_row(name, *cells)
    return table


def inference_table(rows: Sequence[InferenceRow]) -> Table:
    """Show what a model's uses need: a column per card, in GB, and how many prompts go at once."""
    table = _table("evaluate, chat, export, GB", list(dict.fromkeys(row.gpu_gib for row in rows)))
    for use in dict.fromkeys(row.use for row in rows):
        ours = [row for row in rows if row.use == use]
        first = ours[0]
        passing = ("activations", "keys and values", "context and allocator")
        weights = (sum(size for name, size in row.parts.items() if name not in passing) for row in ours)
        table.add_row("weights", *(f"{size:.2f}" for size in weights))
        for name in passing:
            table.add_row(name, *(f"{row.parts.get(name, 0):.2f}" for row in ours))
        title = f"{use} in {first.bits} bits"
        table.add_row(title, *(f"{row.peak_gb:.2f}" if row.batch else "-" for row in ours), style="bold")
        counts = (str(row.batch or "-") for row in ours)
        tokens = f"{first.prompt_tokens:,} + {first.new_tokens:,} tokens"
        table.add_row(f"  prompts of {tokens} at once", *counts, end_section=first.host_gb is None)
        if first.host_gb is not None:
            table.add_row("  memory of the machine", *(f"{row.host_gb:.2f}" for row in ours))
    return table


def kinds_of(stage: int | None) -> list[Kind]:
    return [kind for kind in KINDS if stage is None or kind.startswith(f"stage{stage}")]
