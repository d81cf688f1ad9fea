"""Everything that a training stage is told, resolved and checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from basic_lite.capture import Importance, Weighting
from basic_lite.objective import Objective
from basic_lite.targets import TargetKind


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
        intervention: what an experiment does to the teacher; see `basic_lite.interventions`.
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
