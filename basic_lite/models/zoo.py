"""The models that are known by name, and the families that any other model must belong to.

One row per LLM and per tower; nothing else in the package branches on a model's name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from basic_lite.data.world.parts import EMBEDDED

"""Parts that ship with the package. A run remembers their names: a folder would differ between machines."""


Bits = Literal[4, 8, 16]
"""Of a decoder's weights: nf4 with double quantisation, LLM.int8, or not quantised."""

RANK: int = 128
"""Of LLaVA-1.5's adapters."""

DROPOUT: float = 0.05
"""In front of LLaVA-1.5's adapters."""


@dataclass(frozen=True)
class Family:
    """What all decoders of one architecture share.

    Attributes:
        model_type: `config.model_type` of transformers.
        template: conversation template for a model that is not in the table and shows none of its own.
        lora_targets: the decoder's linear layers.
    """

    model_type: str
    template: str
    lora_targets: tuple[str, ...]


_SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_JOINED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "vicuna_v1", _SEPARATE),
    "gemma": Family("gemma", "gemma_instruct", _SEPARATE),
    "phi3": Family("phi3", "phi3_instruct", _JOINED),
    "mistral": Family("mistral", "mistral_instruct", _SEPARATE),
}


_NO_ATTENTION = "it has no attention, so nothing says which patches the text looks at"
_IN_THE_ENCODER = "pictures would go into its encoder, and transformers' LLaVA has a decoder alone"
WHY_NOT: dict[str, str] = {
    "gemma2": "it caps its attention scores, which hides which patches the text looks at",
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv"), _NO_ATTENTION),
    **dict.fromkeys(("t5", "bart"), _IN_THE_ENCODER),
}
"""Why architectures that people ask for are no family here; `ablate architecture` tries them."""


@dataclass(frozen=True)
class LLM:
    """One language model.

    Attributes:
        hub_id: where its weights are.
        family: key in `FAMILIES`.
        template: key in `conversation.TEMPLATES`.
        k: supervised layers, half of its decoder layers.
        image_token: vocabulary row that marks a patch: one that no text ever becomes, so that no row is
        added to
            the embedding matrix that `L_sds` runs over. Sentencepiece with byte fallback never emits `<unk>`.
        pad_token: what fills a batch; padding is masked by length, never by this id.
        turn_end: the token that ends an answer.
        tower: name of the tower that it is trained with unless another is asked for.
        bits: of its weights unless other bits are asked for.
    """

    hub_id: str
    family: str
    template: str
    k: int
    image_token: str
    pad_token: str
    turn_end: str
    tower: str = "clip-l-336"
    bits: Bits = 4


TINY = "tiny"
"""The embedded decoder and tower: `--model tiny` runs offline, on data that is drawn on the spot."""

LLMS: dict[str, LLM] = {
    "vicuna-7b": LLM("lmsys/vicuna-7b-v1.5", "llama", "vicuna_v1", 16, "<unk>", "</s>", "</s>"),
    "vicuna-13b": LLM("lmsys/vicuna-13b-v1.5", "llama", "vicuna_v1", 20, "<unk>", "</s>", "</s>"),
    "gemma-2b": LLM(
        "google/gemma-2b-it", "gemma", "gemma_instruct", 9, "<unused0>", "<pad>", "<end_of_turn>"
    ),
    "phi3-mini": LLM(
        "microsoft/Phi-3-mini-4k-instruct",
        "phi3",
        "phi3_instruct",
        16,
        "<|placeholder1|>",
        "<|endoftext|>",
        "<|end|>",
    ),
    "mistral-7b": LLM(
        "mistralai/Mistral-7B-Instruct-v0.2", "mistral", "mistral_instruct", 16, "<unk>", "</s>", "</s>"
    ),
    TINY: LLM("tiny-decoder", "llama", "chatml", 4, "<image>", "<pad>", "<|im_end|>", tower=TINY, bits=16),
}


_WINDOW = {"max_position_embeddings": 4096}
# fmt: off
DECODER_CONFIGS: dict[str, dict[str, Any]] = {
    "vicuna-7b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32_000, "tie_word_embeddings": False, **_WINDOW,
    },
    "vicuna-13b": {
        "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "vocab_size": 32_000, "tie_word_embeddings": False, **_WINDOW,
    },
    "gemma-2b": {
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256_000,
        "tie_word_embeddings": True,
    },
    "phi3-mini": {
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32_064, "tie_word_embeddings": False, **_WINDOW,
    },
    "mistral-7b": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_000,
        "tie_word_embeddings": False, "sliding_window": None,  # v0.2 has no window
    },
}
"""Published configurations of the LLMs above, so far as sizes depend on them: read without transformers."""

TOWER_CONFIGS: dict[str, dict[str, Any]] = {
    "clip-l-336": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    },
    "siglip-so400m-384": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    },
}
"""The same of the vision towers below."""
# fmt: on


@dataclass(frozen=True)
class TowerFamily:
    """What all vision towers of one architecture share.

    Attributes:
        model_type: `config.model_type` of the vision part.
        prefix_tokens: tokens in front of the patches that carry no patch: 1 class token, or none (SigLIP).
    """

    model_type: str
    prefix_tokens: int

    @property
    def select_strategy(self) -> str:
        """LLaVA's name of the rule: `"default"` drops the first token, `"full"` keeps all.

        Dropping "the class token" of a SigLIP, which has none, silently loses a patch (728 for 729).
        """
        return "default" if self.prefix_tokens else "full"


TOWER_FAMILIES: dict[str, TowerFamily] = {
    "clip_vision_model": TowerFamily("clip_vision_model", 1),
    "siglip_vision_model": TowerFamily("siglip_vision_model", 0),
    "dinov2": TowerFamily("dinov2", 1),
}


@dataclass(frozen=True)
class Tower:
    """One vision tower.

    Attributes:
        hub_id: where its weights are.
        family: key in `TOWER_FAMILIES`.
        image_size: side of its square input in pixels.
        patch_size: side of a patch in pixels.
        feature_layer: which hidden states are its features; -2 is LLaVA's.
        published_bytes: of its weight file, which holds a text half too; 0 if it ships with the package.
    """

    hub_id: str
    family: str
    image_size: int
    patch_size: int
    feature_layer: int = -2
    published_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Tokens per image: one per whole patch."""
        return (self.image_size // self.patch_size) ** 2


TOWERS: dict[str, Tower] = {
    "clip-l-336": Tower(  # 576 tokens
        "openai/clip-vit-large-patch14-336", "clip_vision_model", 336, 14, published_bytes=1_710_000_000
    ),
    "siglip-so400m-384": Tower(  # 729 tokens
        "google/siglip-so400m-patch14-384", "siglip_vision_model", 384, 14, published_bytes=3_510_000_000
    ),
    TINY: Tower("tiny-tower", "clip_vision_model", 96, 12),  # 64
}


@dataclass(frozen=True)
class Pace:
    """How a stage is trained unless its options say otherwise.

    Attributes:
        global_batch: rows per optimizer step.
        micro_batch: rows per forward pass.
        learning_rate: peak of the schedule.
        epochs: passes over the data.
        rank: of stage 2's adapters.
        projector_learning_rate: the projector's own in stage 2.
    """

    global_batch: int
    micro_batch: int
    learning_rate: float
    epochs: float = 1.0
    rank: int = RANK
    projector_learning_rate: float = 2e-5

    def rows_per_pass(self, global_batch: int | None = None) -> int:
        """Return `micro_batch`, or the next smaller one that divides another global batch than this pace's.

        Args:
            global_batch: rows per optimizer step, of one process or of all; `None` for `self.global_batch`.
        """
        share = (self.global_batch if global_batch is None else global_batch) // int(
            os.environ.get("WORLD_SIZE", 1)
        )
        return next((rows for rows in range(self.micro_batch, 1, -1) if share % rows == 0), 1)


LLAVA = {1: Pace(256, 8, 1e-3), 2: Pace(128, 4, 2e-4)}
# Few rows and a narrow decoder: LLaVA's pace would be six steps.
_EMBEDDED = {1: Pace(16, 16, 2e-3, 2.0), 2: Pace(16, 16, 2e-3, 1.0, rank=16, projector_learning_rate=5e-4)}


def bits_of(model: str, llm: str | None) -> Bits:
    """Return a decoder's bits by default: 4, but the embedded one is too narrow for that."""
    known = LLMS.get(model) if llm is None else None
    return (known or LLM).bits


def pace_of(source: str, stage: int) -> Pace:
    """Return the pace of a stage: LLaVA-1.5's, or the embedded world's for its decoder."""
    return (_EMBEDDED if source in EMBEDDED else LLAVA)[stage]


def family_of(model_type: str, source: str) -> Family:
    """Return the decoder family of `model_type`.

    Raises:
        ValueError: If it is not supported; says what is.
    """
    if model_type not in FAMILIES:
        reason = f", and {WHY_NOT[model_type]}" if model_type in WHY_NOT else ""
        raise ValueError(
            f"{source} is a {model_type!r} model{reason}; supported decoders are of type "
            f"{', '.join(FAMILIES)} (by name: {', '.join(LLMS)})"
        )
    return FAMILIES[model_type]


def tower_family_of(model_type: str, source: str) -> TowerFamily:
    """Return the tower family of `model_type`.

    Raises:
        ValueError: If it is not supported; says what is.
    """
    if model_type not in TOWER_FAMILIES:
        raise ValueError(
            f"{source} is a {model_type!r} model; supported vision towers are of type "
            f"{', '.join(TOWER_FAMILIES)} (by name: {', '.join(TOWERS)})"
        )
    return TOWER_FAMILIES[model_type]
