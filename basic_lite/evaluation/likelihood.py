"""How likely a model finds given answers, token by token, with each prompt computed once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from basic_lite.method.chunks import rows_in_chunk
from basic_lite.models.parts import parts_of


@torch.inference_mode()
def log_likelihoods(
    model: torch.nn.Module, inputs: Mapping[str, Any], answers: Sequence[Sequence[Sequence[int]]]
) -> list[torch.Tensor]:
    """Return for each prompt the log-likelihoods of its answers, `(answers,)` in fp32, on the CPU.

    A prompt, with its picture, passes the model once; its keys and values then serve every answer. The head
    sees the positions that predict an answer's tokens, and as many at a time as the loss has.

    Args:
        model: a LLaVA.
        inputs: of its forward pass, a row for each prompt, padded on the left.
        answers: ids of each prompt's answers, at least one id each.
    """
    parts, mask = parts_of(model), inputs["attention_mask"]
    row = torch.tensor([n for n, each in enumerate(answers) for _ in each], device=mask.device)
    ids = [torch.tensor(answer, device=mask.device) for each in answers for answer in each]
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    there = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
    # Newer transformers say `cache`, and warn of the older name.
    name = "cache" if "cache" in inspect.signature(parts.llava.forward).parameters else "past_key_values"
    cache: Any = {name: DynamicCache(config=parts.decoder.config)}
    states = parts.llava(**inputs, position_ids=_places(mask), use_cache=True, **cache)[0][row, -1:]
    if tokens.shape[1] > 1:
        cache[name].batch_select_indices(row)
        mask, new = torch.cat([mask[row], there[:, :-1]], 1), tokens[:, :-1]
        places = _places(mask)[:, -new.shape[1] :]
        more = parts.llava(input_ids=new, attention_mask=mask, position_ids=places, use_cache=True, **cache)
        states = torch.cat([states, more[0]], 1)
    states, tokens, there = states[there.bool()], tokens[there.bool()], there.nonzero()[:, 0]
    size = rows_in_chunk(len(tokens), len(parts.embedding))
    each = [
        -F.cross_entropy(parts.head(some).float(), true, reduction="none")
        for some, true in zip(states.split(size), tokens.split(size), strict=True)
    ]
    total = torch.zeros(len(row), device=mask.device).index_add_(0, there, torch.cat(each))
    return list(total.cpu().split([len(each) for each in answers]))


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Return the position of every token, `(B, S)`; padding before the first one stands at 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
