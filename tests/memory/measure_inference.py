"""Print the bytes that real small models hold while they answer, at each of the `POINTS` that are named."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

import torch
from fake_models import LiveBytes, tensors_of
from transformers import AutoConfig

from basic_lite.bench.synthetic import CLIP_L_336, random_model
from basic_lite.memory.inference import Inference
from basic_lite.memory.sizes import DecoderSize, TowerSize
from basic_lite.models.generate import greedily
from basic_lite.models.llava import for_inference
from basic_lite.models.trainable import Adapters, train_adapters

VISION = {
    **{"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4},
    "image_size": 112,
}


@dataclass(frozen=True)
class Point:
    """A model and what it is asked.

    Attributes:
        family: of the decoder.
        settings: of `Inference`.
        more: of the decoder's configuration.
        dtype: of activations.
    """

    family: str
    settings: dict[str, int]
    more: dict[str, object] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16

    @property
    def config(self):
        sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8}
        sizes |= {"num_key_value_heads": 8, "num_hidden_layers": 6, "vocab_size": 2048}
        return AutoConfig.for_model(self.family, **sizes | {"tie_word_embeddings": False} | self.more)

    @property
    def plan(self) -> Inference:
        tower = TowerSize.of(AutoConfig.for_model("clip_vision_model", **CLIP_L_336 | VISION))
        width = torch.finfo(self.dtype).bits // 8
        return Inference(DecoderSize.of(self.config), tower, width=width, **self.settings)


ALONE = {"bits": 16, "rank": 0, "text": 100, "new": 8}
MANY = ALONE | {"batch": 8}
LONG = ALONE | {"text": 20, "new": 150, "batch": 4}
POINTS = {
    "one prompt": Point("llama", ALONE),
    "eight prompts": Point("llama", MANY),
    "eight prompts, fp32": Point("llama", MANY, dtype=torch.float32),
    "eight prompts, adapters": Point("llama", MANY | {"rank": 32}),
    "eight prompts, shared keys": Point("qwen3", MANY, {"num_key_value_heads": 2, "head_dim": 64}),
    "eight prompts, capped scores": Point("gemma2", MANY, {"num_key_value_heads": 4, "head_dim": 32}),
    "long answers": Point("llama", LONG),
    "long answers, windows": Point(
        "gemma3_text",
        LONG,
        {
            "head_dim": 64,
            "sliding_window": 100,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
    ),
}


@torch.inference_mode()
def held(point: Point) -> int:
    """Run `generate` on prompts of two lengths and return the most bytes that were alive."""
    plan = point.plan
    torch.manual_seed(0)
    assembled = random_model(
        "vicuna-7b", bits=16, dtype=point.dtype, device="cpu", text=point.config, vision=VISION
    )
    if plan.rank:
        train_adapters(assembled, Adapters(plan.rank, plan.rank))
    model = assembled.model
    for_inference(model)
    ids = torch.full((plan.batch, plan.prompt), 10)
    ids[:, 5 : 5 + plan.tower.tokens] = 3
    mask = torch.ones_like(ids)
    mask[1:, :3] = 0
    pixels = torch.zeros(plan.batch, 3, plan.tower.image_size, plan.tower.image_size, dtype=point.dtype)
    live = LiveBytes()
    for tensor in tensors_of(model):
        live.add(tensor)
    with live:
        pixels = pixels.clone()
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels,
            **greedily([], 0, plan.new) | {"eos_token_id": None},
        )
    return live.peak


if __name__ == "__main__":
    for name in sys.argv[1:] or POINTS:
        print(json.dumps({name: held(POINTS[name])}), flush=True)
