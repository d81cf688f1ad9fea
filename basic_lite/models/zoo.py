"""The models that are known by name, and the families that any other model must belong to.

One row per LLM and per tower; nothing else in the package branches on a model's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from basic_lite.data.world.parts import EMBEDDED

Row = TypeVar("Row")

Bits = Literal[4, 8, 16]
"""Of a decoder's weights: nf4 with double quantisation, LLM.int8, or not quantised."""

RANK: int = 128
"""Of LLaVA-1.5's adapters."""

DROPOUT: float = 0.05
"""In front of LLaVA-1.5's adapters."""


@dataclass(frozen=True)
class Family:
    """What all decoders of one architecture share."""

    model_type: str  # `config.model_type` of transformers
    template: str  # conversation template for a model that is not in the table and shows none of its own
    lora_targets: tuple[str, ...]  # the decoder's linear layers
    norms: int = 2  # of the residual stream, per layer
    head_norms: bool = False  # query and key are normalised, too
    biases: bool = False  # query, key and value have them
    # Key of the configuration by which its own class multiplies the logits, and the exponent; transformers'
    # LLaVA does not, so the last norm's weight takes it in (`decoder.fold_scales`)
    head_scale: tuple[str, int] | None = None
    # Key of the configuration that caps the attention's scores (`models.softcap`)
    attention_cap: str | None = None
    logit_cap: str | None = None  # the same of the logits, which transformers' LLaVA does not cap


_SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_JOINED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "vicuna_v1", _SEPARATE),
    "gemma": Family("gemma", "gemma_instruct", _SEPARATE),
    "gemma2": Family(
        "gemma2",
        "gemma_instruct",
        _SEPARATE,
        norms=4,
        attention_cap="attn_logit_softcapping",
        logit_cap="final_logit_softcapping",
    ),
    "phi3": Family("phi3", "phi3_instruct", _JOINED),
    "mistral": Family("mistral", "mistral_instruct", _SEPARATE),
    "qwen2": Family("qwen2", "qwen2_5", _SEPARATE, biases=True),
    "qwen3": Family("qwen3", "qwen3", _SEPARATE, head_norms=True),
    "smollm3": Family("smollm3", "smollm3", _SEPARATE),
    "gemma3_text": Family("gemma3_text", "gemma_instruct", _SEPARATE, norms=4, head_norms=True),
    "olmo2": Family("olmo2", "olmo2", _SEPARATE, head_norms=True),
    "olmo3": Family("olmo3", "olmo3", _SEPARATE, head_norms=True),
    "ministral3": Family("ministral3", "mistral_v7", _SEPARATE),
    "glm4": Family("glm4", "glm4", (*_SEPARATE[:4], "gate_up_proj", "down_proj"), norms=4),
    "granite": Family("granite", "granite", _SEPARATE, head_scale=("logits_scaling", -1)),
    "stablelm": Family("stablelm", "stablelm", _SEPARATE),
    "cohere2": Family("cohere2", "cohere", _SEPARATE, norms=1, head_scale=("logit_scale", 1)),
}


_NO_ATTENTION = "it has no attention, so nothing says which patches the text looks at"
_IN_THE_ENCODER = "pictures would go into its encoder, and transformers' LLaVA has a decoder alone"
_NO_CHAT = "it was published as a base model alone, without a form of conversation to train in"
_EXPERTS = "its experts are stacked tensors, which neither 4-bit layers nor adapters reach"
_HYBRID = "most of its layers are a recurrence without attention weights, which was not made right here yet"
_NEEDS_IDS = "its layers look at the token ids, which transformers' LLaVA does not hand on"
_TWO_SIDED = "it is a vision-language model: give a text-only checkpoint of its language model"
WHY_NOT: dict[str, str] = {
    "vaultgemma": _NO_CHAT,
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv"), _NO_ATTENTION),
    **dict.fromkeys(("t5", "bart"), _IN_THE_ENCODER),
    **dict.fromkeys(
        "mixtral olmoe phimoe qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 granitemoe glm4_moe ernie4_5_moe "
        "hunyuan_v1_moe gpt_oss llama4 llama4_text qwen3_vl_moe".split(),
        _EXPERTS,
    ),
    **dict.fromkeys(
        "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe lfm2 lfm2_moe nemotron_h jamba bamba falcon_h1 zamba2 "
        "granitemoehybrid minimax recurrent_gemma".split(),
        _HYBRID,
    ),
    **dict.fromkeys("gemma3n gemma3n_text gemma4 gemma4_text".split(), _NEEDS_IDS),
    **dict.fromkeys(
        "gemma3 mistral3 qwen2_vl qwen2_5_vl qwen3_vl llava llava_next llava_onevision mllama paligemma "
        "smolvlm idefics3 internvl phi4_multimodal".split(),
        _TWO_SIDED,
    ),
}
"""Why architectures that people ask for are no family here; `ablate architecture` tries the oldest."""


@dataclass(frozen=True)
class LLM:
    hub_id: str  # where its weights are
    family: str  # key in `FAMILIES`
    template: str  # key in `conversation.TEMPLATES`
    # Vocabulary row that marks a patch: one that no text ever becomes, so that no row is added to the
    # embedding matrix that `L_sds` runs over. Sentencepiece with byte fallback never emits `<unk>`. `None`: a
    # reserved token, or a padded row of the matrix (`llava.find_image_token`)
    image_token: str | None
    pad_token: str  # what fills a batch; padding is masked by length, never by this id
    tower: str = "clip-l-336"  # name of the tower that it is trained with unless another is asked for
    bits: Bits = 4  # of its weights unless other bits are asked for
    licence: str = "Apache 2.0"  # of its weights, as the hub's page names it
    gated: bool = False  # the hub asks for an account that has accepted it


TINY = "tiny"
"""The embedded decoder and tower: `--model tiny` runs offline, on data that is drawn on the spot."""

# fmt: off
_LLAMA3 = ("<|reserved_special_token_0|>", "<|finetune_right_pad_id|>")
_QWEN = ("<|image_pad|>", "<|endoftext|>")
_SMOLLM2 = ("<reponame>", "<|endoftext|>")
_GEMMA = ("<unused0>", "<pad>")
_LLAMA2 = ("<unk>", "</s>")
_META31 = {"licence": "Llama 3.1 licence", "gated": True}
_META32 = {"licence": "Llama 3.2 licence", "gated": True}
_GOOGLE = {"licence": "Gemma terms", "gated": True}

LLMS: dict[str, LLM] = {
    "vicuna-7b": LLM("lmsys/vicuna-7b-v1.5", "llama", "vicuna_v1", *_LLAMA2, licence="Llama 2 licence"),
    "vicuna-13b": LLM("lmsys/vicuna-13b-v1.5", "llama", "vicuna_v1", *_LLAMA2, licence="Llama 2 licence"),
    "gemma-2b": LLM("google/gemma-2b-it", "gemma", "gemma_instruct", *_GEMMA, **_GOOGLE),
    "phi3-mini": LLM(
        "microsoft/Phi-3-mini-4k-instruct", "phi3", "phi3_instruct", "<|placeholder1|>", "<|endoftext|>",
        licence="MIT",
    ),
    "mistral-7b": LLM(
        "mistralai/Mistral-7B-Instruct-v0.2", "mistral", "mistral_instruct", *_LLAMA2, gated=True
    ),
    "llama3.2-1b": LLM("meta-llama/Llama-3.2-1B-Instruct", "llama", "llama3_1", *_LLAMA3, **_META32),
    "llama3.2-3b": LLM("meta-llama/Llama-3.2-3B-Instruct", "llama", "llama3_1", *_LLAMA3, **_META32),
    "llama3.1-8b": LLM("meta-llama/Llama-3.1-8B-Instruct", "llama", "llama3_1", *_LLAMA3, **_META31),
    "qwen2.5-0.5b": LLM("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", "qwen2_5", *_QWEN),
    "qwen2.5-1.5b": LLM("Qwen/Qwen2.5-1.5B-Instruct", "qwen2", "qwen2_5", *_QWEN),
    "qwen2.5-3b": LLM(
        "Qwen/Qwen2.5-3B-Instruct", "qwen2", "qwen2_5", *_QWEN, licence="Qwen research licence"
    ),
    "qwen2.5-7b": LLM("Qwen/Qwen2.5-7B-Instruct", "qwen2", "qwen2_5", *_QWEN),
    "qwen3-0.6b": LLM("Qwen/Qwen3-0.6B", "qwen3", "qwen3", *_QWEN),
    "qwen3-1.7b": LLM("Qwen/Qwen3-1.7B", "qwen3", "qwen3", *_QWEN),
    "qwen3-4b": LLM("Qwen/Qwen3-4B", "qwen3", "qwen3", *_QWEN),
    "qwen3-8b": LLM("Qwen/Qwen3-8B", "qwen3", "qwen3", *_QWEN),
    "gemma2-2b": LLM("google/gemma-2-2b-it", "gemma2", "gemma_instruct", *_GEMMA, **_GOOGLE),
    "gemma3-270m": LLM("google/gemma-3-270m-it", "gemma3_text", "gemma_instruct", *_GEMMA, **_GOOGLE),
    "gemma3-1b": LLM("google/gemma-3-1b-it", "gemma3_text", "gemma_instruct", *_GEMMA, **_GOOGLE),
    "smollm2-135m": LLM("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", "smollm2", *_SMOLLM2),
    "smollm2-360m": LLM("HuggingFaceTB/SmolLM2-360M-Instruct", "llama", "smollm2", *_SMOLLM2),
    "smollm2-1.7b": LLM("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama", "smollm2", *_SMOLLM2),
    "smollm3-3b": LLM("HuggingFaceTB/SmolLM3-3B", "smollm3", "smollm3", None, "<|endoftext|>"),
    "olmo2-1b": LLM("allenai/OLMo-2-0425-1B-Instruct", "olmo2", "olmo2", None, "<|pad|>"),
    "olmo2-7b": LLM("allenai/OLMo-2-1124-7B-Instruct", "olmo2", "olmo2", None, "<|pad|>"),
    "phi4-mini": LLM(
        "microsoft/Phi-4-mini-instruct", "phi3", "phi4_mini", None, "<|endoftext|>", licence="MIT"
    ),
    "mistral-7b-v0.3": LLM(
        "mistralai/Mistral-7B-Instruct-v0.3", "mistral", "mistral_v3", *_LLAMA2, gated=True
    ),
    TINY: LLM("tiny-decoder", "llama", "chatml", "<image>", "<pad>", tower=TINY, bits=16),
}
"""Hub ids, token names, licences and gates as on the hub's pages; this package's README says what of them was
confirmed, and by which source."""
# fmt: on


def _sizes(
    model_type: str, width: int, inner: int, depth: int, heads: int, kv_heads: int, vocabulary: int,
    *, tied: bool = True, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": model_type, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary, "tie_word_embeddings": tied, **more,
    }  # fmt: skip


_WINDOW = {"max_position_embeddings": 4096}
# fmt: off
DECODER_CONFIGS: dict[str, dict[str, Any]] = {
    "vicuna-7b": _sizes("llama", 4096, 11008, 32, 32, 32, 32_000, tied=False, **_WINDOW),
    "vicuna-13b": _sizes("llama", 5120, 13824, 40, 40, 40, 32_000, tied=False, **_WINDOW),
    "gemma-2b": _sizes("gemma", 2048, 16384, 18, 8, 1, 256_000, head_dim=256),
    "phi3-mini": _sizes("phi3", 3072, 8192, 32, 32, 32, 32_064, tied=False, **_WINDOW),
    # v0.2 has no window
    "mistral-7b": _sizes("mistral", 4096, 14336, 32, 32, 8, 32_000, tied=False, sliding_window=None),
    "llama3.2-1b": _sizes("llama", 2048, 8192, 16, 32, 8, 128_256, head_dim=64),
    "llama3.2-3b": _sizes("llama", 3072, 8192, 28, 24, 8, 128_256, head_dim=128),
    "llama3.1-8b": _sizes("llama", 4096, 14336, 32, 32, 8, 128_256, tied=False),
    "qwen2.5-0.5b": _sizes("qwen2", 896, 4864, 24, 14, 2, 151_936),
    "qwen2.5-1.5b": _sizes("qwen2", 1536, 8960, 28, 12, 2, 151_936),
    "qwen2.5-3b": _sizes("qwen2", 2048, 11008, 36, 16, 2, 151_936),
    "qwen2.5-7b": _sizes("qwen2", 3584, 18944, 28, 28, 4, 152_064, tied=False),
    "qwen3-0.6b": _sizes("qwen3", 1024, 3072, 28, 16, 8, 151_936, head_dim=128),
    "qwen3-1.7b": _sizes("qwen3", 2048, 6144, 28, 16, 8, 151_936, head_dim=128),
    "qwen3-4b": _sizes("qwen3", 2560, 9728, 36, 32, 8, 151_936, head_dim=128),
    "qwen3-8b": _sizes("qwen3", 4096, 12288, 36, 32, 8, 151_936, head_dim=128, tied=False),
    "gemma2-2b": _sizes("gemma2", 2304, 9216, 26, 8, 4, 256_000, head_dim=256, sliding_window=4096),
    "gemma3-270m": _sizes("gemma3_text", 640, 2048, 18, 4, 1, 262_144, head_dim=256, sliding_window=512),
    "gemma3-1b": _sizes("gemma3_text", 1152, 6912, 26, 4, 1, 262_144, head_dim=256, sliding_window=512),
    "smollm2-135m": _sizes("llama", 576, 1536, 30, 9, 3, 49_152),
    "smollm2-360m": _sizes("llama", 960, 2560, 32, 15, 5, 49_152),
    "smollm2-1.7b": _sizes("llama", 2048, 8192, 24, 32, 32, 49_152),
    "smollm3-3b": _sizes("smollm3", 2048, 11008, 36, 16, 4, 128_256),
    "olmo2-1b": _sizes("olmo2", 2048, 8192, 16, 16, 16, 100_352, tied=False),
    "olmo2-7b": _sizes("olmo2", 4096, 11008, 32, 32, 32, 100_352, tied=False),
    "phi4-mini": _sizes("phi3", 3072, 8192, 32, 24, 8, 200_064),
    "mistral-7b-v0.3": _sizes("mistral", 4096, 14336, 32, 32, 8, 32_768, tied=False, sliding_window=None),
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
_SO400M, _BASE = TOWER_CONFIGS["siglip-so400m-384"], {
    "model_type": "siglip_vision_model", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
}
TOWER_CONFIGS |= {
    "clip-l-224": TOWER_CONFIGS["clip-l-336"] | {"image_size": 224},
    "siglip-base-224": _BASE,
    "siglip2-base-224": _BASE,
    "siglip2-so400m-384": _SO400M,
    "siglip2-so400m-512": _SO400M | {"image_size": 512, "patch_size": 16},
}
"""The same of the vision towers below."""
# fmt: on


@dataclass(frozen=True)
class TowerFamily:
    """What all vision towers of one architecture share."""

    model_type: str  # `config.model_type` of the vision part
    # Tokens in front of the patches that carry no patch: 1 class token, or none (SigLIP). Registers, which
    # come after it, are counted by the configuration (`registers_of`)
    prefix_tokens: int
    # Takes another image size as it is: its positions are rotary, or interpolated by the class
    any_size: bool = False

    @property
    def select_strategy(self) -> Literal["default", "full"]:
        """LLaVA's name of the rule: `"default"` drops the first token, `"full"` keeps all.

        Dropping "the class token" of a SigLIP, which has none, silently loses a patch (728 for 729).
        """
        return "default" if self.prefix_tokens else "full"


TOWER_FAMILIES: dict[str, TowerFamily] = {
    "clip_vision_model": TowerFamily("clip_vision_model", 1),
    "siglip_vision_model": TowerFamily("siglip_vision_model", 0),
    "dinov2": TowerFamily("dinov2", 1, any_size=True),
    "dinov2_with_registers": TowerFamily("dinov2_with_registers", 1, any_size=True),
    "dinov3_vit": TowerFamily("dinov3_vit", 1, any_size=True),
    "aimv2_vision_model": TowerFamily("aimv2_vision_model", 0),
    "mlcd_vision_model": TowerFamily("mlcd_vision_model", 1, any_size=True),
}

WHY_NO_TOWER: dict[str, str] = {
    "siglip2": "NaFlex takes pictures of any shape; the SigLIP 2 checkpoints of one resolution work",
    **dict.fromkeys(("convnext", "dinov3_convnext"), "its features are maps of several scales, not tokens"),
}
"""Why vision towers that people ask for are no family here."""


def registers_of(config: Any) -> int:
    """Return how many registers a vision tower has between its class token and its patches."""
    return getattr(config, "num_register_tokens", 0) or 0


@dataclass(frozen=True)
class Tower:
    hub_id: str  # where its weights are
    family: str  # key in `TOWER_FAMILIES`
    image_size: int  # side of its square input in pixels
    patch_size: int  # side of a patch in pixels
    feature_layer: int = -2  # which hidden states are its features; -2 is LLaVA's
    # Of its weight file, which holds a text half too; 0 if it ships with the package
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
    "clip-l-224": Tower("openai/clip-vit-large-patch14", "clip_vision_model", 224, 14),  # 256
    "siglip-base-224": Tower("google/siglip-base-patch16-224", "siglip_vision_model", 224, 16),  # 196
    "siglip2-base-224": Tower("google/siglip2-base-patch16-224", "siglip_vision_model", 224, 16),  # 196
    "siglip2-so400m-384": Tower("google/siglip2-so400m-patch14-384", "siglip_vision_model", 384, 14),  # 729
    "siglip2-so400m-512": Tower("google/siglip2-so400m-patch16-512", "siglip_vision_model", 512, 16),  # 1024
    TINY: Tower("tiny-tower", "clip_vision_model", 96, 12),  # 64
}


@dataclass(frozen=True)
class StageDefaults:
    """How a stage is trained unless its options say otherwise."""

    global_batch: int  # rows per optimizer step
    micro_batch: int  # rows per forward pass
    learning_rate: float  # peak of the schedule
    epochs: float = 1.0  # passes over the data
    rank: int = RANK  # of stage 2's adapters
    projector_learning_rate: float = 2e-5  # the projector's own in stage 2
    tower_learning_rate: float = 2e-6  # of a vision tower that stage 2 trains, LLaVA-NeXT's
    tower_lora_learning_rate: float = 2e-5  # of adapters in it: ten times as much, as of the decoder's

    def rows_per_pass(self, global_batch: int | None = None) -> int:
        """Return `micro_batch`, or the next smaller one that divides `global_batch` (`None`: the default)."""
        share = (self.global_batch if global_batch is None else global_batch) // int(
            os.environ.get("WORLD_SIZE", 1)
        )
        return next((rows for rows in range(self.micro_batch, 1, -1) if share % rows == 0), 1)


LLAVA = {1: StageDefaults(256, 8, 1e-3), 2: StageDefaults(128, 4, 2e-4)}
# Few rows and a narrow decoder: LLaVA's batch would leave six steps.
_EMBEDDED = {
    1: StageDefaults(16, 16, 2e-3, 2.0),
    2: StageDefaults(16, 16, 2e-3, 1.0, rank=16, projector_learning_rate=5e-4),
}


def bits_of(model: str, llm: str | None) -> Bits:
    """Return a decoder's bits by default: 4, but the embedded one is too narrow for that."""
    known = LLMS.get(model) if llm is None else None
    return (known or LLM).bits


def stage_defaults(source: str, stage: int) -> StageDefaults:
    """Return a stage's defaults: LLaVA-1.5's, or the embedded world's for its decoder."""
    return (_EMBEDDED if source in EMBEDDED else LLAVA)[stage]


def family_of(model_type: str, source: str) -> Family:
    """Return the decoder family of `model_type`; raises ValueError that lists what is supported."""
    return _supported(model_type, source, "decoders", FAMILIES, WHY_NOT, LLMS)


def no_model(name: str) -> str:
    """Say that a name is not in the table, and why none of its family is."""
    plain = name.lower().replace("-", "").replace(".", "_")
    families = sorted(WHY_NOT, key=len, reverse=True)  # qwen3_5_moe before qwen3_5
    family = next((f for f in families if plain.startswith(f)), None)
    reason = "" if family is None else f": {family} is no family here, because {WHY_NOT[family]}"
    return (
        f"no model is named {name!r}{reason}; known: {', '.join(LLMS)}. Any other decoder of type "
        f"{', '.join(FAMILIES)} goes in as --llm ID_OR_FOLDER"
    )


def tower_family_of(model_type: str, source: str) -> TowerFamily:
    """Return the tower family of `model_type`; raises ValueError that lists what is supported."""
    return _supported(model_type, source, "vision towers", TOWER_FAMILIES, WHY_NO_TOWER, TOWERS)


def check_pool(pool: int, tower: str, size: int, patch: int) -> None:
    """Raise ValueError unless patches of `patch` pixels a side can be joined in squares of `pool`."""
    across = size // patch
    if across % pool or across < pool:
        more = patch * -(-max(across, 1) // pool) * pool
        raise ValueError(
            f"--pool {pool} joins {pool} x {pool} patches, and {tower} has {across} a side at {size} pixels: "
            f"add --image-size {more}, or leave --pool out"
        )


def _supported(
    model_type: str, source: str, what: str, families: Mapping[str, Row], why_not: dict[str, str], names: dict
) -> Row:
    if model_type not in families:
        reason = f", and {why_not[model_type]}" if model_type in why_not else ""
        raise ValueError(
            f"{source} is a {model_type!r} model{reason}; supported {what} are of type "
            f"{', '.join(families)} (by name: {', '.join(names)})"
        )
    return families[model_type]
