"""Liger's norms, gated MLPs and rotary embedding for a decoder on a GPU: fewer kernels, fewer bytes kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from basic_lite.memory.sizes import FUSABLE

_GEGLU = ("gemma", "gemma2", "gemma3_text")
_TANH = ("gelu_pytorch_tanh", "gelu_new")
_SILU = ("silu", "swish")


def patch_of(decoder: PreTrainedModel) -> tuple[Callable, dict[str, bool]] | None:
    """Return Liger's function for a decoder and the pieces it shall replace; `None` where there is none.

    Its cross-entropy stays off: ours runs the head on supervised rows alone, and never waits for the device.
    """
    from liger_kernel import transformers as liger

    kind = decoder.config.model_type
    patch = getattr(liger, f"apply_liger_kernel_to_{kind}", None)
    if kind not in FUSABLE or patch is None:
        return None
    rotary = getattr(decoder.config, "rope_parameters", None) or {}
    parts = (getattr(decoder.config, "partial_rotary_factor", None), rotary.get("partial_rotary_factor"))
    whole = all(part in (None, 1.0) for part in parts)
    gate, activations = ("geglu", _TANH) if kind in _GEGLU else ("swiglu", _SILU)
    given = getattr(decoder.config, "hidden_activation", None) or decoder.config.hidden_act
    # Liger's MLPs have one activation each, and put in a model's place of another they do not look.
    pieces = {"rope": whole, "rms_norm": True, gate: given in activations}
    pieces |= {"cross_entropy": False, "fused_linear_cross_entropy": False}
    known = inspect.signature(patch).parameters
    return patch, {name: on for name, on in pieces.items() if name in known}


def _compiles(device: torch.device) -> bool:
    """Whether Triton's kernels run on a GPU, by trying ours; AMD's it has not been tried on."""
    if torch.version.hip:
        return True
    try:
        from basic_lite.method import row_kernel
    except ImportError:
        return False
    return row_kernel.works_on(device)


def fuse(decoder: PreTrainedModel) -> bool:
    """Replace the decoder's norms, MLPs and rotary embedding by Liger's, on a GPU alone; `True` if it did.

    Adapters and 4-bit layers stay where they are: only what stands between them is replaced. Liger also puts
    its functions into transformers' module of that family, for all later models of the process. Where Triton
    cannot compile (no C compiler), nothing is replaced, which is said once.
    """
    embedding: Any = decoder.get_input_embeddings()
    device = embedding.weight.device
    if device.type != "cuda" or not _compiles(device):
        return False
    if (fused := patch_of(decoder)) is None:
        return False
    patch, pieces = fused
    modules: list[nn.Module] = list(decoder.modules())
    patch(model=decoder, **pieces)
    assert len(modules) == len(list(decoder.modules())), "Liger replaced a module that may hold adapters"
    return True
