"""From options to settings: what the stage, its data and the card decide where an option is left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from basic_lite.console import rank_and_count
from basic_lite.data.batches import drawn_counts
from basic_lite.data.checks import TEMPLATE_TOKENS
from basic_lite.data.mix import open_sources
from basic_lite.data.readers import Rows
from basic_lite.data.rows import WHITE
from basic_lite.data.stream import Stream
from basic_lite.memory import choice
from basic_lite.memory.activations import DecoderSetup
from basic_lite.memory.available import available_bytes
from basic_lite.memory.choice import Kind, Row
from basic_lite.memory.peak import Optimizer, Step
from basic_lite.memory.sizes import DecoderSize, TowerSize
from basic_lite.method.targets import supervised_layers
from basic_lite.models import checkpoint, devices, trainable, unpacked, zoo
from basic_lite.models.llava import Sources, longest_with, read_config, tiling_for
from basic_lite.models.tower import vision_config
from basic_lite.training.settings import (
    Adapters,
    Data,
    Memory,
    Method,
    Model,
    PartsOfStage1,
    Run,
    Schedule,
    Settings,
    Tower,
    Validation,
)
from basic_lite.training.validation import HeldOut, hold_out, usual_steps

FEWEST_STEPS: int = 50
"""Optimizer steps that a default global batch leaves, or it is halved: Adam needs some to get anywhere."""


def sources_of(model: Model, device: str, console: Console) -> Sources:
    """Return stage 1's parts; of a vision-language model the decoder is taken out.

    Raises ValueError if a name is unknown, a part cannot be read, or the device lacks the precision.
    """
    sources = Sources.named(
        model.model,
        model.tower,
        None if model.llm is None else unpacked.language_model(model.llm, console.print),
        template=model.template,
        image_token=model.image_token,
        bits=zoo.bits_of(model.model, model.llm) if model.bits is None else model.bits,
        dtype=devices.choose_dtype(model.precision, device),
        image_size=model.image_size,
        tower_layer=model.tower_layer,
        tiles=model.tiles,
        pool=model.pool,
        exif=model.exif,
        background=model.background,
    )
    # Before the data: a decoder that does not exist is refused before 27 GB of pictures are fetched.
    read_config(sources.llm, "language model")
    read_config(sources.tower, "vision tower")
    return sources


def sources_of_stage2(first: dict, parts: PartsOfStage1, lora: bool) -> Sources:
    """Return stage 1's parts with what stage 2 changes; a decoder that is trained whole is not quantised.

    Raises ValueError if the LLM or the tower is no longer the one of stage 1.
    """
    sources = checkpoint.sources_of(first)
    bits = sources.bits if lora else 16
    changed = replace(
        sources,
        bits=bits if parts.bits is None else parts.bits,
        image_size=sources.image_size if parts.image_size is None else parts.image_size,
        exif=parts.exif or sources.exif,
        background=parts.background or sources.background,
        tower_layer=sources.tower_layer if parts.tower_layer is None else parts.tower_layer,
    )
    checkpoint.check_parts(changed, first)
    return changed


def resolve(
    stage: Literal[1, 2],
    llm: str,
    device: str,
    out: Path,
    data: Data,
    method: Method,
    memory: Memory,
    schedule: Schedule,
    run: Run,
    validation: Validation | None = None,
    *,
    shards: int = 1,
    lora: bool = False,
    projector_learning_rate: float | None = None,
    tower: Tower | None = None,
    optimizer: Optimizer | None = None,
) -> Settings:
    """Fill in the stage's defaults for options that are left out; raises ValueError if options clash."""
    defaults = zoo.stage_defaults(llm, stage)
    whole_decoder = stage == 2 and not lora
    rate = defaults.learning_rate / 10 if whole_decoder else defaults.learning_rate
    rows = defaults.rows_per_pass(schedule.global_batch)
    if stage == 2 and projector_learning_rate is None:
        projector_learning_rate = defaults.projector_learning_rate
    tower = tower or Tower()
    if tower.on and tower.tower_learning_rate is None:
        own = defaults.tower_learning_rate if tower.train_tower else defaults.tower_lora_learning_rate
        tower = replace(tower, tower_learning_rate=own)
    return Settings(
        stage=stage,
        out=out,
        data=data,
        method=method,
        run=run,
        validation=validation or Validation(),
        learning_rate=rate if schedule.learning_rate is None else schedule.learning_rate,
        projector_learning_rate=projector_learning_rate,
        tower=tower,
        global_batch=defaults.global_batch if schedule.global_batch is None else schedule.global_batch,
        micro_batch=rows if memory.micro_batch is None else memory.micro_batch,
        epochs=defaults.epochs if schedule.epochs is None else schedule.epochs,
        max_steps=schedule.max_steps,
        lora=lora,
        optimizer=optimizer or "adamw",
        recompute=devices.layers_to_recompute(memory.recompute, memory.recompute_layers, device),
        rows_per_chunk=memory.rows_per_chunk,
        fused_kernels=memory.fused_kernels,
        shards=shards,
    )


def adapters_of(
    lora: bool, adapters: Adapters, llm: str, tower_rank: int | None
) -> trainable.Adapters | None:
    """Return stage 2's adapters: LLaVA-1.5's, or the embedded decoder's smaller ones; `None` without any."""
    if not lora:
        return None
    rank = zoo.stage_defaults(llm, 2).rank if adapters.rank is None else adapters.rank
    alpha = 2 * rank if adapters.alpha is None else adapters.alpha
    return trainable.Adapters(rank, alpha, adapters.dropout, tower_rank or 0)


@dataclass(frozen=True)
class Plan:
    settings: Settings  # to run with
    # The training data; `None` in a dry run whose data are not here yet, or are streamed
    rows: Rows | Stream | None
    held_out: HeldOut | None  # the rows that are measured; `None` for none
    steps: int | str  # optimizer steps, or when they are known
    memory: Row  # what is predicted for the card
    adapters: trainable.Adapters | None = None  # those to train; `None` without any

    def print(self, console: Console, sources: Sources, device: str, **more: object) -> None:
        """Print the parts, the settings, `more` of them before the others, and the memory plan."""
        parts = {"llm": sources.llm, "tower": sources.tower, "bits": sources.bits, "device": device}
        resolution = {"tiles": sources.tiles, "pool": sources.pool}
        parts |= {name: value for name, value in resolution.items() if value > 1} | {"exif": sources.exif}
        parts |= {"background": sources.background} if sources.background != WHITE else {}
        console.print(self.settings.table(**parts, optimizer_steps=self.steps, **more))
        console.print(plan_line(self.memory))


def decide(
    settings: Settings,
    sources: Sources,
    device: str,
    memory: Memory,
    schedule: Schedule,
    console: Console,
    *,
    name: str | None = None,
    adapters: trainable.Adapters | None = None,
    optimizer: Optimizer | None = None,
) -> Plan:
    """Open the rows, hold some out, and choose the global batch by the rest, the micro-batch by the card.

    `name` is the decoder's, if not the source's. Raises ValueError if there are no rows or nothing fits.
    """
    rows, held_out, steps = None, None, "known when the data are here"
    data = settings.data
    how = {"follow_links": data.follow_links, "min_rating": data.min_rating}
    if data.stream:
        steps = settings.max_steps
        if not settings.run.dry_run:
            (source,) = data.sources
            rows = Stream(source.path, source.images, **how)
        held_out = hold_out(rows, settings)
    elif not settings.run.dry_run or all(source.path.exists() for source in data.sources):
        rows = open_sources(data.sources, **how, background=sources.background)
        held_out = hold_out(rows, settings)
        settings, steps, line = fit_batch(settings, rows, sources.llm, schedule, memory)
        if line:
            console.print(line)
    if held_out is not None and settings.validation.val_steps is None:
        assert isinstance(steps, int), "held-out rows are of data that are here"
        every = usual_steps(len(held_out.numbers), steps, settings.global_batch)
        validation = replace(settings.validation, val_steps=every)
        settings = replace(settings, validation=validation)
    step = step_of(settings, sources, device, adapters)
    names = (name or sources.llm, sources.tower)
    longest = settings.data.max_length - step.tower.tokens
    if isinstance(rows, Rows):
        longest = min(longest, int(rows.lengths.max(initial=0)) + TEMPLATE_TOKENS)
    settings, row = fit_memory(
        settings, step, device, memory, names=names, longest=longest, optimizer=optimizer
    )
    return Plan(settings, rows, held_out, steps, row, adapters)


def optimizer_steps(settings: Settings, batches: int) -> int:
    """Count a run's optimizer steps as the Trainer does, from one process's micro-batches of an epoch."""
    if settings.max_steps > 0:
        return settings.max_steps
    accumulation = settings.global_batch // (settings.micro_batch * rank_and_count()[1])
    return math.ceil(settings.epochs * max(-(-batches // accumulation), 1))


def fit_batch(
    settings: Settings, rows: Rows, llm: str, schedule: Schedule, memory: Memory
) -> tuple[Settings, int, str]:
    """Halve a default global batch until the data give at least `FEWEST_STEPS`.

    A hundred rows at LLaVA-1.5's 256 are one step. The choice depends on the annotation file alone, so a
    resumed run gets the same; the global batch stays a multiple of a given micro-batch. Returns the
    settings, the steps, and a line for the user, or "".
    """
    processes, usable = rank_and_count()[1], rows.trained
    kinds = drawn_counts([rows.has_image & usable, ~rows.has_image & usable], rows.sets).sum(1).tolist()
    kinds = kinds if settings.group else [sum(kinds)]

    def steps_with(tried: Settings) -> int:
        at_once = tried.micro_batch * processes
        return optimizer_steps(tried, sum(-(-count // at_once) for count in kinds))

    before = steps_with(settings)
    if before >= FEWEST_STEPS or settings.max_steps > 0:
        return settings, before, ""
    line = f"{_counted(sum(kinds), 'row')} {'is' if sum(kinds) == 1 else 'are'} {_counted(before)}"
    line += f" at a global batch of {settings.global_batch}"
    if schedule.global_batch is not None:
        return settings, before, f"Warning: {line}; a smaller --global-batch or more --epochs give more."
    defaults, smaller = zoo.stage_defaults(llm, settings.stage), settings
    at_once = (memory.micro_batch or 1) * processes
    while steps_with(smaller) < FEWEST_STEPS and smaller.global_batch % (2 * at_once) == 0:
        half = smaller.global_batch // 2
        size = defaults.rows_per_pass(half) if memory.micro_batch is None else memory.micro_batch
        smaller = replace(smaller, global_batch=half, micro_batch=size)
    after = steps_with(smaller)
    if after == before:
        return settings, before, f"Warning: {line}; more --epochs give more."
    more = "" if after >= FEWEST_STEPS else ", and more --epochs give more"
    line += f": it is {smaller.global_batch} here, for {_counted(after)}{more}"
    return smaller, after, f"{line} (--global-batch {settings.global_batch} keeps it)."


def _counted(number: int, what: str = "optimizer step") -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def budget_of(wanted: str | None, device: str) -> tuple[float, float]:
    """Return the bytes that may be used and the card's memory in GiB; `wanted` is `--fit`'s GiB or `auto`."""
    if wanted in (None, "auto"):
        free = available_bytes(device)
        return free, free / 2**30
    try:
        gib = float(wanted)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 10_000:
        raise ValueError(f"--fit takes the card's memory in GiB, such as 24, or auto; got {wanted!r}")
    return choice.budget_bytes(gib), gib


def kind_of(settings: Settings) -> Kind:
    return "stage1" if settings.stage == 1 else "stage2 --lora" if settings.lora else "stage2"


def step_of(
    settings: Settings, sources: Sources, device: str, adapters: trainable.Adapters | None = None
) -> Step:
    kind, adapters = kind_of(settings), adapters or trainable.Adapters()
    llm = read_config(sources.llm, "language model")
    config = vision_config(read_config(sources.tower, "vision tower"))
    decoder = DecoderSize.of(llm, sources.llm)
    tower = TowerSize.of_sources(sources, config)
    tiling, longest = tiling_for(sources, config), settings.data.max_length
    if tiling is not None:
        longest = longest_with(tiling, longest, llm)
    setup = DecoderSetup(
        sources.bits,
        choice.KINDS[kind].training,
        adapters.rank,
        adapters.dropout,
        half=sources.dtype == torch.bfloat16,
        fused=settings.fused_kernels and device == "cuda",
    )
    return Step(
        decoder,
        tower,
        setup,
        optimizer=settings.optimizer,
        micro_batch=settings.micro_batch,
        text=max(min(choice.TEXT[kind], longest - tower.tokens - 1), 1),
        recompute=decoder.depth if settings.recompute is None else settings.recompute,
        basic=settings.objective.active,
        rows_per_chunk=settings.objective.rows_per_chunk,
        shards=settings.shards,
        tower_trained=settings.tower.train_tower,
        tower_rank=settings.tower.tower_lora or 0,
        tower_depth=sources.tower_layer % (config.num_hidden_layers + 1),  # -1 is after the last of them
        maps=supervised_layers(llm, settings.method.layers) if settings.method.kind == "translated" else 0,
        accumulates=settings.global_batch > settings.micro_batch * rank_and_count()[1],
    )


def fit_memory(
    settings: Settings,
    step: Step,
    device: str,
    memory: Memory,
    *,
    names: tuple[str, str],
    longest: int,
    optimizer: Optimizer | None = None,
) -> tuple[Settings, Row]:
    """Choose what is left open and predict the peak; the global batch stays what it is.

    `--fit` chooses micro-batch, recomputed layers, rows per chunk and, unless `optimizer` names one, the
    adapters' optimizer; raises ValueError if nothing fits. Without it only the recomputed layers are chosen,
    on a GPU, from free memory. `names` are of decoder and tower, `longest` the most text tokens of a row.
    """
    budget, gib = budget_of(memory.fit, device)
    kind, chosen = kind_of(settings), step
    optimizers: tuple[Optimizer, ...] = (settings.optimizer,)
    if kind == "stage2 --lora" and optimizer is None and settings.shards == 1:
        optimizers = ("adamw", "paged-adamw-8bit")
    rows = settings.global_batch // rank_and_count()[1]
    if memory.fit is not None:
        chosen = choice.fit(step, budget, choice.candidates(rows), gib, optimizers, rows=rows)
        if chosen is None:
            smallest = choice.needed(choice.least(step, optimizers)) / 1e9
            more = {"stage1": "a smaller --model", "stage2 --lora": "a smaller --rank", "stage2": "--lora"}
            raise ValueError(
                f"--fit {memory.fit}: {kind} of {names[0]} needs {smallest:.1f} GB at least and "
                f"{budget / 1e9:.1f} GB may be used; take {more[kind]} or a larger card "
                "(`basic-lite plan` shows which)"
            )
    elif device == "cuda" and memory.recompute is None and memory.recompute_layers is None:
        chosen = choice.fit(step, budget, [settings.micro_batch], gib, (step.optimizer,)) or step
    auto = device == "cuda" or memory.fit is not None
    chosen = hold_dequantised(chosen, memory.keep_dequantised, budget if auto else 0.0, longest)
    settings = replace(
        settings,
        micro_batch=chosen.micro_batch,
        recompute=chosen.recompute,
        optimizer=chosen.optimizer,
        rows_per_chunk=chosen.rows_per_chunk,
        dequantised=chosen.dequantised,
    )
    return settings, choice.row_of(kind, *names, gib, rows, chosen, chosen)


def hold_dequantised(step: Step, wanted: str, budget: float, longest: int) -> Step:
    """Return the step with the layers that are held dequantised: `wanted`, a number, or `auto` for what fits.

    Without a budget `auto` holds none; `longest` is the most text tokens of a row.
    """
    if wanted == "auto":
        return choice.dequantise(step, budget, longest)
    if not wanted.isdecimal():
        raise ValueError(f"--keep-dequantised takes a number of decoder layers, or auto; got {wanted!r}")
    most = choice.most_dequantised(step)
    if int(wanted) > most:
        why = "" if most else " (one process, 4 bits, and a family that is streamlined: Llama, Mistral, ...)"
        raise ValueError(
            f"--keep-dequantised {wanted}: at most {most} layers can be held dequantised here{why}; "
            "give fewer, or auto"
        )
    return replace(step, dequantised=int(wanted))


def plan_line(row: Row) -> str:
    largest = sorted(row.parts.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{name} {size:.2f}" for name, size in largest if size >= 0.005)
    return (
        f"memory plan: {row.peak_gb:.2f} GB at the peak, of {row.gpu_gib:.1f} GiB; micro-batch "
        f"{row.micro_batch} x {row.accumulation}, {row.recompute_layers} layers recompute, "
        f"{f'{row.dequantised_layers} are held dequantised, ' if row.dequantised_layers else ''}"
        f"{row.rows_per_chunk} rows per chunk ({parts})"
    )
