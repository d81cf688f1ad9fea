"""Print the goals for memory beside the plan, and beside the bytes that the real trainer's step holds.

`python tests/memory/goals.py` prints the plan. `--measure` also runs every step at full depth under fake
tensors (minutes each, on one core); `--only TEXT` takes the rows whose name contains it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from basic_lite.memory.choice import Kind, needed, step_of
from basic_lite.memory.peak import CONTEXT_BYTES, FRAGMENTATION, Optimizer, Step, allocated, static_parts
from basic_lite.memory.sizes import TOWERS, TowerSize, published_decoder


@dataclass(frozen=True)
class Goal:
    """The most memory that a stage shall need, everything recomputed.

    Attributes:
        kind: the stage.
        model: its decoder.
        gigabytes: the limit.
        optimizer: of the adapters.
    """

    kind: Kind
    model: str
    gigabytes: float
    optimizer: Optimizer = "adamw"

    @property
    def name(self) -> str:
        """What is measured, in a few words."""
        how = "" if self.kind == "stage1" else f", {self.optimizer}"
        return f"{self.kind}, {self.model}{how}"

    @property
    def step(self) -> Step:
        """Micro-batch 8 in stage 1; 4 in stage 2, rank 128."""
        decoder, tower = published_decoder(self.model), TowerSize.of(TOWERS["clip-l-336"])
        rows = 8 if self.kind == "stage1" else 4
        settings = {"recompute": decoder.depth, "micro_batch": rows, "optimizer": self.optimizer}
        return replace(step_of(self.kind, decoder, tower), **settings)


GOALS = (
    Goal("stage1", "vicuna-7b", 9.5),
    Goal("stage1", "vicuna-13b", 14.2),
    Goal("stage1", "gemma-2b", 6.8),
    Goal("stage1", "phi3-mini", 6.8),
    Goal("stage1", "mistral-7b", 9.8),
    Goal("stage2 --lora", "vicuna-7b", 15.5),
    Goal("stage2 --lora", "vicuna-13b", 24.0),
    Goal("stage2 --lora", "vicuna-7b", 12.0, "paged-adamw-8bit"),
    Goal("stage2 --lora", "vicuna-13b", 18.5, "paged-adamw-8bit"),
)


def held_by_the_trainer(goal: Goal) -> float:
    """Return the bytes of the real step, and what the plan adds to them: context and fragmentation.

    8-bit moments are not run, they need a GPU: the step is run with 32-bit ones, and the difference of
    what they hold from step to step is taken off.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from fake_models import step_peak

    ran = replace(goal.step, optimizer="adamw")
    weights = sum(static_parts(ran).values())
    held = step_peak(goal.model, ran, tempfile.gettempdir())
    moments = weights - sum(static_parts(goal.step).values())
    return held - moments + CONTEXT_BYTES + FRAGMENTATION * (held - weights)


def main() -> None:
    """Print one line of Markdown per goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print("| everything recomputed, GB | goal | plan | its tensors alone | step on fake tensors |")
    print("|---|---|---|---|---|")
    for goal in (goal for goal in GOALS if options.only in goal.name):
        gc.disable()  # collecting the cycles of so many fake tensors has crashed the interpreter (torch 2.13)
        ran = f"{held_by_the_trainer(goal) / 1e9:.2f}" if options.measure else "-"
        plan, tensors = needed(goal.step) / 1e9, allocated(goal.step) / 1e9
        print(f"| {goal.name} | {goal.gigabytes} | {plan:.2f} | {tensors:.2f} | {ran} |", flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
