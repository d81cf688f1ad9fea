"""What the host issues for a decoder layer in a training step: counted, and timed, without a GPU.

A step costs what the GPU computes or what Python issues, whichever is more; with tiny tensors on a CPU only
the second is left. The same decoder is trained with few layers and with more; the difference over the layers
between is what one layer costs, free of what a step does once.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig, PrinterCallback, TrainerCallback

from basic_lite.bench import synthetic
from basic_lite.bench.step import arguments_of, set_recomputed
from basic_lite.data.pictures import ImageTransform
from basic_lite.method.objective import Objective
from basic_lite.models.parts import parts_of
from basic_lite.models.trainable import Adapters, train_adapters, train_projector
from basic_lite.training.trainer import BasicTrainer

FEW, MANY = 2, 8
"""Decoder layers of the two models whose difference is taken."""

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
    names: dict[str, float]  # the operations by name, most frequent first


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = str(func).removeprefix("aten.")
        if name.split(".")[0] not in _FREE:
            self.names[name] += 1
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
    real = synthetic.DECODERS[name]
    groups = real.num_attention_heads // (real.num_key_value_heads or real.num_attention_heads)
    config = type(real)(**real.to_dict())
    small = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 512}
    for key, value in (small | {"num_key_value_heads": max(4 // groups, 1), "head_dim": 32}).items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config


def measure(
    name: str = "vicuna-7b",  # a decoder in `synthetic.DECODERS`, whose structure is taken
    *,
    stage: int = 2,  # 1 trains the projector, 2 adapters and projector
    recompute: bool = False,  # run all layers again in backward
    basic: bool = True,  # with BASIC's terms
    grouped: bool = True,  # run adapters that share an input together; without, as PEFT does
    steps: int = 10,  # timed ones
) -> Layer:
    """Count and time what a decoder layer in 4 bits costs the host in a step."""
    few, many = (_train(name, layers, stage, recompute, basic, grouped, steps) for layers in (FEW, MANY))
    between = MANY - FEW
    names = {key: (count - few[1][key]) / between for key, count in many[1].items()}
    names = {key: value for key, value in sorted(names.items(), key=lambda item: -item[1]) if value > 0}
    operations = (many[1].total() - few[1].total()) / between
    return Layer(operations, (many[0] - few[0]) / between, names)


def _train(
    name: str, layers: int, stage: int, recompute: bool, basic: bool, grouped: bool, steps: int
) -> tuple[float, Counter[str]]:
    """Return the processor time of a step of a tiny decoder, and the operations of one."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 14, "patch_size": 14}
    assembled = synthetic.random_model(
        name, bits=4, dtype=torch.bfloat16, device="cpu", layers=layers, text=tiny(name), vision=vision
    )
    if stage == 1:
        train_projector(assembled)
    else:
        train_adapters(assembled, Adapters(8, 16, 0.05))
    set_recomputed(assembled, None if recompute else 0)
    warm = 2
    watch, count = _Watch(warm, steps), warm + steps + 1
    vocabulary = parts_of(assembled.model).decoder.config.vocab_size
    rows = synthetic.RandomRows(count, assembled.tokens_per_image, 2, vocabulary, assembled.image_size)
    half = (0.5, 0.5, 0.5)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = BasicTrainer(
            assembled.model,
            arguments_of(assembled, scratch, 1, count, logging_steps=10**6),
            objective=Objective() if basic else Objective(0, 0),
            transform=ImageTransform(size=assembled.image_size, mean=half, std=half, aspect="squash"),
            grouped_adapters=grouped,
            train_dataset=rows,
            data_collator=assembled.collator(),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return min(watch.seconds), watch.count.names
