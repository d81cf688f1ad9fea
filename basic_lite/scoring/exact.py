"""Equality with one reference answer, as the GQA and SEED-Bench scripts test it.

Sources: LLaVA `scripts/convert_gqa_for_eval.py` followed by GQA's `eval.py`, lmms-eval `api/metrics.py`
(`exact_match` with `ignore_case`, `ignore_punctuation`), VLMEvalKit `dataset/utils/vqa_eval.py` (`accuracy`),
LLaVA `scripts/convert_seed_for_submission.py` (`exact`), lmms-eval `tasks/seedbench/utils.py`
(`first_character`).
"""

from __future__ import annotations

import string
from collections.abc import Callable

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def gqa_submission(text: str) -> str:
    """Return an answer as LLaVA hands it to GQA's evaluation: without final dots, in lower case."""
    return text.rstrip(".").lower()


def _lmms(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


_EQUAL: dict[str, Callable[[str, str], bool]] = {
    "gqa_llava": lambda prediction, answer: gqa_submission(prediction) == answer,
    "gqa_lmms": lambda prediction, answer: _lmms(prediction) == _lmms(answer),
    "gqa_vlmevalkit": lambda prediction, answer: prediction.strip().lower() == answer.strip().lower(),
    "exact": lambda prediction, answer: prediction == answer,
    "first_character": lambda prediction, answer: prediction.strip()[:1] == answer,
}

GQA_SCORERS = ("gqa_llava", "gqa_lmms", "gqa_vlmevalkit")
LETTER_SCORERS = ("exact", "first_character")


def exact_match(prediction: str, answer: str, scorer: str) -> bool:
    """Return whether an answer equals the reference under a named rule.

    Raises:
        ValueError: If the rule is unknown.
    """
    if scorer not in _EQUAL:
        raise ValueError(f"Unknown exact-match scorer {scorer!r}: use one of {', '.join(_EQUAL)}.")
    return _EQUAL[scorer](prediction, answer)
