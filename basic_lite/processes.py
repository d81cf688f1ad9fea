"""More than one process, one device each: shares of a batch, the mean of gradients, one writer.

The model is not wrapped in `DistributedDataParallel`: what is trained is small beside the model (adapters
and a projector), text-only batches leave the projector without gradient, and BASIC's terms reach it
outside the wrapped forward pass. One mean over processes per optimizer step, behind the last micro-batch,
is exact in all of these cases. What `sharding` has cut comes with its mean from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast
from torch import nn
from torch.utils.data import DataLoader

from basic_lite.sharding import is_cut

BUCKET: int = 2**25
"""Elements that travel at once, 128 MiB in fp32."""


def keep_unwrapped(accelerator: Accelerator) -> None:
    """Let the accelerator prepare models where and as they are, without `DistributedDataParallel`."""
    prepare = accelerator.prepare_model

    def prepare_model(
        model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        return prepare(model, device_placement=False, evaluation_mode=True)

    accelerator.prepare_model = prepare_model


def prepare_loader(accelerator: Accelerator, loader: DataLoader) -> DataLoader:
    """Prepare a loader whose batches are this process's share already; accelerate would share them again."""
    if accelerator.num_processes == 1:
        return accelerator.prepare(loader)
    prepared = prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=False
    )
    accelerator._dataloaders.append(prepared)
    return prepared


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace every gradient of a whole parameter by its mean over processes; one without counts as zero.

    What has none in any process, as the projector in a step of text alone, keeps none: with zeros Adam would
    go on by its momentum, as it does not in one process.
    """
    trained = [p for p in parameters if p.requires_grad and not is_cut(p)]
    while trained:
        bucket, size = [], 0
        while trained and (not bucket or size + trained[0].numel() <= BUCKET):
            bucket.append(trained.pop(0))
            size += bucket[-1].numel()
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in bucket]
        parts.append(torch.tensor([float(p.grad is not None) for p in bucket], device=parts[0].device))
        *means, known = accelerator.reduce(torch.cat(parts), "mean").split([len(part) for part in parts])
        lacking = any(p.grad is None for p in bucket)
        somewhere = known.tolist() if lacking else [1.0] * len(bucket)  # waits for the device only then
        for parameter, mean, share in zip(bucket, means, somewhere, strict=True):
            if share:
                parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def join_flags(flags: torch.Tensor, accelerator: Accelerator) -> None:
    """Set in place, in every process, the bits that any process has set: `(R,)` uint8, one byte per row."""
    if accelerator.num_processes > 1:
        found = accelerator.gather(flags.to(accelerator.device)[None])
        flags.copy_(reduce(torch.bitwise_or, found.unbind()))


def first_says(verdict: bool, accelerator: Accelerator) -> bool:
    """Return the first process's verdict in all of them."""
    if accelerator.num_processes == 1:
        return verdict
    return bool(broadcast(torch.tensor([int(verdict)], device=accelerator.device)).item())


def sums_over_processes(values: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add up values of the same names; what one process lacks counts as zero there."""
    if accelerator.num_processes == 1:
        return values
    names = ("lm", "das", "sds", "cosine", "samples_per_second")
    known = [float(name in values) for name in names]
    found = [values.get(name, 0.0) for name in names]
    total = accelerator.reduce(torch.tensor(found + known, device=accelerator.device), "sum").tolist()
    added = {
        name: value for name, value, seen in zip(names, total, total[len(names) :], strict=False) if seen
    }
    return values | added
