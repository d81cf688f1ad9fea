"""The parts of a LLaVA that the method touches, whatever it is wrapped in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
)

from basic_lite.data.tiles import Tiling


@dataclass(frozen=True)
class Parts:
    llava: LlavaModel | LlavaNextModel  # the model without its head
    decoder: Any  # its language model, a `PreTrainedModel` without head
    head: Any  # the output projection, a linear layer without bias

    @property
    def embedding(self) -> torch.Tensor:
        """`(V, D)` raw token embeddings, for Gemma without its factor sqrt(D)."""
        return embedding_of(self.decoder)

    @property
    def tiling(self) -> Tiling | None:
        """The grids of tiles of a LLaVA-NeXT; `None` for one square per picture."""
        return tiling_of(self.llava)


def tiling_of(llava: nn.Module) -> Tiling | None:
    """Return the grids that a `LlavaNextModel` packs its features by; `None` for a `LlavaModel`."""
    return Tiling.of_config(llava.config) if isinstance(llava, LlavaNextModel) else None


def embedding_of(decoder: Any) -> torch.Tensor:
    """Return `(V, D)`, a decoder's raw token embeddings."""
    weight = decoder.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def layers_of(decoder: Any) -> nn.ModuleList:
    layers = decoder.layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def parts_of(model: nn.Module) -> Parts:
    """Find the parts of a LLaVA, or of a LLaVA-NeXT with its tiles, wrapped by PEFT, DDP or not at all.

    Raises ValueError if there is no such model inside.
    """
    inner: Any = getattr(model, "module", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    if not isinstance(inner, (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration)):
        raise ValueError(
            f"a {type(inner).__name__} was given; BASIC works on a transformers "
            "LlavaForConditionalGeneration or LlavaNextForConditionalGeneration, bare or wrapped by PEFT"
        )
    return Parts(inner.model, inner.model.language_model, inner.lm_head)


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether only a piece of a tensor is here."""
    return hasattr(tensor, "to_local")


def piece(tensor: Any) -> torch.Tensor:
    """Return what is here of a tensor: its first dimension's share, possibly empty, or all of it."""
    return tensor.to_local() if is_cut(tensor) else tensor
