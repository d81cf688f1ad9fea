"""Train tiny models, in one process or as one of two that share the decoder's layers.

`python tests/training/sharded.py FOLDER CASE...` is one of two processes (`RANK`, `WORLD_SIZE` and so on say
which): it trains each case in `FOLDER/two`, and goes on from what one process left in `FOLDER/one`.
"""

from __future__ import annotations

import json
import os
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import llm_folder, tiny_assembled, tower_folder
from tiny_trainer import Rows, trainer

from basic_lite.method.objective import Objective
from basic_lite.models import parts, trainable
from basic_lite.models.devices import recompute_layers
from basic_lite.models.parts import parts_of

STEPS = [  # of each step, two micro-batches for each of two processes; rows 2, 5, 8, ... have no picture
    [[[0, 1], [3, 5]], [[2, 8], [4, 6]]],
    [[[2, 5], [8, 11]], [[7, 9], [10, 12]]],
    [[[14, 17], [20, 23]], [[2, 5], [8, 11]]],
    [[[13, 15], [2, 16]], [[18, 19], [21, 22]]],
]


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    One process adds up a step's four micro-batches as ((a + b) + c) + d, two of them as (a + b) + (c + d), so
    gradients differ by rounding: up to 4e-7 of those around 0.1. Where the four cancel, Adam's own epsilon of
    1e-8 makes much of it: the first step moves by lr * g / (|g| + 1e-8), and one element's -6.16e-8 against
    -6.07e-8 became 1.8e-6 of weight. With an epsilon as large as the learning rate a first step moves by no
    more than the gradients differ.
    """

    decoder: str = "llama"
    bits: int = 16
    half: bool = False
    adapters: bool = True
    recompute: int = 0
    longest: float = 1.0
    broken_step: int | None = None
    tower: str = ""
    every: int = 1  # steps between two lines of the log


CASES = {
    "llama": Case(every=3),
    "gemma": Case("gemma", recompute=4, longest=0),
    "phi3": Case("phi3", recompute=2),
    "mistral": Case("mistral", broken_step=1),
    "four-bits": Case(bits=4, recompute=4),
    "half": Case(half=True, recompute=4),
    "stage-1": Case(adapters=False),
    "tower": Case(bits=4, tower="weights"),
    "tower-adapters": Case(tower="adapters"),
}


def train(case: Case, out: Path, resume: Path | None = None) -> dict:
    """Run four steps, with a checkpoint after the second; say what was held here."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    assembled = tiny_assembled(
        case.decoder, bits=case.bits, dtype=torch.bfloat16 if case.half else torch.float32
    )
    if case.adapters:
        tower_rank = 2 if case.tower == "adapters" else 0
        trainable.train_adapters(assembled, trainable.Adapters(4, 8, 0.0, tower_rank=tower_rank))
        if case.tower == "weights":
            trainable.train_tower(assembled)
        torch.manual_seed(1)
        for name, parameter in assembled.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    else:
        trainable.train_projector(assembled)
    decoder = parts_of(assembled.model).decoder
    recompute_layers(decoder, case.recompute)
    run = trainer(
        out,
        assembled.model,
        Rows(24),
        accumulation=4 // ranks,
        max_steps=4,
        learning_rate=1e-3,
        adam_epsilon=1e-3,  # see `Case`
        save_strategy="steps",
        save_steps=2,
        logging_steps=case.every,
        max_grad_norm=case.longest,
        bf16=case.half,
        objective=Objective(1.0, 1.0),
        grouped_adapters=not case.half,  # in bf16 a group rounds otherwise than its adapters alone
        sharded=ranks > 1,
    )
    run.batches = [
        batch for step in STEPS for share in (step if ranks == 1 else [step[rank]]) for batch in share
    ]
    held = {"before": held_by(decoder.layers)}
    whole = [weakref.ref(p) for p in decoder.layers.parameters()]
    if case.broken_step is not None and rank == ranks - 1:

        def spoil(module, args, output):
            return output * float("nan") if run.state.global_step == case.broken_step else output

        parts_of(assembled.model).llava.multi_modal_projector.register_forward_hook(spoil)
    run.train(resume_from_checkpoint=None if resume is None else str(resume))
    run.save_model(str(out))
    held["after"] = held_by(decoder.layers)
    held["alive"] = sum(one() is not None for one in whole)
    held["moments"] = [parts.piece(state["exp_avg"]).numel() for state in run.optimizer.state.values()]
    return held


def held_by(layers: torch.nn.Module) -> int:
    """Count the bytes of parameters that are here."""
    return sum(parts.piece(p).nbytes for p in layers.parameters())


def main(folder: Path, *names: str) -> None:
    """Be one of two processes."""
    from accelerate import PartialState

    torch.set_num_threads(1)
    for name in names:
        # Before there are processes: transformers lets only the first one write.
        llm_folder(CASES[name].decoder)
    tower_folder()
    PartialState()
    held = {name: train(CASES[name], folder / "two" / name) for name in names}
    train(CASES["llama"], folder / "again", folder / "two/llama/checkpoint-2")
    train(CASES["llama"], folder / "from-one", folder / "one/llama/checkpoint-2")
    (folder / f"held-{os.environ['RANK']}.json").write_text(json.dumps(held))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
