"""Everything that a training stage is told, resolved and checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from basic_lite.console import rank_and_count
from basic_lite.memory.activations import Held
from basic_lite.memory.available import available_bytes
from basic_lite.memory.choice import TEXT, Kind, Row, budget_bytes, candidates, fit, least, needed, row_of
from basic_lite.memory.peak import Step
from basic_lite.memory.sizes import DecoderSize, TowerSize
from basic_lite.method.capture import Importance, Weighting
from basic_lite.method.objective import Objective
from basic_lite.method.targets import TargetKind
from basic_lite.models.llava import Sources, read_config
from basic_lite.models.tower import vision_config


@dataclass(frozen=True)
class Settings:
    """Everything that a training stage is told, resolved; goes into the manifest.

    Attributes:
        stage: 1 or 2.
        out: run folder.
        data: LLaVA JSON or JSONL, folder of Arrow or Parquet, or hub id.
        images: folder or archive that image paths are relative to; `None` for the file's own.
        aspect: image preparation, `"crop"` (stage 1) or `"pad"` (stage 2).
        learning_rate: peak of the cosine schedule.
        projector_learning_rate: the projector's own, 0 freezes it; `None` for the same.
        global_batch: rows per optimizer step.
        micro_batch: rows per forward pass.
        optimizer: one of `optimizers.NAMES`.
        fused_kernels: Liger's modules on a GPU.
        epochs: passes over the data.
        max_steps: optimizer steps instead of epochs; the schedule ends there.
        follow_links: links in the image folder may lead out of it.
        min_rating: leave out rows that are rated lower in anything (FineVision).
        max_length: most tokens of a row.
        group: batches of one modality and similar length.
        shards: processes over which the decoder's layers are cut; 1 leaves them whole.
        recompute: how many decoder layers, the first ones, run again in backward; `None` for all.
        lora: adapters instead of the whole decoder (stage 2).
        save_steps: steps between checkpoints.
        keep: how many checkpoints stay.
        bad_budget: share of the rows that may turn out bad; each is replaced by a similar one and logged.
        logging_steps: steps between lines of `log.jsonl`.
        workers: processes that prepare batches.
        seed: of the projector, the order of rows, and dropout.
        report_to: a tracker of transformers, such as `"tensorboard"`.
        layers: k; `None` for half.
        weighting: of layers 1..k.
        importance: of patches.
        target: in which space the target is: `"raw"` (the paper), `"centred"` or `"translated"`.
        objective: weights of the terms.
        intervention: what an experiment does to the teacher; see `basic_lite.experiments.interventions`.
    """

    stage: int
    out: Path
    data: Path
    images: Path | None
    aspect: str
    learning_rate: float
    global_batch: int
    micro_batch: int
    projector_learning_rate: float | None = None
    optimizer: str = "adamw"
    fused_kernels: bool = True
    epochs: float = 1.0
    max_steps: int = -1
    follow_links: bool = False
    min_rating: int | None = None
    max_length: int = 2048
    group: bool = False
    shards: int = 1
    recompute: int | None = 0
    lora: bool = False
    save_steps: int = 500
    keep: int = 2
    bad_budget: float = 0.005
    logging_steps: int = 10
    workers: int = 2
    seed: int = 0
    report_to: str = "none"
    layers: int | None = None
    weighting: Weighting = "quadratic"
    importance: Importance = "attention"
    target: TargetKind = "raw"
    objective: Objective = field(default_factory=Objective)
    intervention: str = "none"

    @classmethod
    def of(cls, options: Mapping[str, Any], **resolved: Any) -> Settings:
        """Take the options that are settings under the same name, and what was made of the others.

        Args:
            options: of a command, as they were given.
            resolved: comes before an option of the same name.
        """
        names = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in names} | resolved)

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is loaded.

        Raises:
            ValueError: In one line.
        """
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if (
            self.micro_batch < 1
            or self.global_batch < 1
            or self.global_batch % (self.micro_batch * processes)
        ):
            times = f" times {processes} processes" if processes > 1 else ""
            raise ValueError(
                f"the global batch of {self.global_batch} is not a multiple of the micro-batch of "
                f"{self.micro_batch}{times}; choose --micro-batch so that it divides --global-batch"
            )
        for name in ("learning_rate", "epochs", "max_length", "save_steps", "logging_steps", "keep"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.projector_learning_rate is not None and not self.projector_learning_rate >= 0:
            rate = self.projector_learning_rate
            raise ValueError(f"--projector-learning-rate must be at least 0, which freezes it, got {rate}")
        if not 0 <= self.bad_budget < 1:
            raise ValueError(f"--bad-budget must be at least 0 and below 1, got {self.bad_budget}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"--max-steps must be at least 1, got {self.max_steps}")

    def table(self, **more: object) -> Table:
        """Show the settings; `more` comes first."""
        table = Table("setting", "value", show_header=False, box=None)
        hidden = {"stage", "objective", "projector_learning_rate"}
        shown = {k: v for k, v in self.__dict__.items() if k not in hidden and v is not None}
        shown |= {"das_weight": self.objective.das_weight, "sds_weight": self.objective.sds_weight}
        if self.projector_learning_rate is not None:
            shown["projector_learning_rate"] = self.projector_learning_rate
        if self.shards == 1:
            shown.pop("shards")
        if self.intervention == "none":
            shown.pop("intervention")
        if self.max_steps > 0:
            shown.pop("epochs")
        else:
            shown.pop("max_steps")
        for name, value in (more | shown).items():
            table.add_row(name.replace("_", " "), str(value))
        return table


# What a stage can choose for the card that it runs on, from the memory plan: `--fit`.


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
