"""LLaVA's projector as it is trained here."""

from __future__ import annotations

import torch
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector


class Projector(LlavaMultiModalProjector):
    """LLaVA's two-layer projector in fp32, with the only dtype boundary of the model inside.

    The tower's bf16 features are widened on the way in; autocast is off inside, or it would run the
    trained fp32 weights in bf16. `LlavaModel` narrows the result to the decoder's dtype when it puts it
    among the text.
    """

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Map `(I, P, tower width)` in any dtype to `(I, P, D)` in the weights' dtype."""
        with torch.autocast(image_features.device.type, enabled=False):
            return super().forward(image_features.to(self.linear_1.weight.dtype))
