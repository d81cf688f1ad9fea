"""Yes or no, as POPE and MME read it from an answer.

Sources: LLaVA `llava/eval/eval_pope.py`, lmms-eval `tasks/pope/utils.py` and `tasks/mme/utils.py`, MME's
`calculation.py`.
"""

from __future__ import annotations

POPE_SCORERS = ("pope_llava", "pope_lmms")
MME_SCORERS = ("mme_official", "mme_lmms")


def pope_answer(text: str, scorer: str) -> str:
    """Return `"yes"`, `"no"` or, for lmms-eval alone, `"other"`.

    LLaVA looks for a word of denial in the first sentence; whatever has none is a yes, an empty answer too.

    Raises:
        ValueError: If the scorer is unknown.
    """
    if scorer == "pope_llava":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"
    if scorer == "pope_lmms":
        lowered = text.lower().strip()
        return lowered if lowered in ("yes", "no") else "other"
    raise ValueError(f"Unknown POPE scorer {scorer!r}: use one of {', '.join(POPE_SCORERS)}.")


def mme_answer(text: str, scorer: str) -> str:
    """Return `"yes"`, `"no"` or `"other"`: which of the words stands in the first four characters.

    Raises:
        ValueError: If the scorer is unknown.
    """
    if scorer not in MME_SCORERS:
        raise ValueError(f"Unknown MME scorer {scorer!r}: use one of {', '.join(MME_SCORERS)}.")
    lowered = text.lower()
    if scorer == "mme_lmms":
        lowered = lowered.strip().replace(".", "")
        if lowered in ("y", "n"):
            return "yes" if lowered == "y" else "no"
    start = lowered[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"
