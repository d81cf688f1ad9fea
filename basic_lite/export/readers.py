"""What other people's loaders take, as data: read in their public sources at the versions named here.

An export says what a reader would refuse, instead of leaving it to a stack trace on a server.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from basic_lite.models import zoo

GGUF_ARCHITECTURES: dict[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "gemma": "gemma",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""llama.cpp's architecture of a decoder, by `model_type`; its Llama has no sliding window."""

GGUF_FORMATS: tuple[str, ...] = ("f32", "f16", "bf16", "q8_0")
"""Formats that are written here; those of 1 to 6 bits are made of f16 by llama.cpp's own `QUANTIZE`."""

QUANTIZE: str = "llama-quantize"


@dataclass(frozen=True)
class Reader:
    name: str  # of the program
    source: str  # files that were read, at their version
    read_on: str  # day of the reading, ISO
    models: frozenset[str]  # `model_type` of whole folders that it has a class for
    towers: frozenset[str]  # `model_type` of vision towers that it has
    decoders: frozenset[str]  # `model_type` of LLMs that its LLaVA classes run
    strategies: frozenset[str]  # values of `vision_feature_select_strategy` that it takes
    prefixes: tuple[str, ...]  # beginnings of tensor names that it knows


_DECODERS = (
    "llama gemma gemma2 phi3 mistral qwen2 qwen3 gemma3_text ministral3 glm4 granite stablelm cohere2".split()
)
_PREFIXES = ("language_model.model.", "language_model.lm_head.", "vision_tower.", "multi_modal_projector.")
_SAVED = ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector.", "lm_head.")

READERS: tuple[Reader, ...] = (
    # OLMo 2, OLMo 3 and SmolLM3 run there through transformers' own classes, whose decoder LLaVA's forward
    # calls with arguments that it does not have.
    Reader(
        "vLLM",
        "model_executor/models: registry, llava, llava_next and vision of release 0.33.0, 4ba787ec",
        "2026-11-29",
        frozenset({"llava", "llava_next"}),
        frozenset({"clip_vision_model", "siglip_vision_model", "pixtral"}),
        frozenset(_DECODERS),
        frozenset({"class", "default", "full"}),
        (*_PREFIXES, *_SAVED, "image_newline", "model.image_newline"),
    ),
    # It looks its towers up in its own registry, which has no CLIPVisionModel and no SiglipVisionModel, and
    # refuses the strategy "default" while loading: of standard LLaVA folders Pixtral's alone are left.
    Reader(
        "SGLang",
        "srt/models: registry and llava of release 0.5.23",
        "2026-11-29",
        frozenset({"llava"}),
        frozenset({"pixtral"}),
        frozenset({*_DECODERS, "olmo2"}),
        frozenset({"patch", "full", "cls_patch"}),
        _PREFIXES,
    ),
)


def refusals(config: Mapping[str, Any], names: Iterable[str] = ()) -> list[str]:
    """Return one line for each reader that would not load a folder, with its reason."""
    return [
        f"{reader.name} does not load this folder: {reason} ({reader.source}, read on {reader.read_on})"
        for reader in READERS
        if (reason := _refusal(reader, config, names))
    ]


def uncapped(config: Mapping[str, Any]) -> list[str]:
    """Return the line about logits whose soft cap transformers' LLaVA leaves out; none without a cap.

    Args:
        config: content of the folder's `config.json`.
    """
    text = config["text_config"]
    family = zoo.FAMILIES.get(text["model_type"])
    key = None if family is None else family.logit_cap
    if key is None or text.get(key) is None:
        return []
    return [
        f"transformers' LLaVA leaves out the cap of {text[key]:g} on the logits ({key}): greedy answers are "
        "the run's, probabilities and sampled answers are not; readers that run the LLM's own class, such as "
        "vLLM, cap them, and so do chat and eval here. The gap was taken with the cap"
    ]


def _refusal(reader: Reader, config: Mapping[str, Any], names: Iterable[str]) -> str | None:
    text, tower = config["text_config"], config["vision_config"]["model_type"]
    strategy = config.get("vision_feature_select_strategy", "default")
    if config["model_type"] not in reader.models:
        return f"it has no {config['model_type']}, only {', '.join(sorted(reader.models))}"
    if tower not in reader.towers:
        return f"it has no {tower} tower, only {', '.join(sorted(reader.towers))}"
    if strategy not in reader.strategies:
        return f"it takes no vision_feature_select_strategy {strategy!r}"
    if not text.get("architectures"):
        return "text_config names no architectures"
    if text["model_type"] not in reader.decoders:
        return f"its LLaVA does not run {text['model_type']} decoders"
    strange = [name for name in names if not name.startswith(reader.prefixes)]
    return f"it knows no tensor {strange[0]}" if strange else None


def check_gguf(decoder: str, tower: str, activation: str, quantise: str, dtype: str | None) -> None:
    """Raise ValueError, before anything is loaded, if a run cannot become GGUF files."""
    if re.fullmatch(r"(i?q[1-6]|tq[12])_\w+", quantise):
        if shutil.which(QUANTIZE) is None:
            raise ValueError(
                f"{quantise} is made by llama.cpp's own tool, which is not on the PATH: install llama.cpp, "
                "or export with --quantise f16 and run elsewhere "
                f"{QUANTIZE} OUT/model-f16.gguf OUT/model-{quantise}.gguf {quantise.upper()}"
            )
    elif quantise not in GGUF_FORMATS:
        raise ValueError(
            f"--quantise takes {', '.join(GGUF_FORMATS)}, or a format of {QUANTIZE}, not {quantise!r}"
        )
    if dtype is not None:
        raise ValueError("--to gguf takes its format from --quantise; leave --dtype out")
    if decoder not in GGUF_ARCHITECTURES:
        raise ValueError(
            f"{decoder} decoders are not written to GGUF, only {', '.join(GGUF_ARCHITECTURES)}; use --to hf"
        )
    if tower not in ("clip_vision_model", "siglip_vision_model"):
        raise ValueError(f"llama.cpp's LLaVA has CLIP and SigLIP towers, not {tower}; use --to hf")
    if activation not in ("quick_gelu", "gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"llama.cpp's towers have no activation {activation!r}; use --to hf")
    check_installed()


def check_installed() -> None:
    """Raise ValueError if the package gguf is missing, which reads and writes GGUF files."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            "GGUF files need the package gguf, which is not installed here: pip install gguf (in a checkout: "
            'pip install -e ".[gguf]")'
        )
