"""Dropout in front of adapters that keeps neither its mask nor what it let through.

LLaVA-1.5 trains its adapters with a dropout of 0.05, and PEFT draws one for every adapted layer. Autograd
then keeps, layer by layer, a mask and a copy of the input: for query, key and value three copies of one
tensor. Here the input alone is kept, which those three share, and what was dropped is drawn once more in
backward, from the same state of the random generator: the same numbers from fewer bytes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class DroppedLinear(nn.Linear):
    """A linear layer with dropout on its input, which it draws anew in backward.

    Attributes:
        dropout: share of the input that is set to 0 while training.
    """

    dropout: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        if not self.training or not torch.is_grad_enabled():
            return self._dropped(x)
        # Backward asks for nothing behind the dropout but the product's input: the product is not repeated.
        return checkpoint(self._dropped, x, use_reentrant=False)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x, self.dropout, self.training))


def draw_again_in_backward(model: nn.Module) -> None:
    """Let every adapter of a PEFT model hold its dropout in its first matrix, as `DroppedLinear`.

    Names, weights and PEFT's configuration stay as they are, and so does every number that is drawn.
    """
    for layer in model.modules():
        for name, dropout in getattr(layer, "lora_dropout", {}).items():
            if isinstance(dropout, nn.Dropout) and type(layer.lora_A[name]) is nn.Linear:
                layer.lora_A[name].__class__ = DroppedLinear
                layer.lora_A[name].dropout = dropout.p
                layer.lora_dropout[name] = nn.Identity()
