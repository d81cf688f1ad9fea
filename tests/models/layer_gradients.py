"""Tiny models of every streamlined family, and the gradients of a training pass."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy

import bitsandbytes as bnb
import torch
from tiny import _SIZES, adapted, tiny_batch, tiny_llava
from torch import nn
from transformers import GemmaConfig, LlamaConfig, Phi3Config

from basic_lite.method.attention import causal_only, install
from basic_lite.models.adapters import group_adapters
from basic_lite.models.decoder_layer import streamline
from basic_lite.models.parts import parts_of

EVERY = r".*language_model.*\.([qkvo]_proj|qkv_proj|gate_up_proj|gate_proj|up_proj|down_proj)"
WIDE = _SIZES | {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4, "head_dim": 32}
"""So wide that a group's weights lie in one block, in 4 bits: its products are one."""
WIDE_KINDS = {
    "llama": lambda: LlamaConfig(**WIDE | {"initializer_range": 0.1}),
    "gemma": lambda: GemmaConfig(**WIDE | {"initializer_range": 0.1}),
    "phi3": lambda: Phi3Config(**{k: v for k, v in WIDE.items() if k != "head_dim"}),
}


def quantise(module: nn.Module) -> None:
    """Put 4-bit layers, doubly quantised, in the place of linear ones, PEFT's bases too."""
    for name, child in module.named_children():
        if type(child) is nn.Linear and not name.startswith("default"):
            packed = bnb.nn.Linear4bit(
                child.in_features, child.out_features, child.bias is not None, torch.float32, quant_type="nf4"
            )
            packed.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
            packed.bias = child.bias
            setattr(module, name, packed.to("cpu"))
        else:
            quantise(child)


def dequantise(module: nn.Module) -> None:
    """Put linear layers with the same weights in the place of 4-bit ones."""
    for name, child in module.named_children():
        if isinstance(child, bnb.nn.Linear4bit) and not hasattr(child, "lora_A"):
            weight = bnb.functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
            linear = nn.Linear(*reversed(weight.shape), child.bias is not None)
            linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), child.bias
            setattr(module, name, linear)
        else:
            dequantise(child)


def model_of(decoder: str, stage: int, bits: int = 16) -> nn.Module:
    model = tiny_llava(decoder)
    model = adapted(model, target_modules=EVERY, lora_alpha=7) if stage == 2 else model
    if bits == 4:
        quantise(parts_of(model).decoder.layers)
    install(parts_of(model).decoder)
    return model.train()


def exact(model: nn.Module) -> nn.Module:
    """In fp64, norms by their formula: the classes' own go through fp32 whatever they are given."""
    model = deepcopy(model).double()
    for norm in parts_of(model).decoder.modules():
        if type(norm).__name__.endswith("RMSNorm"):
            shift = 1 if type(norm).__name__.startswith("Gemma") else 0
            epsilon = norm.eps if shift else norm.variance_epsilon

            def forward(x, norm=norm, shift=shift, epsilon=epsilon):
                return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * (norm.weight + shift)

            norm.forward = forward
    return model


def streamlined(model: nn.Module, depth: int = 3) -> nn.Module:
    model = deepcopy(model)
    decoder = parts_of(model).decoder
    group_adapters(decoder.layers)
    assert streamline(decoder) == depth
    return model


def gradients(model: nn.Module, padding: str = "right", half: bool = False) -> dict[str, torch.Tensor]:
    batch = tiny_batch(padding)
    batch["pixel_values"] = batch["pixel_values"].to(next(model.parameters()).dtype)
    decoder = parts_of(model).decoder
    causal = causal_only(decoder, batch["input_ids"].shape[1]) if padding == "right" else nullcontext()
    with torch.autocast("cpu", torch.bfloat16, enabled=half), causal:
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


def error(given: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    assert given.keys() == truth.keys()
    return max(float((given[n].double() - truth[n]).norm() / truth[n].norm()) for n in truth)
