"""What the host issues for a decoder layer in a training step: counted, and timed, without a GPU.

A step costs what the GPU computes or what Python issues, whichever is more; with tiny tensors on a CPU only
the second is left. The same decoder is trained with few layers and with more; the difference over the layers
between is what one layer costs, free of what a step does once.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig, TrainerCallback

from basic_lite.bench import synthetic
from basic_lite.bench.step import Facts, Step, random_rows_trainer, set_recomputed
from basic_lite.models.decoder_layer import as_published
from basic_lite.models.parts import parts_of
from basic_lite.models.trainable import Adapters, train_adapters, train_projector

FEW, MANY = 2, 8
"""Decoder layers of the two models whose difference is taken."""

_VISION = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 14, "patch_size": 14},
}

_FREE = frozenset(
    (
        *("view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "unsqueeze", "squeeze"),
        *("expand", "slice", "select", "detach", "alias", "as_strided", "split", "split_with_sizes"),
        *("unbind", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    )
)
"""Operations that compute nothing, by name: views, and memory that is not written."""


@dataclass(frozen=True)
class Layer:
    """What one decoder layer costs the host in one step."""

    operations: float  # that compute something, forward and backward
    seconds: float  # processor time of the quickest step: what else a machine runs only adds to it


class _Count(TorchDispatchMode):
    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.operations += str(func).removeprefix("aten.").split(".")[0] not in _FREE
        return func(*args, **(kwargs or {}))


class _Watch(TrainerCallback):
    """Time every step but the first ones, then count one; the first makes moments and narrow copies."""

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.last, self.count = warm, warm + steps + 1, _Count()
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.last:
            self.count.__enter__()
        self._start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        spent = time.process_time() - self._start
        if state.global_step == self.last:
            self.count.__exit__(None, None, None)
        elif state.global_step > self.warm:
            self.seconds.append(spent)


def tiny(name: str) -> PretrainedConfig:
    """Return a decoder's configuration with its real structure and tiny matrices."""
    config = synthetic.decoder_config(name)
    groups = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
    small = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 512}
    for key, value in (small | {"num_key_value_heads": max(4 // groups, 1), "head_dim": 32}).items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config


def measure(
    name: str = "vicuna-7b",  # a decoder in `synthetic.DECODERS`, whose structure is taken
    *,
    stage: Literal[1, 2] = 2,  # 1 trains the projector, 2 adapters and projector
    recompute: bool = False,  # run all layers again in backward
    basic: bool = True,  # with BASIC's terms
    grouped: bool = True,  # run adapters that share an input together; without, as PEFT does
    steps: int = 10,  # timed ones
) -> Layer:
    """Count and time what a decoder layer in 4 bits costs the host in a step."""

    def step(layers: int) -> tuple[int, float]:
        """Return the operations of a step of a tiny decoder, and the processor time of one."""
        assembled = synthetic.random_model(
            name, bits=4, dtype=torch.bfloat16, device="cpu", layers=layers, text=tiny(name), vision=_VISION
        )
        if stage == 1:
            train_projector(assembled)
        else:
            train_adapters(assembled, Adapters(rank=8, alpha=16))
        set_recomputed(assembled, None if recompute else 0)
        row = Step(stage, micro_batch=1, text=2, warm=2, steps=steps + 1)
        watch = _Watch(row.warm, steps)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = random_rows_trainer(assembled, row, scratch, basic=basic)
            trainer.add_callback(watch)
            if not grouped:
                as_published(parts_of(assembled.model).decoder)
            trainer.train()
        return watch.count.operations, min(watch.seconds)

    few, many = step(FEW), step(MANY)
    operations, seconds = ((more - less) / (MANY - FEW) for more, less in zip(many, few, strict=True))
    return Layer(operations, seconds)


def compare_layers(name: str, rounds: int, steps: int) -> list[Facts]:
    """Measure the layer of both stages with BASIC and without, and with adapters as PEFT runs them.

    They take turns, `rounds` times; the median of their processor times counts, "of PEFT's" in stage 2.
    """
    peft = "stage 2, BASIC, adapters as PEFT runs them"
    kinds: dict[str, dict[str, Any]] = {
        "stage 1, BASIC": {"stage": 1},
        "stage 1, plain": {"stage": 1, "basic": False},
        "stage 2, BASIC": {},
        "stage 2, plain": {"basic": False},
        peft: {"grouped": False},
    }
    rows: list[Facts] = []
    for recompute in (False, True):
        layers: dict[str, list[Layer]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, settings in kinds.items():
                layers[kind].append(measure(name, recompute=recompute, steps=steps, **settings))
        seconds = {kind: statistics.median(layer.seconds for layer in each) for kind, each in layers.items()}
        for kind, each in layers.items():
            row: Facts = {"one decoder layer, one step": kind, "recomputing": "yes" if recompute else "no"}
            row |= {"operations": round(each[-1].operations), "processor ms": round(1000 * seconds[kind], 2)}
            if kind.startswith("stage 2"):
                row["of PEFT's"] = round(seconds[kind] / seconds[peft], 2)
            rows.append(row)
    return rows
