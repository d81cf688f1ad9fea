"""Print what one and two decoder layers keep for backward, for each named `MODEL|CASE`, as JSON lines.

In a process of its own that ends without tidying up, for the reason given in `measure_steps`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import replace

import torch
from fake_models import fake_gpu, fake_model, tensors_of
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, PretrainedConfig

from basic_lite.memory.activations import DecoderSetup
from basic_lite.method.attention import causal_only, install
from basic_lite.models.parts import parts_of

NAMES = ("vicuna-7b", "gemma-2b", "phi3-mini", "mistral-7b")
ROWS, TOKENS = 2, 640
_SIZES = {
    **{"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 2},
    **{"vocab_size": 1024, "tie_word_embeddings": False},
}
_WIDE, _NARROW = {"head_dim": 96}, {"sliding_window": 256}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", _WIDE),
    "smollm3": ("smollm3", {}),
    "gemma2": ("gemma2", _WIDE | {"sliding_window": 1024}),
    "gemma2, window passed": ("gemma2", _WIDE | _NARROW),
    "gemma3_text": ("gemma3_text", _WIDE | {"sliding_window": 1024}),
    "gemma3_text, window passed": ("gemma3_text", _WIDE | _NARROW),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 1024}),
    "olmo3, window passed": ("olmo3", _NARROW),
    "ministral3": ("ministral3", _WIDE),
    "glm4": ("glm4", _WIDE),
    "granite": ("granite", {"residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "stablelm": ("stablelm", {}),
    "cohere2": ("cohere2", _WIDE | {"sliding_window": 1024}),
    "cohere2, window passed": ("cohere2", _WIDE | _NARROW),
    "phi4-mini": ("phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
}
"""Small decoders of the later families: heads wider than the width divided by their number, windows that rows
pass or not, a part of each head rotated. Layers are of one kind: each kind keeps a rotary embedding and a
mask for all its layers."""
WHOLE = "stage 1, 4 bits, fused"
"""The case in which all layers of the first model are counted."""


def config_of(name: str, layers: int) -> PretrainedConfig | None:
    """Return the configuration of one of the `FAMILIES`; `None` for a model of the zoo."""
    if name not in FAMILIES:
        return None
    family, more = FAMILIES[name]
    settings: dict[str, object] = {**_SIZES, **more, "num_hidden_layers": layers}
    if "sliding_window" in more:
        settings["layer_types"] = ["sliding_attention"] * layers
    return AutoConfig.for_model(family, **settings)


def kept(name: str, setup: DecoderSetup, layers: int, tokens: int = TOKENS) -> int:
    """Bytes that autograd keeps after a forward pass of the decoder, weights not counted."""
    with fake_gpu():
        model = fake_model(
            NAMES[0] if name in FAMILIES else name, setup, layers, config_of(name, layers)
        ).model
        decoder, found = parts_of(model).decoder, {}
        known = {tensor.untyped_storage()._cdata for tensor in tensors_of(model)}
        install(decoder)
        dtype = torch.float32 if setup.stream == 4 else torch.bfloat16
        embeds = torch.empty(ROWS, tokens, decoder.config.hidden_size, dtype=dtype, requires_grad=True)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                found[storage._cdata] = storage
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=setup.half)
        with saved_tensors_hooks(keep, lambda kept: kept), autocast, causal_only(decoder, tokens):
            decoder(inputs_embeds=embeds, use_cache=False)
        return sum(storage.nbytes() for storage in found.values())


CASES = {
    "stage 1, 4 bits": DecoderSetup(4, "projector"),
    "stage 1, 16 bits": DecoderSetup(16, "projector"),
    "stage 1, 16 bits, fp32": DecoderSetup(16, "projector", half=False),
    "stage 2, adapters": DecoderSetup(4, "adapters", rank=128, dropout=0.05),
    "stage 2, adapters, rank 16": DecoderSetup(4, "adapters", rank=16, dropout=0.05),
    "stage 2, adapters, no dropout": DecoderSetup(4, "adapters", rank=128, dropout=0.0),
    "stage 2, whole decoder": DecoderSetup(16, "decoder"),
    "stage 2, whole decoder, fp32": DecoderSetup(16, "decoder", half=False),
}
CASES |= {
    f"{case}, fused": replace(setup, fused=True)
    for case, setup in CASES.items()
    if case != "stage 2, adapters, rank 16"
}


if __name__ == "__main__":
    gc.disable()
    for name, case in (argument.split("|") for argument in sys.argv[1:]):
        print(json.dumps([name, case, kept(name, CASES[case], 1), kept(name, CASES[case], 2)]), flush=True)
    setup = CASES[WHOLE]
    if any(argument.startswith(NAMES[0]) for argument in sys.argv[1:]):
        print(
            json.dumps(["all layers", WHOLE, kept(NAMES[0], setup, 1), kept(NAMES[0], setup, 32)]), flush=True
        )
    sys.stdout.flush()
    os._exit(0)
