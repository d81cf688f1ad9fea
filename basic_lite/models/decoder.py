"""Load a language model alone, from its base's files or from its pre-quantised copy."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from basic_lite.data.world import parts
from basic_lite.files import one_line
from basic_lite.models import converted, quantised, softcap, zoo


def load_decoder(
    llm: str,
    config: PretrainedConfig,
    bits: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    copies: quantised.Copies,
    say: quantised.Say,
) -> PreTrainedModel:
    """Load a decoder with its head; quantised inside its layers only.

    `bits` are 4, 8 or 16, `dtype` is of what is not quantised; `copies` says whether a pre-quantised copy may
    be read, and written where there is none (4 bits alone), and `say` takes a line about it. Raises
    ValueError if the weights cannot be read or tensors are missing.
    """
    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": softcap.implementation(config)}
    placement = {"device_map": {"": str(device)}}
    copy = quantised.copy_of(llm, config, dtype, device) if bits == 4 and copies != "off" else None
    causal: Any = None
    if copy is not None and copy.whole:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                copy.path, use_safetensors=True, output_loading_info=True, **settings, **placement
            )
            causal, info = loaded
            if wrong := [name for names in info.values() for name in names]:
                raise ValueError(f"{len(wrong)} tensors do not fit, first: {wrong[0]}")
            say(f"pre-quantised copy read: {copy.path} ({copy.size / 1e9:.2f} GB)")
        except Exception as error:  # whatever is wrong with a copy, its base is still there
            causal, reason = None, one_line(error)
            say(f"pre-quantised copy {copy.path} cannot be read and is quantised anew ({reason})")
            copy.remove()
    fresh = causal is None
    if causal is None:
        if bits < 16:
            settings |= {"quantization_config": _quantisation(bits, dtype), **placement}
        causal = converted.load(
            AutoModelForCausalLM, llm, getattr(config, "_commit_hash", None), say, **settings
        )
    # Its base, wherever its weights were read
    causal.config._name_or_path = causal.name_or_path = parts.located(llm)
    causal.config._commit_hash = getattr(config, "_commit_hash", None)
    if fresh and copy is not None and copies == "keep":
        say(copy.write(causal))
    return causal.to(device) if bits == 16 else causal


def _quantisation(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


class ScaledEmbedding(torch.nn.Embedding):
    """An embedding whose rows go into the first layer as multiples of themselves, as Gemma's do."""

    multiplier: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.multiplier


@torch.no_grad()
def fold_scales(causal: Any) -> PreTrainedModel:
    """Move what LLaVA's class leaves out, or applies to visual embeddings as well, to its right place.

    - Logits capped (Gemma 2): by the head itself.
    - Logits (Granite `/ logits_scaling`, Cohere `* logit_scale`): into the last norm's weight; it is linear.
    - Embeddings (Granite `* embedding_multiplier`, of `inputs_embeds` too): after the embedding module, so
      that `v` is what the first layer receives; the table stays raw. An export puts both back
      (`export.folder`).
    """
    config, model = causal.config, causal.model
    scale = zoo.family_of(config.model_type, "the decoder").head_scale
    if scale is not None:
        model.norm.weight.mul_(head_factor(config.to_dict(), config.model_type))
        setattr(config, scale[0], 1.0)
        if hasattr(causal, scale[0]):
            setattr(causal, scale[0], 1.0)
    multiplier = getattr(model, "embedding_multiplier", 1.0)
    if multiplier != 1.0:
        model.embed_tokens.__class__ = ScaledEmbedding
        model.embed_tokens.multiplier = multiplier
        model.embedding_multiplier = 1.0
    softcap.cap_logits(causal)
    return causal


def head_factor(config: dict, model_type: str) -> float:
    """Return what a family's own class multiplies its logits by, and LLaVA's does not."""
    scale = zoo.family_of(model_type, "the decoder").head_scale
    return 1.0 if scale is None else float(config[scale[0]]) ** scale[1]
