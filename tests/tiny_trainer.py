"""A trainer of tiny models on random rows, and what its tests look at."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny import IMAGE_TOKEN, PATCHES, VOCABULARY, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from basic_lite import BasicTrainer
from basic_lite.data.batches import Batches, Collator
from basic_lite.method.objective import Objective
from basic_lite.training.trainer import ShardedArguments


class Rows(torch.utils.data.Dataset):
    """Random rows of different lengths; every third has no image."""

    def __init__(self, count: int, images: bool = True) -> None:
        generator = torch.Generator().manual_seed(3)
        self.rows = []
        for number in range(count):
            text = torch.randint(4, VOCABULARY, (3 + number % 5,), generator=generator).tolist()
            has_image = images and number % 3 != 2
            ids = [1, *([IMAGE_TOKEN] * PATCHES if has_image else []), *text]
            labels = [-100] * (len(ids) - len(text)) + text
            pixels = [torch.randint(0, 256, (3, 24, 24), generator=generator, dtype=torch.uint8)]
            row = {"input_ids": ids, "labels": labels, "pixels": pixels if has_image else []}
            self.rows.append(row | {"row": number, "id": str(number)})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict:
        return self.rows[row]


class Scale:
    """Stands for an `ImageTransform`: bytes to floats."""

    def normalise(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return pixels.to(dtype) / 128 - 1


def trainer(out: Path, model=None, rows=None, *, batch=2, accumulation=2, group=False, **settings):
    rows = rows or Rows(24)
    arguments = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "cosine",
    }
    keys = {
        "objective",
        "callbacks",
        "projector_learning_rate",
        "manifest",
        "layers",
        "importance",
        "target",
        "deferred",
        "prune_last_layer",
        "optimizer_name",
        "fused_kernels",
        "grouped_adapters",
        "sharded",
    }
    mine = {key: settings.pop(key) for key in list(settings) if key in keys}
    args = (ShardedArguments if mine.get("sharded") else TrainingArguments)(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        report_to="none",
        disable_tqdm=True,
        **({"use_cpu": True} | arguments | settings),
    )
    lengths = [len(row["input_ids"]) for row in rows.rows]
    modality = [bool(row["pixels"]) for row in rows.rows]
    return BasicTrainer(
        model or tiny_llava(),
        args,
        train_dataset=rows,
        data_collator=Collator(pad_token_id=0, image_token_id=IMAGE_TOKEN),
        batches=Batches(lengths, modality, batch_size=batch, seed=5, group=group),
        transform=Scale(),
        **mine,
    )


def sgd_trainer(out: Path, model, rate: float, **settings):
    """Return a trainer with plain SGD, under which a parameter's move is its gradient."""
    made = trainer(out, model, objective=Objective(1.0, 1.0), lr_scheduler_type="constant", **settings)
    made.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    return made


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


class Waits(TorchDispatchMode):
    """Notes every operation whose result the host must have: on a GPU each one empties the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = any(
            part in name for part in ("_local_scalar_dense", "nonzero", "equal.", "masked_select", "unique")
        )
        if name.startswith(("aten.index.", "aten.index_put")):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        if waits:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def failing(model, most: int, where: str, after: int = 0) -> list[int]:
    """Let the model's first layer run out of memory above `most` rows, from pass `after` on."""
    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).model.language_model
    seen: list[int] = []

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def watch(layer, args, output):
        seen.append(len(output))
        if len(output) > most and len(seen) > after:
            # In backward the adapters of the later layers have their gradients already.
            fail() if where == "forward" else output.register_hook(fail)

    decoder.layers[0].register_forward_hook(watch)
    return seen
