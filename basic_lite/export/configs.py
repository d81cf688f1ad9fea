"""The JSON files of an exported folder, as transformers 4.5x and 5.x and other readers take them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from basic_lite.data.conversation import stop_ids
from basic_lite.data.rows import WHITE
from basic_lite.data.world import parts
from basic_lite.export.vocabulary import image_word
from basic_lite.models import zoo
from basic_lite.models.llava import Assembled
from basic_lite.models.unpacked import BACKGROUND_KEY, EXIF_KEY

_PASSING = (
    "_name_or_path",
    "transformers_version",
    "quantization_config",
    "auto_map",
    "_attn_implementation",
)
"""Keys that belong to the folder that a part came from."""


def model_config(assembled: Assembled, dtype: torch.dtype) -> dict:
    config: Any = assembled.model.config
    name = str(dtype).removeprefix("torch.")
    stops = stop_ids(assembled.template, assembled.tokenizer)
    text = _text_config(assembled) | {
        "pad_token_id": assembled.pad_token_id,
        "eos_token_id": stops[0],
        "torch_dtype": name,
        "dtype": name,
    }
    vision = config.vision_config.to_diff_dict() | {"torch_dtype": name, "dtype": name}
    for key in (*_PASSING, "architectures"):
        vision.pop(key, None)
    named: dict = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    if assembled.tiling is not None:
        named = {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
        named["image_grid_pinpoints"] = assembled.tiling.pinpoints
        vision |= {"image_size": assembled.tiling.side}  # tells how many patches a tile has
    if assembled.sources.exif != "ignore":
        named[EXIF_KEY] = assembled.sources.exif
    if assembled.sources.background != WHITE:
        named[BACKGROUND_KEY] = assembled.sources.background
    return {
        **named,
        "image_token_index": assembled.image_token_id,
        "image_seq_length": assembled.tokens_per_image,
        "projector_hidden_act": config.projector_hidden_act,
        "multimodal_projector_bias": config.multimodal_projector_bias,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "pad_token_id": assembled.pad_token_id,
        "eos_token_id": stops[0],
        "tie_word_embeddings": config.text_config.tie_word_embeddings,
        "torch_dtype": name,
        "dtype": name,
        "text_config": text,
        "vision_config": vision,
    }


def _text_config(assembled: Assembled) -> dict:
    """Return the LLM's own file, with the rotary base under its old name as well."""
    own, _ = PretrainedConfig.get_config_dict(parts.located(assembled.sources.llm))
    config: Any = assembled.model.config
    live = config.text_config.to_dict()
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes += ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act")
    sizes += tuple(key for key in (assembled.family.attention_cap, assembled.family.logit_cap) if key)
    text = {key: live[key] for key in sizes if live.get(key) is not None} | own
    for key in _PASSING:
        text.pop(key, None)
    # Of a decoder out of a larger model nothing says it, and vLLM asks.
    text.setdefault("architectures", [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text["model_type"]]])
    scale = assembled.family.head_scale
    if scale is not None:
        text[scale[0]] = 1.0  # it is in the last norm's weight: transformers' LLaVA leaves it out, vLLM's not
    rotary = text.get("rope_parameters")
    if rotary and "rope_theta" not in rotary:  # by kind of layer (Gemma 3), with the older names beside them
        text.setdefault("rope_theta", rotary["full_attention"]["rope_theta"])
        text.setdefault("rope_local_base_freq", rotary["sliding_attention"]["rope_theta"])
    elif rotary and "rope_theta" not in text:
        text["rope_theta"] = rotary["rope_theta"]
        if rotary.get("rope_type", "default") != "default":
            text["rope_scaling"] = {k: v for k, v in rotary.items() if k != "rope_theta"}
        for key in ("partial_rotary_factor", "original_max_position_embeddings"):
            if rotary.get(key) is not None:
                text.setdefault(key, rotary[key])
    return text


def generation_config(assembled: Assembled) -> dict:
    """Return `generation_config.json`: greedy, ending where an answer ends."""
    return {
        "bos_token_id": assembled.tokenizer.bos_token_id,
        "eos_token_id": stop_ids(assembled.template, assembled.tokenizer),
        "pad_token_id": assembled.pad_token_id,
        "do_sample": False,
    }


def preprocessor_config(assembled: Assembled) -> dict:
    """Return `preprocessor_config.json`: LLaVA's square of the mean colour, as stage 2 and evaluation pad.

    With tiles it is LLaVA-NeXT's, which squashes the whole picture and pads the tiles with black.
    """
    transform = assembled.transform("pad")
    square = {"height": transform.size, "width": transform.size}
    kind: dict = {"image_processor_type": "LlavaImageProcessor", "processor_class": "LlavaProcessor"}
    if assembled.tiling is not None:
        kind = {name: value.replace("Llava", "LlavaNext") for name, value in kind.items()}
        kind["image_grid_pinpoints"] = assembled.tiling.pinpoints
    return {
        **kind,
        "do_convert_rgb": True,
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": transform.size},
        "resample": transform.resample,
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }


def processor_config(assembled: Assembled) -> dict:
    """Return `processor_config.json`, flat; a tower's class token counts as additional."""
    config: Any = assembled.model.config
    vision = config.vision_config
    return {
        "processor_class": "LlavaProcessor" if assembled.tiling is None else "LlavaNextProcessor",
        "image_token": image_word(assembled),
        "patch_size": vision.patch_size,
        "num_additional_image_tokens": zoo.TOWER_FAMILIES[vision.model_type].prefix_tokens,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
