"""Tiny models of every supported class, built from literals; nothing is ever downloaded."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    Aimv2VisionConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Cohere2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GraniteConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Ministral3Config,
    MistralConfig,
    MLCDVisionConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolLM3Config,
    StableLmConfig,
)

from basic_lite.method.targets import TargetSpace
from basic_lite.models.llava import Assembled, Sources, assemble
from basic_lite.models.softcap import cap_logits

VOCABULARY, IMAGE_TOKEN, PATCHES = 320, 3, 9

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries: two heads share one key head
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # large enough that attention is far from uniform
}
TOWER_SIZES = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
_TOWER = TOWER_SIZES | {"initializer_range": 0.3}
DECODERS = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "gemma": lambda: GemmaConfig(**_SIZES, head_dim=12),
    "phi3": lambda: Phi3Config(**_SIZES),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=20),  # shorter than the rows: the window bites
}
MORE_DECODERS = {
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=12),
    "smollm3": lambda: SmolLM3Config(**_SIZES, no_rope_layers=[1, 1, 1, 0]),
    # Every second layer has a window that bites; scores and logits reach far beyond their caps.
    "gemma2": lambda: Gemma2Config(
        **_SIZES,
        head_dim=12,
        sliding_window=20,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    # Every second layer has a window that bites; the two kinds of layers have rotary bases of their own.
    "gemma3_text": lambda: Gemma3TextConfig(
        **_SIZES, head_dim=12, sliding_window=20, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "olmo2": lambda: Olmo2Config(**_SIZES),
    "olmo3": lambda: Olmo3Config(
        **_SIZES, sliding_window=20, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "ministral3": lambda: Ministral3Config(**_SIZES, head_dim=12),
    "glm4": lambda: Glm4Config(**_SIZES, head_dim=12),
    "granite": lambda: GraniteConfig(
        **_SIZES,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        tie_word_embeddings=True,
    ),
    "stablelm": lambda: StableLmConfig(**_SIZES),  # layer norms with biases, a quarter of a head rotates
    "cohere2": lambda: Cohere2Config(
        **_SIZES, head_dim=12, sliding_window=20, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "phi4_mini": lambda: Phi3Config(
        **_SIZES,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
}
"""Decoders of later families: one test of each kind runs over them."""
ALL_DECODERS = DECODERS | MORE_DECODERS
TOWERS = {
    "clip": lambda: CLIPVisionConfig(**_TOWER),
    "siglip": lambda: SiglipVisionConfig(**_TOWER, vision_use_head=False),
    "dinov2": lambda: Dinov2Config(
        **{k: v for k, v in _TOWER.items() if k != "intermediate_size"}, mlp_ratio=2
    ),
}


MORE_TOWERS = {
    "dinov2_registers": lambda: Dinov2WithRegistersConfig(
        **{k: v for k, v in _TOWER.items() if k != "intermediate_size"}, mlp_ratio=2, num_register_tokens=3
    ),
    "dinov3": lambda: DINOv3ViTConfig(**_TOWER, num_register_tokens=3),
    "aimv2": lambda: Aimv2VisionConfig(**_TOWER),
    "mlcd": lambda: MLCDVisionConfig(**_TOWER | {"hidden_size": 32}),  # heads of 16, for its rotary
}
ALL_TOWERS = TOWERS | MORE_TOWERS


def adapted(model: LlavaForConditionalGeneration, **settings: object) -> PeftModel:
    """Give a tiny model adapters that do something already, and its projector in full, as in stage 2."""
    config = LoraConfig(
        **{
            "r": 4,
            "target_modules": r".*language_model.*\.(q_proj|qkv_proj|v_proj|gate_up_proj|down_proj)",
            "modules_to_save": ["multi_modal_projector"],
            "init_lora_weights": False,
        }
        | settings
    )
    torch.manual_seed(0)
    return get_peft_model(model, config)


def parts_config(decoder: str, tower: str) -> dict[str, Any]:
    """Return what the configurations of LLaVA and of LLaVA-NeXT share."""
    return {
        "text_config": ALL_DECODERS[decoder](),
        "vision_config": TOWERS[tower](),
        "image_token_index": IMAGE_TOKEN,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full" if tower == "siglip" else "default",
    }


def is_projector(name: str) -> bool:
    """Whether a parameter is the projector's, or the newline of tiles."""
    return "multi_modal_projector" in name or "image_newline" in name


def train_projector(model: nn.Module) -> None:
    """Freeze everything but projector and newline, and spread the projector's weights."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_projector(name))
        if "projector" in name and "weight" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def tiny_llava(decoder: str = "llama", tower: str = "clip", seed: int = 0) -> LlavaForConditionalGeneration:
    """Build a random LLaVA of about 60,000 parameters, in fp32, frozen but for its projector."""
    torch.manual_seed(seed)
    config = LlavaConfig(**parts_config(decoder, tower), image_seq_length=PATCHES)
    model = LlavaForConditionalGeneration(config)
    cap_logits(model)  # as `assemble` does
    train_projector(model)
    return model


def tiny_batch(
    padding: str = "right", seed: int = 1, patches: int = PATCHES, size: int = 24
) -> dict[str, torch.Tensor]:
    """Five rows: one image, text behind and before it; two images; text only; image last; a short caption."""
    generator = torch.Generator().manual_seed(seed)

    def text(count: int) -> list[int]:
        return torch.randint(4, VOCABULARY, (count,), generator=generator).tolist()

    block = [IMAGE_TOKEN] * patches
    rows = [
        [1, *text(3), *block, *text(14)],
        [1, *block, *text(4), *block, *text(7)],
        [1, *text(11)],
        [1, *text(8), *block, *text(1)],
        [1, *block, *text(5)],
    ]
    width = max(map(len, rows))
    ids, mask, labels = [], [], []
    for row in rows:
        pad = [0] * (width - len(row))
        supervised = [-100 if i < 3 or t == IMAGE_TOKEN else t for i, t in enumerate(row)]
        off, on, no_loss = [0] * len(pad), [1] * len(row), [-100] * len(pad)
        ids.append(row + pad if padding == "right" else pad + row)
        mask.append(on + off if padding == "right" else off + on)
        labels.append(supervised + no_loss if padding == "right" else no_loss + supervised)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
        "pixel_values": torch.randn(5, 3, size, size, generator=generator),
    }


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer with ChatML tokens and a free `<image>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[3:],
    ).save_pretrained(folder)


def old_names(folder: Path) -> None:
    """Rename tensors as transformers wrote them up to 4.51: the decoder's head stands inside of it."""
    from safetensors.torch import load_file, save_file

    state = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            name = name.removeprefix("model.")
            if name.startswith("language_model."):
                name = name.replace("language_model.", "language_model.model.", 1)
            state[f"language_model.{name}" if name.startswith("lm_head") else name] = tensor
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@lru_cache(maxsize=1)
def _parts_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="basic-lite-tiny-")


@lru_cache
def llm_folder(decoder: str = "llama") -> Path:
    """Return a folder with a random decoder and its tokenizer, as a hub would give it."""
    folder = Path(_parts_folder().name) / decoder
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ALL_DECODERS[decoder]()).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@lru_cache
def tower_folder(tower: str = "clip") -> Path:
    """Return a folder with a random tower and its image settings."""
    folder = Path(_parts_folder().name) / tower
    torch.manual_seed(0)
    AutoModel.from_config(ALL_TOWERS[tower]()).save_pretrained(folder)
    size = {"height": 24, "width": 24}
    settings = {"do_resize": True, "size": size, "resample": 3, "do_rescale": True, "do_normalize": True}
    if tower != "siglip":
        settings |= {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": size}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def tiny_assembled(decoder: str = "llama", tower: str = "clip", **settings: object) -> Assembled:
    """Assemble the tiny parts as the commands do."""
    settings = {"bits": 16, "dtype": torch.float32} | settings
    return assemble(Sources(str(llm_folder(decoder)), str(tower_folder(tower)), **settings))


def target_space(kind: str, seed: int = 0) -> TargetSpace:
    """Make a target space of arbitrary numbers, for two layers of a tiny decoder."""
    generator, layers, width = torch.Generator().manual_seed(seed), 2, _SIZES["hidden_size"]
    centre = torch.randn(layers, width, generator=generator)
    if kind == "centred":
        return TargetSpace("centred", centre)
    maps = tuple(torch.randn(width, width, generator=generator) / 6 for _ in range(layers))
    return TargetSpace("translated", centre, maps, torch.randn(width, generator=generator))
