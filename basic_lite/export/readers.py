"""What other people's loaders take, as data: read in their public sources at the versions named here.

An export says what a reader would refuse, instead of leaving it to a stack trace on a server.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GGUF_ARCHITECTURES: dict[str, str] = {"llama": "llama", "mistral": "llama", "gemma": "gemma", "phi3": "phi3"}
"""llama.cpp's architecture of a decoder, by `model_type`; its Llama has no sliding window."""

GGUF_FORMATS: tuple[str, ...] = ("f32", "f16", "bf16", "q8_0")
"""Formats that are written here; those of 2 to 6 bits are made by llama.cpp's own llama-quantize."""


@dataclass(frozen=True)
class Reader:
    """A program that loads a standard LLaVA folder.

    Attributes:
        name: of the program.
        source: file that was read, at its commit.
        read_on: day of the reading, ISO.
        towers: `model_type` of vision towers that it has.
        strategies: values of `vision_feature_select_strategy` that it takes.
        prefixes: beginnings of tensor names that it knows.
        keys: of `config.json` that it needs.
    """

    name: str
    source: str
    read_on: str
    towers: frozenset[str]
    strategies: frozenset[str]
    prefixes: tuple[str, ...]
    keys: tuple[str, ...]


_PREFIXES = ("language_model.model.", "language_model.lm_head.", "vision_tower.", "multi_modal_projector.")
_KEYS = ("text_config", "vision_config", "image_token_index", "vision_feature_layer", "projector_hidden_act")

READERS: tuple[Reader, ...] = (
    Reader(
        "vLLM",
        "vllm/model_executor/models/llava.py at 35d3c24b",
        "2026-11-28",
        frozenset({"clip_vision_model", "siglip_vision_model", "pixtral"}),
        frozenset({"default", "full"}),
        _PREFIXES,
        (*_KEYS, "multimodal_projector_bias", "vision_feature_select_strategy"),
    ),
    # It looks its towers up in its own registry, which has no CLIPVisionModel and no SiglipVisionModel, and
    # refuses the strategy "default" while loading: of standard LLaVA folders Pixtral's alone are left.
    Reader(
        "SGLang",
        "python/sglang/srt/models/llava.py of release 0.5.23",
        "2026-11-29",
        frozenset({"pixtral"}),
        frozenset({"patch", "full", "cls_patch"}),
        _PREFIXES,
        _KEYS,
    ),
)


def refusals(config: Mapping[str, Any], names: Iterable[str] = ()) -> list[str]:
    """Return one line for each reader that would not load a folder, with its reason.

    Args:
        config: content of the folder's `config.json`.
        names: of the folder's tensors.
    """
    if config.get("model_type") == "llava_next":
        return ["a LLaVA-NeXT folder: transformers reads it; what other readers do with it was not looked up"]
    lines = []
    for reader in READERS:
        reason = _refusal(reader, config, names)
        if reason:
            lines.append(f"{reader.name} does not load this folder: {reason} ({reader.source})")
    return lines


def _refusal(reader: Reader, config: Mapping[str, Any], names: Iterable[str]) -> str | None:
    missing = [key for key in reader.keys if config.get(key) is None]
    if missing:
        return f"config.json lacks {', '.join(missing)}"
    tower, strategy = config["vision_config"]["model_type"], config["vision_feature_select_strategy"]
    if tower not in reader.towers:
        return f"it has no {tower} tower, only {', '.join(sorted(reader.towers))}"
    if strategy not in reader.strategies:
        return f"it takes no vision_feature_select_strategy {strategy!r}"
    if not config["text_config"].get("architectures"):
        return "text_config names no architectures"
    strange = [name for name in names if not name.startswith(reader.prefixes)]
    return f"it knows no tensor {strange[0]}" if strange else None


def check_gguf(decoder: str, tower: str, activation: str, quantise: str | None, dtype: str | None) -> None:
    """Look whether a run can become GGUF files, before anything is loaded.

    Args:
        decoder: `model_type` of the LLM.
        tower: `model_type` of the vision tower.
        activation: of the tower.
        quantise: format of the matrices.
        dtype: `--dtype`, which is not for GGUF.

    Raises:
        ValueError: In one line.
    """
    if quantise not in GGUF_FORMATS:
        raise ValueError(
            f"--quantise {quantise} is llama.cpp's own work: export with --quantise f16, then run "
            f"llama-quantize OUT/model-f16.gguf OUT/model-{quantise}.gguf {str(quantise).upper()} "
            f"(written here: {', '.join(GGUF_FORMATS)})"
        )
    if dtype is not None:
        raise ValueError("--to gguf takes its format from --quantise; leave --dtype out")
    if decoder not in GGUF_ARCHITECTURES:
        raise ValueError(
            f"no {decoder} is written to GGUF here, only {', '.join(GGUF_ARCHITECTURES)}; use --to hf"
        )
    if tower not in ("clip_vision_model", "siglip_vision_model"):
        raise ValueError(f"llama.cpp's LLaVA has CLIP and SigLIP towers, no {tower}; use --to hf")
    if activation not in ("quick_gelu", "gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"llama.cpp's towers have no activation {activation!r}; use --to hf")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            "--to gguf needs the package gguf, which is not installed here: pip install gguf (in a checkout: "
            'pip install -e ".[gguf]")'
        )
