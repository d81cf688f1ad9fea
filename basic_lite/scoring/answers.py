"""Short free-form answers: the normalisers of the VQA family and their soft accuracy over human answers.

Four scorers are in use for the same ten human answers and differ by several points, so each has a name here
and a result must carry it. Sources: GT-Vision-Lab/VQA `vqaEval.py` (`vqa_official`), LLaVA
`llava/eval/m4c_evaluator.py` (`m4c`), lmms-eval `tasks/vqav2/utils.py` (`vqa_lmms`), VLMEvalKit
`dataset/utils/vqa_eval.py` (`vlmevalkit`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from basic_lite.scoring.contractions import CONTRACTIONS

_PUNCTUATION = frozenset(';/[]"{}()=+\\_-><@`,?!')
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        ["none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
    for word in words.split()
}
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The original look-behind is misspelt and never refuses, so the dot of "5." goes too; VLMEvalKit repaired it.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_VLMEVALKIT = re.compile(r"(?<!\d)\.(?!\d)")
# `re.UNICODE` (32) stands where `re.sub` takes `count`: only the first 32 dots of an answer are removed.
_PERIODS_REMOVED = 32

NORMALIZERS = ("m4c", "vqa_official", "vlmevalkit")
SCORERS = ("vqa_official", "vqa_official_on_m4c", "vqa_lmms", "vqa_m4c", "vizwiz_official")


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str, period: re.Pattern[str]) -> str:
    """Delete a mark that stands beside a space, turn it into a space elsewhere.

    The tests look at the original text, so the order of the marks is free, and one `digit,digit` anywhere
    makes every mark a deletion.
    """
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION.intersection(text):
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or delete_all else " ")
    return period.sub("", result, count=_PERIODS_REMOVED)


def _words(text: str) -> str:
    """Lower the case, write numbers as digits, drop articles, write contractions out, in this order."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def normalize(text: str, variant: str) -> str:
    """Return an answer as a scorer compares it.

    Args:
        text: A prediction or a human answer.
        variant: `"m4c"` (LLaVA, TextVQA: deletes commas and question marks and splits `'s` off first),
            `"vqa_official"` (the VQA server) or `"vlmevalkit"` (keeps the dot of `"5."`).

    Returns:
        The normalised answer; it may be empty (`"a"`, `"the"`).

    Raises:
        ValueError: If the variant is unknown.
    """
    if variant == "m4c":
        lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        return _words(_strip_punctuation(_one_line(lowered), _PERIOD))
    if variant == "vqa_official":
        return _words(_strip_punctuation(_one_line(text), _PERIOD))
    if variant == "vlmevalkit":
        return _words(_strip_punctuation(_one_line(text), _PERIOD_VLMEVALKIT))
    raise ValueError(f"Unknown answer normaliser {variant!r}: use one of {', '.join(NORMALIZERS)}.")


def _official(text: str) -> str:
    return normalize(text, "vqa_official")


def _m4c(text: str) -> str:
    return normalize(text, "m4c")


def _soft(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the humans of `min(1, matches among the other humans / 3)`.

    Ten humans and k matches give 0, .3, .6, .9 and, from four matches on, 1.
    """
    humans = len(answers)
    matches = sum(answer == prediction for answer in answers)
    as_matching_human = matches * min(1.0, (matches - 1) / 3)
    as_other_human = (humans - matches) * min(1.0, matches / 3)
    return (as_matching_human + as_other_human) / humans


def vqa_accuracy(prediction: str, answers: Sequence[str], scorer: str) -> float:
    """Score one answer against what the humans answered.

    Args:
        prediction: The model's answer.
        answers: The human answers, ten of them in VQAv2, TextVQA and VizWiz.
        scorer: `"vqa_official"` (both sides normalised, but compared as they are where all humans wrote
            the same), `"vqa_official_on_m4c"` (the same on the m4c-normalised prediction, as LLaVA submits to
            the server), `"vqa_lmms"` (both sides always normalised), `"vqa_m4c"` (both sides always through
            m4c; TextVQA) or `"vizwiz_official"` (only the prediction normalised).

    Returns:
        The accuracy in [0, 1].

    Raises:
        ValueError: If the scorer is unknown or there is no human answer.
    """
    if not answers:
        raise ValueError(
            "No human answers to score against: the split has no public labels; export a submission instead."
        )
    if scorer == "vqa_official_on_m4c":
        return vqa_accuracy(_m4c(prediction), answers, "vqa_official")
    if scorer == "vqa_official":
        cleaned = [_one_line(answer) for answer in answers]
        same: Callable[[str], str] = _one_line if len(set(cleaned)) == 1 else _official
        return _soft(same(prediction), [same(answer) for answer in cleaned])
    if scorer == "vqa_lmms":
        return _soft(_official(prediction), [_official(answer) for answer in answers])
    if scorer == "vqa_m4c":
        return _soft(_m4c(prediction), [_m4c(answer) for answer in answers])
    if scorer == "vizwiz_official":
        return _soft(_official(prediction), list(answers))
    raise ValueError(f"Unknown VQA scorer {scorer!r}: use one of {', '.join(SCORERS)}.")
