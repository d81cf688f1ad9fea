"""What a stage can choose for the card that it runs on, from the memory plan: `--fit`."""

from __future__ import annotations

from dataclasses import replace

import torch

from basic_lite.console import rank_and_count
from basic_lite.memory import available_bytes
from basic_lite.modeling import Sources, read_config
from basic_lite.plan.activations import Held
from basic_lite.plan.choice import TEXT, Kind, Row, budget_bytes, candidates, fit, least, needed, row_of
from basic_lite.plan.peak import Step
from basic_lite.plan.sizes import DecoderSize, TowerSize
from basic_lite.settings import Settings
from basic_lite.tower import vision_config


def budget_of(wanted: str | None, device: str) -> tuple[float, float]:
    """Return the bytes that may be used, and the memory in GiB that stands for the card.

    Args:
        wanted: gibibytes, or `"auto"` or `None` for what is free on the device.
        device: `"cuda"` or `"cpu"`.

    Raises:
        ValueError: If `wanted` is neither.
    """
    if wanted in (None, "auto"):
        free = available_bytes(device)
        return free, free / 2**30
    try:
        gib = float(wanted)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 10_000:
        raise ValueError(f"--fit takes the card's memory in GiB, such as 24, or auto; got {wanted!r}")
    return budget_bytes(gib), gib


def kind_of(settings: Settings) -> Kind:
    """Return the stage as it is typed."""
    return "stage1" if settings.stage == 1 else "stage2 --lora" if settings.lora else "stage2"


def step_of(
    settings: Settings, sources: Sources, device: str, rank: int = 128, dropout: float = 0.05
) -> Step:
    """Return the step that settings and sources mean, with rows of the length that is planned for.

    Args:
        settings: of the stage.
        sources: its parts; their configurations are read.
        device: `"cuda"` or `"cpu"`; Liger's modules are for the former.
        rank: of the adapters.
        dropout: in front of the adapters.
    """
    kind = kind_of(settings)
    decoder = DecoderSize.of(read_config(sources.llm, "language model"), sources.llm)
    config = vision_config(read_config(sources.tower, "vision tower"))
    tower = TowerSize.of(config, sources.image_size, sources.tower)
    training = {"stage1": "projector", "stage2 --lora": "adapters", "stage2": "decoder"}[kind]
    held = Held(sources.bits, training, rank, dropout, half=sources.dtype == torch.bfloat16)
    held = replace(held, fused=settings.fused_kernels and device == "cuda")
    k = max(decoder.depth // 2, 1) if settings.layers is None else settings.layers
    return Step(
        decoder,
        tower,
        held,
        optimizer=settings.optimizer,
        micro_batch=settings.micro_batch,
        text=max(min(TEXT[kind], settings.max_length - tower.tokens - 1), 1),
        recompute=decoder.depth if settings.recompute is None else settings.recompute,
        basic=settings.objective.active,
        rows_per_chunk=settings.objective.rows_per_chunk,
        shards=settings.shards,
        maps=k if settings.target == "translated" else 0,
    )


def planned(
    settings: Settings,
    step: Step,
    device: str,
    *,
    names: tuple[str, str],
    wanted: str | None = None,
    automatic: bool = False,
    optimizer: str | None = None,
) -> tuple[Settings, Row]:
    """Choose what is to be chosen and predict the peak; the global batch stays what it is.

    Args:
        settings: of the stage, before the choice.
        step: what they mean.
        device: `"cuda"` or `"cpu"`.
        names: of decoder and tower, for the row.
        wanted: `--fit`; `None` chooses no micro-batch.
        automatic: without `--fit`, choose how many layers recompute from free memory; all, if it is short.
        optimizer: the adapters' optimizer that was asked for; `None` may be chosen too.

    Returns:
        The settings to run with, and the plan.

    Raises:
        ValueError: If `--fit` is given and nothing fits.
    """
    budget, gib = budget_of(wanted, device)
    kind, chosen = kind_of(settings), step
    given = ("adamw",) if settings.shards > 1 else ("adamw", "paged-adamw-8bit")
    given = (optimizer,) if optimizer else given
    optimizers = given if kind == "stage2 --lora" else ("adamw",)
    rows = settings.global_batch // rank_and_count()[1]
    if wanted is not None:
        found = fit(step, budget, candidates(rows), gib, optimizers)
        if found is None:
            smallest = needed(least(step, optimizers)) / 1e9
            more = {"stage1": "a smaller --model", "stage2 --lora": "a smaller --rank", "stage2": "--lora"}
            raise ValueError(
                f"--fit {wanted}: {kind} of {names[0]} needs {smallest:.1f} GB at least and "
                f"{budget / 1e9:.1f} GB may be used; take {more[kind]} or a larger card "
                "(`basic-lite plan` shows which)"
            )
        chosen = found
    elif automatic:
        chosen = fit(step, budget, [settings.micro_batch], gib, (step.optimizer,)) or step
    objective = settings.objective
    if chosen.rows_per_chunk != step.rows_per_chunk:
        objective = replace(objective, rows_per_chunk=chosen.rows_per_chunk)
    settings = replace(
        settings,
        micro_batch=chosen.micro_batch,
        recompute=chosen.recompute,
        optimizer=chosen.optimizer,
        objective=objective,
    )
    return settings, row_of(kind, *names, gib, rows, chosen, chosen)


def plan_line(row: Row) -> str:
    """Say a plan in one line."""
    largest = sorted(row.parts.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{name} {size:.2f}" for name, size in largest if size >= 0.005)
    return (
        f"memory plan: {row.peak_gb:.2f} GB at the peak, of {row.gpu_gib:.1f} GiB; micro-batch "
        f"{row.micro_batch} x {row.accumulation}, {row.recompute_layers} layers recompute, "
        f"{row.rows_per_chunk} rows per chunk ({parts})"
    )
