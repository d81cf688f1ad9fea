"""The target: how layers 1..k are weighted, and its space: raw, centred, translated, or individual.

`v` and `v^` are compared in the space that the first decoder layer receives, which is the embedding
module's output: for Gemma rows of `E` times sqrt(D). The paper takes the states as they are and so assumes
that they live there. Where they do not, they can be brought there by an affine map per layer, fitted on text
(`method/fit.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig

from basic_lite.files import one_line
from basic_lite.method.losses import multiply
from basic_lite.method.types import TargetKind, Weighting

RAW: TargetKind = "raw"
"""The paper's target, and the default."""

INDIVIDUAL: TargetKind = "individual"
"""What a picture adds to what all have in common."""

UNFITTED: tuple[TargetKind, ...] = (RAW, INDIVIDUAL)
"""Targets that are not fitted on text."""


def supervised_layers(config: PretrainedConfig, layers: int | None) -> int:
    """Return k: `layers`, or half of the decoder's.

    Raises ValueError if `layers` is not between 1 and the decoder's number of layers.
    """
    depth = config.num_hidden_layers
    if layers is None:
        return max(depth // 2, 1)
    if not 1 <= layers <= depth:
        raise ValueError(f"layers must be between 1 and {depth} for this decoder, got {layers}")
    return layers


def layer_weights(k: int, weighting: Weighting = "quadratic") -> list[float]:
    """Return the weights of layers 1..k in the target, which sum to 1 (paper: `w_l = l^2 / sum of squares`).

    `"quadratic"` is the paper's; `"decreasing"` is quadratic with the first layer heaviest. Raises ValueError
    for a weighting that is unknown.
    """
    raw = {
        "quadratic": [float(layer**2) for layer in range(1, k + 1)],
        "linear": [float(layer) for layer in range(1, k + 1)],
        "constant": [1.0] * k,
        "decreasing": [float(layer**2) for layer in range(k, 0, -1)],
    }
    if weighting not in raw:
        raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}")
    return [weight / sum(raw[weighting]) for weight in raw[weighting]]


def check_kind(kind: str) -> None:
    """Raise ValueError if no target has that name."""
    if kind not in get_args(TargetKind):
        raise ValueError(f"target must be one of {', '.join(get_args(TargetKind))}, got {kind!r}")


@dataclass(frozen=True, eq=False)
class TargetSpace:
    """How a layer's states are brought into the target's space.

    ```python
    raw         h                                          # the paper
    centred     h - centre[l]
    translated  (h - centre[l]) @ maps[l] + offset
    individual  h - mean over the pictures of h at the same patch
    ```
    The last leaves of a target what the picture adds: its mean over the pictures of the same forward pass, at
    the same place, is taken off, so that the targets of a pass sum to zero at every place. It depends on the
    micro-batch, and a picture that is alone in its pass is not supervised.

    The centre is taken off before the product: it is up to a hundred times larger than what differs from
    token to token, and a map stored in bf16 would turn it into an error as large as the result.

    Raises ValueError if the kind is unknown, or its means or maps are missing.
    """

    kind: TargetKind = RAW
    # `(k, D)` fp32, the mean text state after each layer; `None` where nothing is fitted
    centre: torch.Tensor | None = None
    # k matrices `(D, D)`, in the decoder's precision; none unless translated
    maps: tuple[torch.Tensor, ...] = ()
    # `(D,)` fp32, the mean of what the first layer received; `None` unless translated
    offset: torch.Tensor | None = None
    report: dict = field(default_factory=dict)  # how it was fitted and how good it is, for the manifest

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if self.kind not in UNFITTED and self.centre is None:
            raise ValueError(
                f"a {self.kind} target must be fitted first: fit_target(model, tokenizer, texts, "
                f"{self.kind!r}) returns what to give as `target`"
            )
        if self.kind == "translated" and (
            self.centre is None or self.offset is None or len(self.maps) != len(self.centre)
        ):
            raise ValueError("a translated target needs one map per layer and an offset")

    def check_fits(self, layers: int, width: int) -> None:
        """Raise ValueError if the space lacks supervised layers, or the decoder's width is another."""
        if self.kind == RAW or self.centre is None:
            return
        have, wide = self.centre.shape
        if have < layers or wide != width:
            raise ValueError(
                f"this {self.kind} target was fitted for {have} layers of width {wide}, and {layers} of "
                f"width {width} are supervised; fit it for this decoder"
            )

    def to(self, device: torch.device | str) -> TargetSpace:
        if self.kind == RAW or self.centre is None or self.centre.device == torch.device(device):
            return self
        offset = None if self.offset is None else self.offset.to(device)
        maps = tuple(matrix.to(device) for matrix in self.maps)
        return replace(self, centre=self.centre.to(device), maps=maps, offset=offset)

    def bring(self, index: int, states: torch.Tensor, images: int = 1) -> torch.Tensor:
        """Bring the states after a layer into the target's space.

        A map costs `2 * N * D * D` operations per layer, on the patches' rows alone: for Vicuna-7B with eight
        pictures 16 * 2 * 4608 * 4096^2 = 2.5e12, 4 % of the decoder's forward pass.

        Args:
            index: the layer, from 0.
            states: `(N, D)` fp32 or fp64; may be overwritten.
            images: how many pictures the N patches are of, in order and all alike.

        Returns:
            `(N, D)`, in the precision of `states`; for raw `states` itself.
        """
        if self.kind == INDIVIDUAL:
            by_picture = states.view(images, -1, states.shape[-1])
            return by_picture.sub_(by_picture.mean(0)).view_as(states)
        if self.kind == RAW or self.centre is None:
            return states
        states.sub_(self.centre[index])
        if self.offset is None:
            return states
        brought = torch.empty_like(states)
        multiply(states, self.maps[index], brought)
        return brought.add_(self.offset)

    def save(self, path: Path) -> None:
        """Write it as safetensors, the report in the header."""
        tensors = {"centre": self.centre, "offset": self.offset}
        tensors |= {f"map.{number}": matrix for number, matrix in enumerate(self.maps, 1)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if v is not None}
        # One key: safetensors writes several in any order, and the same run should give the same bytes.
        save_file(tensors, path, metadata={"target": json.dumps({"kind": self.kind, "report": self.report})})

    @classmethod
    def load(cls, path: Path) -> TargetSpace:
        """Read what `save` wrote; raises ValueError, in one line, if the file is missing or damaged."""
        try:
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()["target"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            maps = tuple(tensors[f"map.{number}"] for number in range(1, len(tensors) - 1))
            return cls(header["kind"], tensors["centre"], maps, tensors.get("offset"), header["report"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            reason = one_line(error, 160)
            raise ValueError(
                f"{path} is no fitted target ({reason}); bring it back, or start again with --overwrite"
            ) from error
