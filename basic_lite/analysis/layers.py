"""What every decoder layer makes of one picture's visual embeddings: matched, then dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from basic_lite.analysis.matching import match_tokens
from basic_lite.capture import parts_of


@dataclass
class LayerMatches:
    """One picture through the decoder; entry 0 is what goes in, entry l what layer l (of 1..L) leaves.

    The last layer is taken as it leaves the layer, before the decoder's final norm: the space that the first
    layer receives.

    Attributes:
        tokens: `(P,)` int64 each, the token nearest to each patch's state by cosine.
        similarity: `(P,)` fp32 each, that cosine.
        cosine: `(P,)` fp32 each, the cosine of the state to the initial embedding; all ones at entry 0.
        target: `(P, D)` fp32, the weighted sum of the states after layers 1..k.
    """

    tokens: list[torch.Tensor] = field(default_factory=list)
    similarity: list[torch.Tensor] = field(default_factory=list)
    cosine: list[torch.Tensor] = field(default_factory=list)
    target: torch.Tensor | None = None


@contextmanager
def watch_layers(model: nn.Module, patch: torch.Tensor, weights: Sequence[float]) -> Iterator[LayerMatches]:
    """Match the patches' states after every decoder layer, while one row passes.

    A hook on each layer gathers `(P, D)` states, matches them and lets them go: beside the forward pass
    itself the initial embeddings and the target are all that is held.

    Args:
        model: the LLaVA, wrapped or not.
        patch: `(P,)` int64, where the patches stand in the row, on the model's device.
        weights: `w_1 .. w_k` of the target.

    Yields:
        What is found, complete when the forward pass is done.
    """
    parts, seen = parts_of(model), LayerMatches()
    initial: list[torch.Tensor] = []

    def note(states: torch.Tensor) -> None:
        ids, values = match_tokens(states, parts.embedding)
        seen.tokens.append(ids.cpu())
        seen.similarity.append(values.cpu())
        seen.cosine.append(F.cosine_similarity(states.float(), initial[0], dim=1).cpu())

    def receive(decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        states = kwargs["inputs_embeds"][0].index_select(0, patch)
        initial.append(states.float())
        seen.target = torch.zeros_like(initial[0])
        note(states)

    def leave(index: int) -> Callable[[nn.Module, tuple, torch.Tensor | tuple], None]:
        def hook(layer: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            states = hidden[0].index_select(0, patch)
            if index < len(weights):
                seen.target.add_(states.float(), alpha=weights[index])
            note(states)

        return hook

    with ExitStack() as stack, torch.no_grad():
        hooks = [parts.decoder.register_forward_pre_hook(receive, with_kwargs=True)]
        hooks += [layer.register_forward_hook(leave(i)) for i, layer in enumerate(parts.decoder.layers)]
        for hook in hooks:
            stack.callback(hook.remove)
        yield seen
