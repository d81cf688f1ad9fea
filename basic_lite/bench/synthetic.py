"""Models of the real sizes with random weights, and rows to train them on: for measuring, without a hub."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)
from transformers.initialization import no_init_weights

from basic_lite.data import templates
from basic_lite.models import zoo
from basic_lite.models.llava import Assembled, Sources, check_quantisation
from basic_lite.models.parts import parts_of
from basic_lite.models.projector import Projector
from basic_lite.models.softcap import cap_logits, implementation

DECODERS: dict[str, PretrainedConfig] = {
    name: AutoConfig.for_model(**config) for name, config in zoo.DECODER_CONFIGS.items()
}
CLIP_L_336: dict[str, Any] = {
    key: value for key, value in zoo.TOWER_CONFIGS["clip-l-336"].items() if key != "model_type"
}
_IMAGE_TOKEN, _PAD_TOKEN = 3, 0
_BLOCK = 1_000_003  # a prime: no two rows of a matrix are alike


def decoder_config(name: str) -> PretrainedConfig:
    """Return a copy of the configuration of a decoder in `DECODERS`; raises ValueError if there is none."""
    if name not in DECODERS:
        raise ValueError(f"no model is named {name!r}; known: {', '.join(DECODERS)}")
    return type(DECODERS[name])(**DECODERS[name].to_dict())


def random_model(
    name: str,  # a decoder in `DECODERS`
    *,
    bits: int,  # 4 quantises the decoder's layers as `assemble` does; 16 leaves them
    dtype: torch.dtype,  # of everything but the projector
    device: str,  # where it is built; in 4 bits the decoder's layers never are in `dtype`
    layers: int | None = None,  # decoder layers instead of the real number (for a small machine)
    text: PretrainedConfig | None = None,  # the decoder's configuration instead of the real one
    vision: dict[str, Any] | None = None,  # what is other than in the real tower
) -> Assembled:
    """Build CLIP-L-336, a projector and a decoder of real size with random weights.

    Raises ValueError if the name is unknown or the bits are neither 4 nor 16.
    """
    text = text or decoder_config(name)
    if bits not in (4, 16):
        raise ValueError(f"random weights are made in 4 or 16 bits, not {bits}")
    family = zoo.FAMILIES[text.model_type]
    text.num_hidden_layers = text.num_hidden_layers if layers is None else layers
    text.pad_token_id = _PAD_TOKEN
    tower = CLIPVisionConfig(**CLIP_L_336 | (vision or {}))
    assert isinstance(tower.image_size, int), "a square"
    assert isinstance(tower.patch_size, int), "a square"
    tokens = (tower.image_size // tower.patch_size) ** 2
    config = LlavaConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=_IMAGE_TOKEN,
        image_seq_length=tokens,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            # Buffers are real; what the decoder's layers hold in 4 bits never is in 16.
            with no_init_weights(), init_empty_weights(include_buffers=False) if bits == 4 else nullcontext():
                model = LlavaForConditionalGeneration(config)
            if bits == 4:
                _pack(parts_of(model).decoder.layers, dtype, device)
                _allocate(model, device)
            model.tie_weights()  # which the initialisation would have done
            torch.set_default_dtype(torch.float32)
            model.model.multi_modal_projector = Projector(config)
    finally:
        torch.set_default_dtype(old)
    _fill(model, shift=family.model_type.startswith("gemma"))
    parts_of(model).decoder.set_attn_implementation(implementation(text))
    cap_logits(model)
    model.requires_grad_(False)
    model.train()
    check_quantisation(model)
    template = templates.TEMPLATES["plain"]
    sources = Sources(f"random {name}", "random clip-l-336", bits=bits, dtype=dtype)
    ids = (_IMAGE_TOKEN, _PAD_TOKEN, tokens)
    nobody: Any = None  # no words are read or written
    return Assembled(nobody, template, {}, tower.image_size, *ids, family, sources, model=model)


@torch.no_grad()
def _fill(model: nn.Module, shift: bool) -> None:
    """Give matrices pieces of one block of random numbers: drawing 7 billion takes most of a minute.

    The projector has made its own. `shift` is for decoders whose norms add 1 to their weights.
    """
    block, place = None, 0
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name or parameter.dtype == torch.uint8:
            continue
        if parameter.dim() < 2:
            one = name.endswith("weight") and not (shift and "language_model" in name)
            parameter.fill_(1.0 if one else 0.0)
            continue
        if block is None:
            generator = torch.Generator(parameter.device).manual_seed(0)
            block = torch.empty(_BLOCK, dtype=torch.float32, device=parameter.device)
            block = block.normal_(0, 0.02, generator=generator).to(parameter.dtype)
        flat = parameter.view(-1)
        while len(flat):
            some = block[place : place + len(flat)]
            flat[: len(some)].copy_(some)
            flat, place = flat[len(some) :], (place + len(some)) % _BLOCK


def _pack(layers: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Replace the linear layers inside, which hold nothing, by nf4 ones with double quantisation.

    One of each shape is quantised; the others are copies with their bytes moved along.
    """
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    linear = [
        (module, name, child)
        for module in layers.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    made: dict[tuple[int, int], nn.Module] = {}
    for number, (module, name, child) in enumerate(linear):
        shape = child.in_features, child.out_features
        if shape not in made:
            generator = torch.Generator(device).manual_seed(0)
            weight = torch.empty(child.weight.shape, dtype=dtype, device=device)
            make: Any = Params4bit  # whose __new__ alone knows its options
            packed = Linear4bit(
                *shape, False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
            )
            packed.weight = make(
                weight.normal_(0, 0.02, generator=generator),
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=True,
            )
            made[shape] = packed.to(device)
        copied: Any = deepcopy(made[shape])
        copied.weight.data = copied.weight.data.roll(number, 0)
        if child.bias is not None:
            copied.bias = nn.Parameter(torch.zeros(child.out_features, dtype=dtype, device=device))
        setattr(module, name, copied)


def _allocate(model: nn.Module, device: str) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device))


class RandomRows(Dataset):
    """Rows of one picture and `text` tokens, all with loss; `size` is the picture's side in pixels."""

    def __init__(self, count: int, patches: int, text: int, vocabulary: int, size: int) -> None:
        self.count, self.patches, self.text = count, patches, text
        self.vocabulary, self.size = vocabulary, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return row `row`, the same one every time."""
        generator = torch.Generator().manual_seed(row)
        words = torch.randint(10, self.vocabulary, (self.text,), generator=generator).tolist()
        ids = [1, *[_IMAGE_TOKEN] * self.patches, *words]
        labels = [-100] * (1 + self.patches) + words
        shape = (3, self.size, self.size)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return {"input_ids": ids, "labels": labels, "pixels": [pixels], "row": row, "id": str(row)}
