"""The decoder's layers cut into pieces, one for each process: `accelerate launch --use_fsdp`.

The layers, with their adapters, are what fills a card. torch's `fully_shard` is given each of them alone:
a layer is whole on a process only while it runs, and what is trained of it, with its gradients and Adam's
moments, never is. Embeddings, head, norm, projector and tower stay whole everywhere, so all that BASIC
reads outside a layer's own forward pass (`E` in `L_sds`, the supervised head) is a plain tensor, and the
capture, which lives on hooks and on states, sees nothing of the cut.

A layer's gradients come back as their mean over processes, as `processes.average_gradients` makes it for
what is whole. Files hold whole tensors: a checkpoint does not say how many processes wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from itertools import chain

import torch
from torch import nn

from basic_lite.capture import parts_of


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether only a piece of a tensor is here."""
    return hasattr(tensor, "to_local")


def piece(tensor: torch.Tensor) -> torch.Tensor:
    """Return what is here of a tensor: its first dimension's share, possibly empty, or all of it."""
    return tensor.to_local() if is_cut(tensor) else tensor


def place_around(model: nn.Module, device: torch.device | str) -> None:
    """Move everything but the decoder's layers, which `shard` takes over one at a time."""
    layers = {id(tensor) for tensor in parts_of(model).decoder.layers.parameters()}
    for tensor in chain(model.parameters(), model.buffers()):
        if id(tensor) not in layers:
            tensor.data = tensor.data.to(device)


def shard(model: nn.Module, device: torch.device | str) -> None:
    """Cut the decoder's layers over all processes; whoever holds their parameters must fetch them again.

    Args:
        model: a LLaVA with its trainable set attached. Its layers may still be on the host, the same on all
            processes: no more than one of them is whole on the device at a time.
        device: of this process.

    Raises:
        ValueError: If torch is too old to leave a part of a module whole.
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
    for layer in decoder.layers:
        for module in layer.modules():  # bitsandbytes looks for the scales here when the weight has lost them
            if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
                module.quant_state = module.weight.quant_state
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The decoder itself owns no piece. It makes one chain of the layers, of which the next one is fetched
    # while one computes.
    fully_shard(decoder, mesh=mesh, ignored_params={p for p in decoder.parameters() if not is_cut(p)})


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale gradients down to a norm of at most `largest`, the same on all processes.

    Args:
        parameters: some cut, some whole; the gradients of whole ones are the same everywhere.
        largest: the norm; infinity changes nothing.

    Returns:
        The norm before, 0-dim, of all gradients together.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    here = [piece(gradient) for gradient in gradients if is_cut(gradient)]
    whole = [gradient for gradient in gradients if not is_cut(gradient)]
    squares = sum((g.float().square().sum() for g in here), start=_zero(gradients))
    if here:
        torch.distributed.all_reduce(squares)
    norm = sum((g.float().square().sum() for g in whole), start=squares).sqrt()
    if largest < float("inf"):
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in here + whole:
            gradient.mul_(factor)
    return norm


def _zero(like: list[torch.Tensor]) -> torch.Tensor:
    return torch.zeros((), device=like[0].device if like else None)


def gather(model: nn.Module, keep: bool) -> dict[str, torch.Tensor] | None:
    """Put the trained parameters together, on the host; every process has to take part.

    Args:
        model: cut or not.
        keep: whether this process wants them; for the others the result is empty.

    Returns:
        Whole tensors by name, or `None` where nothing trained is cut.
    """
    named = [
        (name, p) for name, p in model.named_parameters() if p.requires_grad or "modules_to_save" in name
    ]
    trained = {name: p.detach() for name, p in named}  # and a frozen projector, which is saved with adapters
    if not any(is_cut(parameter) for parameter in trained.values()):
        return None
    found = {}
    for name, parameter in trained.items():
        whole = parameter.full_tensor() if is_cut(parameter) else parameter
        if keep:
            found[name] = whole.cpu()
    return found


@contextmanager
def whole_moments(optimizer: torch.optim.Optimizer, keep: bool) -> Iterator[None]:
    """Let an optimizer's state hold whole tensors on the host inside the block, to be written.

    Args:
        optimizer: of parameters that are cut or not; every process has to take part.
        keep: whether this process writes them; elsewhere the state stays in pieces.
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
        for key, value in state.items() if is_cut(parameter) else ():
            if value.shape == parameter.shape:
                state[key] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
