"""Unsloth's LoRA layers in the documented plain step.

Written against its public functions; it has never been run with the real package, which needs a GPU.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.files import one_line

NAME = "Unsloth's LoRA layers, plain"


def why_not(decoder: Any) -> str | None:
    """Return why Unsloth's layers cannot be measured; `None` where they can.

    Only ask when everything else has been measured: its import changes transformers, PEFT and bitsandbytes
    for the rest of the process.
    """
    layer = decoder.layers[0]
    if not (hasattr(layer.self_attn, "q_proj") and hasattr(layer.mlp, "gate_proj")):
        return "query, key and value are one matrix"
    if importlib.util.find_spec("unsloth") is None:
        return "unsloth is not installed"
    try:
        importlib.import_module("unsloth")
    except Exception as error:  # it refuses machines without a GPU it knows, in several ways
        return f"unsloth does not start: {one_line(error)}"
    return None


@contextmanager
def unsloth_layers(decoder: Any) -> Iterator[None]:
    """Let Unsloth's functions run a decoder's adapted layers: query-key-value, output, and the gated MLP.

    They are those that its own models are made of, without a dropout, on transformers' layers.
    """
    kernels = importlib.import_module("unsloth.kernels")
    gelu = decoder.config.model_type.startswith("gemma")
    mlp = kernels.apply_lora_mlp_geglu_approx if gelu else kernels.apply_lora_mlp_swiglu

    def attend(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        projected = kernels.apply_lora_qkv(self, hidden_states)
        query, key, value = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in projected)
        rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
        query, key = rotate(query, key, *position_embeddings)
        run = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        seen, maps = run(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return kernels.apply_lora_o(self, seen.flatten(2)), maps

    modules = [
        (module, function, vars(module).get("forward"))
        for layer in decoder.layers
        for module, function in ((layer.self_attn, attend), (layer.mlp, mlp))
    ]
    for module, function, _ in modules:
        module.forward = MethodType(function, module)
    try:
        yield
    finally:
        for module, _, before in modules:
            vars(module).pop("forward")
            if before is not None:
                module.forward = before
