"""Print what the real trainer's step holds at each of the `POINTS` that are named, as JSON lines.

In a process of its own, which ends without tidying up: collecting the cycles of so many fake tensors has
crashed the interpreter (torch 2.13), and that must not take a test session with it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from dataclasses import replace

from basic_lite.memory.activations import DecoderSetup
from basic_lite.memory.peak import Step
from basic_lite.memory.sizes import TOWERS, TowerSize, published_decoder

LORA = DecoderSetup(4, "adapters")
FUSED_LORA = replace(LORA, fused=True)
FUSED = DecoderSetup(fused=True)


def tuned(
    name: str, setup: DecoderSetup, micro_batch: int, recompute: int, text: int = 824, **more: object
) -> tuple[str, DecoderSetup, dict]:
    """Return a point of stage 2, with rows of LLaVA's instructions."""
    return name, setup, {"text": text, "micro_batch": micro_batch, "recompute": recompute} | more


POINTS = {
    "7B, stage 1, nothing recomputed": ("vicuna-7b", DecoderSetup(), {"recompute": 0}),
    "7B, stage 1, one of three": ("vicuna-7b", DecoderSetup(), {"recompute": 1}),
    "7B, stage 1, all": ("vicuna-7b", DecoderSetup(), {"recompute": 3, "micro_batch": 3}),
    "7B, stage 2, two of three": ("vicuna-7b", LORA, {"text": 824, "micro_batch": 1, "recompute": 2}),
    "Gemma-2B, stage 1, nothing recomputed": ("gemma-2b", DecoderSetup(), {"micro_batch": 1}),
    "7B, stage 1, nothing recomputed, fused": ("vicuna-7b", FUSED, {"recompute": 0}),
    "7B, stage 1, all, fused": ("vicuna-7b", FUSED, {"recompute": 3, "micro_batch": 3}),
    "7B, stage 2, two of three, fused": tuned("vicuna-7b", FUSED_LORA, 1, 2),
    "Gemma-2B, stage 1, all, fused": ("gemma-2b", FUSED, {"recompute": 3, "micro_batch": 8}),
    "Gemma-2B, stage 2, all, fused": tuned("gemma-2b", FUSED_LORA, 4, 3),
    "7B, stage 2, nothing recomputed, fused": tuned("vicuna-7b", FUSED_LORA, 1, 0),
    "7B, stage 2, all, fused, one micro-batch": tuned("vicuna-7b", FUSED_LORA, 4, 3, accumulates=False),
    "7B, stage 2, 16 bits, all, fused": tuned("vicuna-7b", replace(LORA, bits=16, fused=True), 2, 3),
    "7B, stage 2, one of three, no dropout": tuned("vicuna-7b", replace(LORA, dropout=0.0), 2, 1),
    "Phi-3, stage 2, all, fused": tuned("phi3-mini", FUSED_LORA, 4, 3),
    "7B, stage 2, tower, fused": tuned("vicuna-7b", FUSED_LORA, 2, 3, tower_trained=True),
    "7B, stage 2, tower, one micro-batch": tuned(
        "vicuna-7b", LORA, 8, 3, text=64, tower_trained=True, accumulates=False
    ),
    "Gemma-2B, stage 2, tower's adapters, fused": tuned("gemma-2b", FUSED_LORA, 8, 3, text=64, tower_rank=16),
    "Phi-3, stage 1, all, fused": ("phi3-mini", FUSED, {"recompute": 3, "micro_batch": 8}),
    "Phi-3, stage 1, one of three, fused": ("phi3-mini", FUSED, {"recompute": 1}),
}


def step_at(point: str) -> tuple[str, Step]:
    """Three layers, so that what comes and goes is not dwarfed by the weights of all 32."""
    name, setup, settings = POINTS[point]
    decoder = replace(published_decoder(name), depth=3)
    return name, Step(decoder, TowerSize.of(TOWERS["clip-l-336"]), setup, **({"micro_batch": 2} | settings))


if __name__ == "__main__":
    from fake_models import step_peak

    gc.disable()
    for point in sys.argv[1:] or POINTS:
        name, step = step_at(point)
        print(json.dumps({point: step_peak(name, step, tempfile.gettempdir())}), flush=True)
    sys.stdout.flush()
    os._exit(0)
