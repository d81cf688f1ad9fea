"""Load a vision tower, fit it to an image size, and read how its pictures are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    Aimv2VisionModel,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    MLCDVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from basic_lite.models import converted, quantised, repository, zoo

_CLASSES: dict[str, type[PreTrainedModel]] = {
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
    "dinov3_vit": DINOv3ViTModel,
    "aimv2_vision_model": Aimv2VisionModel,
    "mlcd_vision_model": MLCDVisionModel,
}


def vision_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the vision half of a two-sided configuration (CLIP, SigLIP), or the configuration itself."""
    return getattr(config, "vision_config", config)


def check_tower_layer(layer: int, config: PretrainedConfig) -> None:
    """Raise ValueError if the layer is not in -depth - 1 to depth; 0 is what the first layer receives."""
    depth = config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"tower layer must be between {-depth - 1} and {depth}, got {layer}")


def load_tower(
    source: str,
    config: PretrainedConfig,
    size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    say: quantised.Say = quantised.silent,
) -> PreTrainedModel:
    """Load a tower and fit its position embeddings to an input of `size` pixels a side.

    `source` may have a text half, which is left out; `config` is the vision part's; `say` takes a line if
    weights are converted. Raises ValueError if the weights cannot be read or tensors are missing.
    """
    family = zoo.TOWER_FAMILIES[config.model_type]
    kind = _CLASSES[config.model_type]
    tower: Any = converted.load(kind, source, say=say, dtype=dtype, attn_implementation="sdpa")
    any_size = family.any_size or getattr(config, "is_native", False)  # AIMv2-native computes its positions
    if size != tower.config.image_size and not any_size:
        _resize_positions(tower, size, family.prefix_tokens)
    for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        if hasattr(tower.config, name):  # DINOv3 moves its positions at random in training mode, frozen too
            setattr(tower.config, name, None)
    _without_dropout(tower)
    registers = zoo.registers_of(config)
    if registers:
        tower.register_forward_hook(partial(_without_registers, count=registers))
    return tower.to(device)


def _without_dropout(tower: nn.Module) -> None:
    """Switch off what a tower's configuration drops in training mode, of attention, states or whole layers.

    The whole model is in training mode for the decoder's sake, a frozen tower too. And one that is trained
    runs twice, with the same result only if nothing is drawn.
    """
    for module in tower.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _without_registers(tower: nn.Module, args: tuple, output: Any, count: int) -> BaseModelOutputWithPooling:
    """Cut the first `count` tokens off the hidden states, so that one is left in front of the patches.

    LLaVA drops one token whatever the tower: left to it, the registers would be taken for patches.
    """
    if output.hidden_states is not None:
        kept = (None if states is None else states[:, count:] for states in output.hidden_states)
        output.hidden_states = tuple(kept)  # None: a layer that was not asked for
    return output


@torch.no_grad()
def _resize_positions(tower: Any, size: int, prefix: int) -> None:
    """Interpolate the learned position embeddings once (bicubic), so that the tower is native to `size`."""
    embeddings = tower.embeddings
    table = embeddings.position_embedding.weight
    head, grid = table[:prefix], table[prefix:]
    side, new = int(len(grid) ** 0.5), size // tower.config.patch_size
    picture = grid.float().T.reshape(1, -1, side, side)
    picture = F.interpolate(picture, (new, new), mode="bicubic", align_corners=False)
    resized = torch.cat([head.float(), picture.flatten(2)[0].T])
    embeddings.position_embedding = nn.Embedding.from_pretrained(resized.to(table.dtype))
    embeddings.num_patches, embeddings.num_positions = new * new, len(resized)
    embeddings.image_size = tower.config.image_size = size
    embeddings.register_buffer("position_ids", torch.arange(len(resized))[None], persistent=False)


def read_processor(source: str) -> dict:
    """Read `preprocessor_config.json` of a folder or hub id.

    Raises ValueError if there is none: mean, deviation and resizing rule would be guesses.
    """
    try:
        return repository.read_json(source, "preprocessor_config.json")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source!r} has no readable preprocessor_config.json (image mean, size): "
            f"{repository.why(source, error)}"
        ) from error


def native_size(processor: dict, config: PretrainedConfig) -> int:
    """Return the side of the square that the tower's own processor makes."""
    for key in ("crop_size", "size"):
        value = processor.get(key)
        if isinstance(value, dict):
            value = value.get("height") or value.get("shortest_edge")
        if value and (key == "crop_size" or "crop_size" not in processor):
            return int(value)
    return int(config.image_size)


@contextmanager
def up_to_the_features(tower: Any, layer: int | list[int]) -> Iterator[None]:
    """Let the tower's modules after the feature layer pass their input through, inside the block.

    LLaVA reads the last layer but one: layer 24 of CLIP-L, the norm after it and SigLIP's pooling head make
    nothing that is read. The hidden states after the feature layer are wrong inside the block. `layer` is as
    in `LlavaConfig`, one index or several.
    """
    with passing_through(_after_the_features(tower, layer)):
        yield


def layers_of_tower(tower: Any) -> nn.ModuleList:
    encoder = tower.encoder if hasattr(tower, "encoder") else tower.model  # DINOv3 calls it model
    return encoder.layers if hasattr(encoder, "layers") else encoder.layer


def layers_to_the_features(tower: Any, layer: int | list[int]) -> nn.ModuleList:
    """Return a tower's layers up to the one whose states are the features."""
    layers = layers_of_tower(tower)
    wanted = [layer] if isinstance(layer, int) else layer
    return layers[: max(index if index >= 0 else len(layers) + 1 + index for index in wanted)]


def _after_the_features(tower: Any, layer: int | list[int]) -> list[nn.Module]:
    """Return a tower's modules whose output nothing reads: later layers, the last norm, the pooling head."""
    names = ("post_layernorm", "layernorm", "norm", "rms_norm", "head")
    ends = (getattr(tower, name, None) for name in names)
    later = layers_of_tower(tower)[len(layers_to_the_features(tower, layer)) :]
    return [*later, *(end for end in ends if isinstance(end, nn.Module))]


def parameters_of_features(tower: Any, layer: int | list[int]) -> dict[str, nn.Parameter]:
    """Return the parameters by which a tower's features change, by their name inside it; no adapters."""
    idle = {id(p) for module in _after_the_features(tower, layer) for p in module.parameters()}
    named = tower.named_parameters()
    # DINO's mask token stands for patches that only its own pre-training hides.
    return {name: p for name, p in named if id(p) not in idle and not name.endswith("mask_token")}


@contextmanager
def passing_through(modules: list[nn.Module]) -> Iterator[None]:
    for module in modules:
        module.forward = _pass_through
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's own shows again


def _pass_through(hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    return hidden_states
