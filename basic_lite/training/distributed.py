"""More than one process, one device each: shares of a batch, the mean of gradients, one writer.

The model is not wrapped in `DistributedDataParallel`: text-only batches leave the projector without gradient,
and BASIC's terms reach it outside the wrapped forward pass. One mean over processes per optimizer step, after
the last micro-batch, is exact in all cases.

`accelerate launch --use_fsdp` cuts the decoder's layers with their adapters, which are what fills a card, by
torch's `fully_shard`, each alone. Embeddings, head, norm, projector and tower stay whole, so all that BASIC
reads outside a layer's forward pass is a plain tensor. Files hold whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from inspect import signature
from itertools import chain
from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast
from torch import nn
from torch.utils.data import DataLoader

from basic_lite.models.parts import is_cut, parts_of, piece

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def place_around(model: nn.Module, device: torch.device | str) -> None:
    """Move everything but the decoder's layers, which `shard` takes over one at a time."""
    decoder_layers = cast(nn.ModuleList, parts_of(model).decoder.layers)
    layers = {id(tensor) for tensor in decoder_layers.parameters()}
    for tensor in chain(model.parameters(), model.buffers()):
        if id(tensor) not in layers:
            tensor.data = tensor.data.to(device)


def shard(model: nn.Module, device: torch.device | str) -> None:
    """Cut the decoder's layers over all processes; whoever holds their parameters must fetch them again.

    No more than one of them is whole on the device at a time: they may still be on the host.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in signature(fully_shard).parameters:
        raise ValueError(
            f"torch {torch.__version__} cannot cut a decoder's layers alone; install a newer one"
        )
    decoder = parts_of(model).decoder
    mesh = init_device_mesh(torch.device(device).type, (get_world_size(),))
    for layer in cast(nn.ModuleList, decoder.layers):
        for module in layer.modules():  # bitsandbytes looks for the scales here when the weight has lost them
            scales = getattr(getattr(module, "weight", None), "quant_state", None)
            if scales is not None:
                module.quant_state = scales
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The decoder itself owns no piece. It makes one chain of the layers, of which the next one is fetched
    # while one computes.
    fully_shard(decoder, mesh=mesh, ignored_params={p for p in decoder.parameters() if not is_cut(p)})


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale gradients down to a norm of at most `largest`; return the norm before, 0-dim, of all together.

    Some parameters may be cut and some whole; the gradients of whole ones are the same on all processes.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    here = [piece(gradient) for gradient in gradients if is_cut(gradient)]
    whole = [gradient for gradient in gradients if not is_cut(gradient)]
    zero = torch.zeros((), device=gradients[0].device if gradients else None)
    squares = sum((g.float().square().sum() for g in here), start=zero)
    if here:
        torch.distributed.all_reduce(squares)
    norm = sum((g.float().square().sum() for g in whole), start=squares).sqrt()
    if largest < float("inf"):
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in here + whole:
            gradient.mul_(factor)
    return norm


def gather(model: nn.Module, keep: bool) -> dict[str, torch.Tensor] | None:
    """Return the trained parameters by name, whole, on the host, or `None` where none is cut.

    Every process has to take part; for those that do not `keep` them the result is empty.
    """
    named = dict(model.named_parameters())  # with a frozen projector, which is saved beside adapters
    trained = {n: p.detach() for n, p in named.items() if p.requires_grad or "modules_to_save" in n}
    if not any(is_cut(parameter) for parameter in trained.values()):
        return None
    gathered = {}
    for name, parameter in trained.items():
        whole = cast("DTensor", parameter).full_tensor() if is_cut(parameter) else parameter
        if keep:
            gathered[name] = whole.cpu()
    return gathered


@contextmanager
def whole_moments(optimizer: torch.optim.Optimizer, keep: bool) -> Iterator[None]:
    """Let an optimizer's state hold whole tensors on the host inside the block, to be written.

    Every process has to take part; in those that do not `keep` them the state stays in pieces.
    """
    cut = [(s, k, v) for s in optimizer.state.values() for k, v in s.items() if is_cut(v)]
    try:
        for state, key, value in cut:
            whole = value.full_tensor()
            if keep:
                state[key] = whole.cpu()
        yield
    finally:
        for state, key, value in cut:
            state[key] = value


def cut_moments(optimizer: torch.optim.Optimizer) -> None:
    """Cut an optimizer's state, as it was read from a file, like its parameters."""
    from torch.distributed.tensor import distribute_tensor

    for parameter, state in optimizer.state.items():
        if not is_cut(parameter):
            continue
        cut = cast("DTensor", parameter)
        for key, value in state.items():
            if value.shape == cut.shape:
                state[key] = distribute_tensor(value, cut.device_mesh, cut.placements)


BUCKET: int = 2**25  # elements that travel at once, 128 MiB in fp32


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
        reduced = cast(torch.Tensor, accelerator.reduce(torch.cat(parts), "mean"))
        *means, known = reduced.split([len(part) for part in parts])
        lacking = any(p.grad is None for p in bucket)
        somewhere = known.tolist() if lacking else [1.0] * len(bucket)  # waits for the device only then
        for parameter, mean, share in zip(bucket, means, somewhere, strict=True):
            if share:
                parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def join_flags(flags: torch.Tensor, accelerator: Accelerator) -> None:
    """Set in place, in every process, the bits that any process has set: `(R,)` uint8, one byte per row."""
    if accelerator.num_processes > 1:
        gathered = cast(torch.Tensor, accelerator.gather(flags.to(accelerator.device)[None]))
        flags.copy_(reduce(torch.bitwise_or, gathered.unbind()))


def from_first(value: bool, accelerator: Accelerator) -> bool:
    """Return the first process's value in all of them."""
    if accelerator.num_processes == 1:
        return value
    first = cast(torch.Tensor, broadcast(torch.tensor([int(value)], device=accelerator.device)))
    return bool(first.item())


def sums_over_processes(values: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Add up values of the same names, which all processes have."""
    if accelerator.num_processes == 1:
        return values
    own = torch.tensor(list(values.values()), device=accelerator.device)
    total = cast(torch.Tensor, accelerator.reduce(own, "sum")).tolist()
    return dict(zip(values, total, strict=True))
