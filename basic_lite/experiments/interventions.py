"""Spoil or replace the teacher on purpose: experiments that ask what BASIC's gain hangs on.

An intervention is named by one string, which goes into the settings and the manifest:

    none            the method as it is
    noise=0.3       Gaussian noise on the states of layers 1..k, of 0.3 times each state's length
    shuffled        every image gets the target of the image before it
    teacher=FOLDER  targets from another decoder of equal width, on the same visual embeddings
    teacher=random  the same from a decoder like this one with random weights
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from basic_lite.method.targets import layer_weights, supervised_layers
from basic_lite.method.types import Intervention, Refinement, Weighting
from basic_lite.models import converted, repository, softcap
from basic_lite.models.llava import read_config
from basic_lite.models.parts import Parts, embedding_of

KINDS = ("none", "noise", "shuffled", "teacher")


def parse(text: str) -> tuple[str, str]:
    """Return an intervention's kind and value; raises ValueError if it is unknown or its value is wrong."""
    kind, sign, value = text.partition("=")
    if kind not in KINDS or bool(sign) != (kind in ("noise", "teacher")) or (sign and not value):
        raise ValueError(
            f"no intervention is {text!r}; known: none, noise=SIZE, shuffled, teacher=FOLDER, teacher=random"
        )
    if kind == "noise":
        try:
            size = float(value)
        except ValueError:
            size = -1.0
        if not 0 <= size < float("inf"):
            raise ValueError(f"noise must be 0 or a positive number, got {value!r}")
    return kind, value


def check(text: str, config: PretrainedConfig, micro_batch: int) -> Callable[..., Intervention | None]:
    """Look at everything that an intervention needs, before anything is loaded; return its `make`.

    `config` is the decoder's, `micro_batch` the rows per forward pass. Raises ValueError if there is no such
    intervention, the micro-batch is too small for it, or another teacher cannot be read or has another width.
    """
    kind, value = parse(text)
    if kind == "shuffled" and micro_batch < 2:
        raise ValueError("shuffled needs two images in a forward pass at least; take a larger --micro-batch")
    if kind == "teacher" and value != "random":
        width = read_config(value, "teacher").hidden_size
        if width != config.hidden_size:
            raise ValueError(
                f"the teacher {value} is {width} wide and the decoder {config.hidden_size}; "
                "targets need equal width"
            )
    return partial(make, text)


def make(
    text: str, parts: Parts, layers: int | None, weighting: Weighting, seed: int = 0
) -> Intervention | None:
    """Make an intervention from its name; `None` for none.

    `layers` is k, `None` for half (of another teacher's, too); `seed` is of a random teacher's weights.
    """
    kind, value = parse(text)
    if kind == "noise":
        return Intervention(states=noise(float(value)))
    if kind == "shuffled":
        return Intervention(refinement=shuffled)
    if kind == "teacher":
        random = value == "random"
        other = random_teacher(parts.decoder, seed) if random else load_teacher(value, parts.decoder)
        return Intervention(refinement=OtherTeacher(other, layers, weighting))
    return None


def noise(size: float) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Return a change of states `(N, D)`: to each, `size` times its own length in a random direction.

    torch's own random numbers: a resumed run goes on with them.
    """

    def change(layer: int, states: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True) / states.shape[-1] ** 0.5
        return states + size * length * torch.randn_like(states)

    return change


def shuffled(refinement: Refinement, given: Mapping[str, object]) -> Refinement:
    """Give every image the target of the one before it in the batch, the first that of the last.

    Rows come in random order, so this is a random other image; a batch of one image alone keeps its own.
    """
    patches = len(refinement.target) // refinement.images
    return replace(refinement, target=refinement.target.roll(patches, dims=0))


class OtherTeacher:
    """Targets from another decoder, which runs its first k layers on the same input embeddings."""

    def __init__(self, decoder: Any, layers: int | None = None, weighting: Weighting = "quadratic"):
        """Take a headless decoder of the same width; its layers after k (`None` for half) are dropped.

        Raises ValueError if it has fewer than k.
        """
        count = supervised_layers(decoder.config, layers)
        self.weights = layer_weights(count, weighting)
        self.decoder = decoder.eval().requires_grad_(False)
        self.decoder.layers = self.decoder.layers[:count]
        self.decoder.config.num_hidden_layers = count

    @torch.no_grad()
    def __call__(self, refinement: Refinement, given: Mapping[str, Any]) -> Refinement:
        patch = given["layout"].patch
        states: list[torch.Tensor] = []

        def keep(layer: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            states.append(hidden.flatten(0, 1).index_select(0, patch).to(refinement.target.dtype))

        with ExitStack() as hooks:
            for layer in self.decoder.layers:
                hooks.callback(layer.register_forward_hook(keep).remove)
            embeds = given["inputs_embeds"].to(next(self.decoder.parameters()).dtype)
            self.decoder(inputs_embeds=embeds, attention_mask=given["attention_mask"], use_cache=False)
        target = torch.zeros_like(refinement.target)
        for weight, state in zip(self.weights, states, strict=True):
            target += weight * state
        return replace(refinement, target=target)


def random_teacher(decoder: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a decoder of the same configuration with random weights."""
    config = deepcopy(decoder.config)
    config._attn_implementation = softcap.implementation(config)
    if getattr(config, "quantization_config", None) is not None:
        delattr(config, "quantization_config")
    like = next(decoder.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModel.from_config(config, dtype=like.dtype if like.is_floating_point() else None)
    return made.to(like.device)


def load_teacher(source: str, decoder: PreTrainedModel) -> PreTrainedModel:
    """Load another decoder, without head, onto the same device; raises ValueError if it cannot be loaded."""
    like = embedding_of(decoder)
    try:
        folder = converted.safetensors_folder(source)
        made = AutoModel.from_pretrained(folder, dtype=like.dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = repository.why(source, error)
        raise ValueError(f"no teacher can be loaded from {source!r}: {reason}") from error
    return made.to(like.device)
