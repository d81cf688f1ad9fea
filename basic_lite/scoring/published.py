"""Published figures to print beside a measured one, with what they were measured on.

Sources: LLaVA `docs/MODEL_ZOO.md` (LLaVA-1.5 and its LoRA versions), the BASIC paper (ICCV 2025).
"""

from __future__ import annotations

_ORDER = (
    *("vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope"),
    *("mme", "mmbench", "mmbench-cn", "seed", "mmvet"),
)

PUBLISHED: dict[str, dict[str, float]] = {
    "LLaVA-1.5-7B": dict(
        zip(_ORDER, (78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 58.3, 58.6, 31.1), strict=True)
    ),
    "LLaVA-1.5-13B": dict(
        zip(_ORDER, (80.0, 63.3, 53.6, 71.6, 61.3, 85.9, 1531.3, 67.7, 63.6, 61.6, 36.1), strict=True)
    ),
    "LLaVA-1.5-7B LoRA": dict(
        zip(_ORDER, (79.1, 63.0, 47.8, 68.4, 58.2, 86.4, 1476.9, 66.1, 58.9, 60.1, 30.2), strict=True)
    ),
    "LLaVA-1.5-13B LoRA": dict(
        zip(_ORDER, (80.0, 63.3, 58.9, 71.2, 60.2, 86.7, 1541.7, 68.5, 61.5, 61.3, 38.3), strict=True)
    ),
    "BASIC-7B": {
        "vqav2": 79.2,
        "gqa": 63.5,
        "vizwiz": 52.5,
        "scienceqa": 70.6,
        "mmbench": 68.8,
        "mmbench-cn": 62.1,
        "mmvet": 33.8,
    },
}
"""Model -> benchmark -> figure, in per cent (MME: perception points)."""

MEASURED_ON: dict[str, str] = {
    "vqav2": "test-dev, scored by the server",
    "gqa": "testdev balanced",
    "vizwiz": "test, scored by the server",
    "scienceqa": "test, questions with a picture",
    "textvqa": "val, with OCR tokens in the prompt",
    "pope": "mean F1 of the three categories",
    "mme": "perception points",
    "mmbench": "dev, scored by the server, which asked a GPT where matching failed",
    "mmbench-cn": "dev, scored by the server, which asked a GPT where matching failed",
    "seed": "images and videos",
    "mmvet": "judged by gpt-4-0613",
}
"""What the published figures were measured on; another split or scorer is not comparable."""


def published(benchmark: str) -> dict[str, float]:
    """Return model -> published figure of a benchmark, for the models that have one."""
    return {model: figures[benchmark] for model, figures in PUBLISHED.items() if benchmark in figures}
