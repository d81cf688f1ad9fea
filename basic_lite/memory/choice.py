"""Choose what a stage can choose - micro-batch, recomputed layers, chunk, optimizer - for a card's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from basic_lite.memory.activations import DecoderSetup, is_streamlined
from basic_lite.memory.peak import Optimizer, Step, dequantised_bytes, peak
from basic_lite.memory.sizes import DecoderSize, TowerSize
from basic_lite.memory.speed import card_of, seconds_per_sample
from basic_lite.method.chunks import LEAST_BYTES
from basic_lite.models import zoo

Kind = Literal["stage1", "stage2 --lora", "stage2"]

KINDS: dict[Kind, DecoderSetup] = {
    "stage1": DecoderSetup(bits=4, training="projector", fused=True),
    "stage2 --lora": DecoderSetup(bits=4, training="adapters", fused=True),
    "stage2": DecoderSetup(bits=16, training="decoder", fused=True),
}
"""The stages as they are typed, with their defaults on a GPU."""

GLOBAL_BATCH: dict[Kind, int] = {kind: zoo.LLAVA[1 if kind == "stage1" else 2].global_batch for kind in KINDS}
TEXT: dict[Kind, int] = {"stage1": 64, "stage2 --lora": 824, "stage2": 824}
"""Text tokens of a row that are planned for: a caption, and a long conversation of LLaVA-1.5's mix."""

RESERVED_GIB: float = 0.5
"""Memory of a card that its driver and a display keep."""

SPARE: float = 0.05
"""Share of the budget that is not filled with dequantised layers."""

LARGEST_MICRO_BATCH: int = 64
"""More rows at once gain nothing by the estimate."""

WORKSPACES: tuple[int, ...] = (256 << 20, 128 << 20, LEAST_BYTES)
"""Bytes for `L_sds` to try where what the rule takes does not fit."""


@dataclass(frozen=True)
class Row:
    """A stage on a card; `--json` gives exactly these."""

    stage: str  # as it is typed
    model: str  # name or folder of the decoder
    tower: str  # name or folder of the tower
    gpu_gib: float  # memory of the card
    micro_batch: int | None  # rows per forward pass; `None` if nothing fits
    accumulation: int | None  # forward passes per optimizer step
    recompute_layers: int | None  # decoder layers, the first ones, that run again in backward
    rows_per_chunk: int | None  # patches per pass over the vocabulary
    dequantised_layers: int | None  # decoder layers whose 4-bit weights are also held dequantised
    # Predicted, in 1e9 bytes, everything that the card must hold; where nothing fits, the least
    peak_gb: float
    parts: dict[str, float]  # the same by part, in 1e9 bytes
    seconds_per_sample: float | None  # estimated; `None` if nothing fits


def budget_bytes(gib: float) -> float:
    """Return the bytes that a process may use on a card of `gib` GiB."""
    return (gib - RESERVED_GIB) * 2**30


def step_of(kind: Kind, decoder: DecoderSize, tower: TowerSize) -> Step:
    return Step(decoder, tower, setup=KINDS[kind], text=TEXT[kind])


def candidates(global_batch: int) -> list[int]:
    """Return the micro-batches that divide the global batch, so that it stays what it is."""
    sizes = range(1, min(global_batch, LARGEST_MICRO_BATCH) + 1)
    return [size for size in sizes if global_batch % size == 0]


def fit(
    step: Step,
    budget: float,
    micro_batches: Sequence[int],
    gib: float,
    optimizers: Sequence[Optimizer] = ("adamw",),
    rows: int | None = None,
) -> Step | None:
    """Return the fastest step by the estimate that fits `budget` bytes, or `None`.

    A later optimizer is taken only where no step fits with an earlier one: 8-bit moments are not the same
    training. For each micro-batch as few layers recompute as fit, and the chunk of `L_sds` is the rule's, or
    smaller where that alone makes it fit. `gib` stands for the card's speed; `rows` are those of an optimizer
    step, where a micro-batch may be all of them, `None` to leave it to the step.
    """
    card = card_of(gib)
    for optimizer in optimizers:
        fitting: list[Step] = []
        for size in micro_batches:
            accumulates = step.accumulates if rows is None else size < rows
            tried = replace(step, optimizer=optimizer, micro_batch=size, accumulates=accumulates)
            fitting += islice(_fitting(tried, budget), 1)
        if fitting:
            return min(fitting, key=lambda chosen: seconds_per_sample(chosen, card))
    return None


def _fitting(step: Step, budget: float) -> Iterator[Step]:
    """Yield the step with as few recomputed layers as fit, with the rule's chunk first."""
    smaller = () if step.rows_per_chunk else (size for size in WORKSPACES if size < step.chunk_bytes)
    for workspace in (step.workspace, *smaller):
        chunked = replace(step, workspace=workspace)
        for count in (_fewest(chunked, budget), step.decoder.depth):
            tried = replace(chunked, recompute=count)
            if needed(tried) <= budget:
                yield tried


def _fewest(step: Step, budget: float) -> int:
    """Bisect for the fewest recomputed layers: each one more needs less, up to the last but one."""
    low, high = 0, max(step.decoder.depth - 1, 0)
    while low < high:
        middle = (low + high) // 2
        if needed(replace(step, recompute=middle)) <= budget:
            high = middle
        else:
            low = middle + 1
    return low


def most_dequantised(step: Step) -> int:
    """Return how many decoder layers can be held dequantised at all: those in 4 bits that are streamlined."""
    possible = step.setup.bits == 4 and step.shards == 1 and is_streamlined(step.decoder, step.setup)
    return max(step.decoder.depth - 1, 0) if possible else 0


def dequantise(step: Step, budget: float, longest: int = 0) -> Step:
    """Return the step with as many dequantised layers as the rest of `budget` bytes can hold.

    Each saves two or three unpackings per micro-batch and changes no number. A layer that recomputes costs
    far more, so this comes last. A twentieth of the budget stays for what no plan foresees, and room for a
    pass of rows with `longest` text tokens: a step is planned for usual ones, and these weights are never
    given back.
    """
    room = (1 - SPARE) * budget - needed(replace(step, dequantised=0, text=max(step.text, longest)))
    count = min(int(max(room, 0) // dequantised_bytes(step)), most_dequantised(step))
    return replace(step, dequantised=count)


def needed(step: Step) -> float:
    """Return the bytes that the card must hold."""
    return sum(peak(step).values())


def least(step: Step, optimizers: Sequence[Optimizer]) -> Step:
    """Return the step with the smallest peak: one row, everything recomputed, the smallest optimizer."""
    depth, smallest = step.decoder.depth, optimizers[-1]
    return replace(step, micro_batch=1, recompute=depth, workspace=LEAST_BYTES, optimizer=smallest)


def row_of(
    kind: Kind, model: str, tower: str, gib: float, global_batch: int, step: Step | None, smallest: Step
) -> Row:
    """Describe a choice, or where `step` is `None` that nothing fits: then by the `smallest` step."""
    shown = step or smallest
    parts = {name: round(value / 1e9, 3) for name, value in peak(shown).items() if value}
    return Row(
        stage=kind,
        model=model,
        tower=tower,
        gpu_gib=gib,
        micro_batch=step and step.micro_batch,
        accumulation=step and global_batch // step.micro_batch,
        recompute_layers=step and step.recompute,
        rows_per_chunk=step and step.chunk.rows,
        dequantised_layers=step and step.dequantised,
        peak_gb=round(sum(parts.values()), 3),
        parts=parts,
        seconds_per_sample=step and round(seconds_per_sample(step, card_of(gib)), 4),
    )
