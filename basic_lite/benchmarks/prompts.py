"""The request that ends a question, as LLaVA-1.5 was trained to read it.

Source: LLaVA `docs/Evaluation.md` and the question files of its `eval.zip`.
"""

from __future__ import annotations

from collections.abc import Mapping

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
LETTER_CN_LMMS = "请直接使用所提供的选项字母作为答案回答。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def check_style(style: str, known: Mapping[str, object], benchmark: str) -> None:
    """Check the name of a prompt style.

    Raises:
        ValueError: If the benchmark has no such style.
    """
    if style not in known:
        raise ValueError(f"Unknown prompt style {style!r} of {benchmark}: use one of {', '.join(known)}.")
