"""Whether another loader's decoder says what the run's does, given the same embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from basic_lite.export.parity import LIMITS, Answer, relative_gap
from basic_lite.models.generate import one_row
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of


@dataclass
class Seen:
    """What entered the run's decoder, and what came out of its head."""

    embeds: torch.Tensor  # `(1, S, D)` on the CPU
    logits: torch.Tensor  # `(S, V)` fp32, on the CPU


@torch.inference_mode()
def watch_decoder(assembled: Assembled, answers: list[Answer]) -> list[Seen]:
    """Run prompts and answers through the run once more, and keep what its decoder receives."""
    decoder = parts_of(assembled.model).decoder
    received: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        received.append(kwargs["inputs_embeds"])

    hook, seen = decoder.register_forward_pre_hook(keep, with_kwargs=True), []
    try:
        for answer in answers:
            row = one_row(assembled.model, answer.ids + answer.produced, answer.pixels)
            logits = assembled.model(**row).logits
            seen.append(Seen(received[-1].cpu(), logits[0].float().cpu()))
    finally:
        hook.remove()
    return seen


@torch.inference_mode()
def judge_decoder(causal: nn.Module, seen: list[Seen], *dtypes: torch.dtype) -> dict[str, float]:
    """Compare another loader's causal LM on the run's embeddings; raises ValueError if the gap is too large.

    The coarser one of `dtypes`, of run and folder, sets the limit.
    """
    for_inference(causal)
    weight = next(causal.parameters())
    gap = 0.0
    for prompt in seen:
        logits = causal(inputs_embeds=prompt.embeds.to(weight.device)).logits[0].float().cpu()
        gap = max(gap, relative_gap(logits, prompt.logits))
    limit = max(LIMITS[dtype] for dtype in dtypes)
    if gap > limit:
        raise ValueError(
            f"the exported folder is not the run: gap {gap:.3g} (at most {limit:g}); nothing was kept, "
            "please report this"
        )
    return {"decoder_gap": gap, "limit": limit}
