"""The optimizers a stage can use, by name."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn
from transformers import TrainingArguments

from basic_lite.memory.peak import Optimizer

NAMES: tuple[str, ...] = get_args(Optimizer)
"""AdamW in fp32, fused on a GPU; or 8-bit moments for the adapters, in memory that can move to the host."""


def check_name(name: str) -> None:
    """Raise ValueError if `name` is not among `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"--optimizer must be one of {', '.join(NAMES)}, got {name!r}")


def make(
    name: str,
    model: nn.Module,
    args: TrainingArguments,
    projector_learning_rate: float | None = None,
    tower_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer, one of `NAMES`, of a model's fp32 trained parameters.

    8-bit moments take 2 bytes per adapter weight instead of 8: 1.9 GB less for rank 128 on a 7B. What is no
    adapter keeps fp32 moments: the projector, which everything passes through, and the tower.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    own = {"multi_modal_projector": projector_learning_rate, "vision_tower": tower_learning_rate}
    others = [p for n, p in named if not any(part in n for part in own)]
    groups: list[dict[str, Any]] = [{"params": others}]
    for part, rate in own.items():
        rate = args.learning_rate if rate is None else rate
        groups.append({"params": [p for n, p in named if part in n], "lr": rate})
    groups = [group for group in groups if group["params"]]
    settings = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.weight_decay,
    }
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=True, **settings)
    if not any("lora_" in n for n, _ in named):
        raise ValueError(
            "--optimizer paged-adamw-8bit is for adapters (stage 2 with --lora); what is trained here stays "
            "with adamw"
        )
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    from bitsandbytes.optim.optimizer import GlobalOptimManager

    kind = PagedAdamW8bit if args.device.type == "cuda" else AdamW8bit  # a CPU has nothing to page to
    optimizer = kind(groups, **settings)
    # bitsandbytes keeps such choices by `id(parameter)` in one manager for the whole process, and it outlives
    # the parameters: adapters of a later run got the ids, so the fp32 moments, of an earlier run's projector.
    optimizer.mng = GlobalOptimManager.__new__(GlobalOptimManager)
    optimizer.mng.initialize()
    optimizer.mng.override_config([p for n, p in named if "lora_" not in n], "optim_bits", 32)
    return optimizer
