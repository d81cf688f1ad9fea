"""Which option did the model choose? The extraction rules in use for multiple choice, each under its name.

None of them asks a judge model and none guesses at random: what a rule cannot resolve is `None` and counts
as wrong. Sources: VLMEvalKit `vlmeval/utils/matching_util.py` (`exact_matching`), lmms-eval
`tasks/mmbench/mmbench_evals.py` (`lmms_can_infer`) with `tasks/_task_utils/mcq_extract.py` (`lmms_static`),
LLaVA `llava/eval/eval_science_qa.py` (`llava_sqa`), lmms-eval `tasks/scienceqa/utils.py` (`lmms_sqa`).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence

Extraction = tuple[str | None, str]
"""The chosen letter (or `None`), and what resolved it: `"letter"`, `"text"` or `""`."""

_UNPARSED: Extraction = (None, "")
_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST_TOKENS = 5  # VLMEvalKit trusts a bare letter only this near to the end


def _by_text(prediction: str, choices: Mapping[str, str]) -> Extraction:
    """Return the one option whose text occurs in the prediction, whatever the case."""
    lowered = prediction.lower()
    found = [letter for letter, text in choices.items() if str(text).lower() in lowered]
    return (found[0], "text") if len(found) == 1 else _UNPARSED


def _exact_matching(prediction: str, choices: Mapping[str, str]) -> Extraction:
    if _API_FAILURE not in prediction:
        if any(refusal in prediction for refusal in _REFUSALS):
            return "Z", "letter"
        tokens = prediction.translate(_MARKS_TO_SPACES).split()
        present = [letter for letter in choices if letter in tokens]
        if len(present) == 1 and tokens.index(present[0]) > len(tokens) - _LAST_TOKENS:
            return present[0], "letter"
        if not present and "Z" in tokens:
            return "Z", "letter"
        stated = _ANSWER_IS.search(prediction)
        if stated and stated[1].upper() in choices:
            return stated[1].upper(), "letter"
    # A long answer mentions options without choosing one.
    if len(prediction) > 2 * sum(len(str(text)) for text in choices.values()):
        return _UNPARSED
    return _by_text(prediction, choices)


_LMMS_LETTERS = "ABCDE"  # all five, however many options the question has
_LMMS_AFFIXES = (
    ("", "."),
    ("", ","),
    ("", ":"),
    ("", ")"),
    ("", ")."),
    ("(", ")"),
    ("(", ")."),
    (":", ""),
    (":", ","),
    (":", "."),
    (":", ")"),
    (":", ")."),
)


def _lmms_can_infer(prediction: str, choices: Mapping[str, str]) -> Extraction:
    if _API_FAILURE not in prediction:
        tokens = prediction.split()
        present = [letter for letter in _LMMS_LETTERS if letter in tokens]
        # An "A" among more than three words may be the article; the affixes below are still tried.
        if len(present) == 1 and not ("A" in tokens and len(tokens) > 3):
            return present[0], "letter"
        for before, after in _LMMS_AFFIXES:
            present = [letter for letter in _LMMS_LETTERS if before + letter + after in tokens]
            if len(present) == 1:
                return present[0], "letter"
    return _by_text(prediction, choices)


_ANSWER_PHRASES = (
    *(
        f"{article}{noun} is"
        for noun in ("answer", "correct answer", "best answer", "correct option", "best option")
        for article in ("the ", "")
    ),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def _lmms_last_resort(prediction: str, letters: Sequence[str]) -> str | None:
    """Search the letters in ever weaker surroundings: the strongest wins, then the latest position."""
    text = prediction.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    core, text = text.strip(), f" {text} "
    found: list[tuple[int, int, str]] = []  # strength, position, letter
    for letter in letters:
        if core.startswith(letter) and not core[1:2].isalpha():
            found.append((10, 0, letter))
        if core.endswith(letter) and not core[-2:-1].isalpha():
            found.append((9, len(text) - 1, letter))
        for strength, pattern in (
            (6, f"({letter})"),
            (5, f"{letter}."),
            (4, f"{letter}:"),
            (3, f"{letter})"),
        ):
            found.append((strength, text.rfind(pattern), letter))
        found.append((2, text.rfind(f"{letter} "), letter))
        for phrase in _ANSWER_PHRASES:
            start = text.lower().find(phrase)
            if start >= 0:
                found.append((7, text.find(letter, start + len(phrase)), letter))
        found.append((0, text.rfind(letter), letter))
    found = [entry for entry in found if entry[1] >= 0]
    return max(found)[2] if found else None


def _lmms_static(prediction: str, choices: Mapping[str, str]) -> Extraction:
    inferred = _lmms_can_infer(prediction, choices)
    if inferred[0]:
        return inferred
    letter = _lmms_last_resort(prediction, list(choices))
    return (letter, "letter") if letter else _UNPARSED


_SQA_LETTERS = "ABCDE"
_SQA_STATED = re.compile(r"The answer is ([A-Z]).")  # the original does not escape the dot


def _llava_sqa(prediction: str, choices: Mapping[str, str]) -> Extraction:
    if prediction in tuple(_SQA_LETTERS):
        letter = prediction
    elif len(prediction) >= 3 and prediction[0] in _SQA_LETTERS and prediction[1:3] == ". ":
        letter = prediction[0]
    else:
        stated = _SQA_STATED.findall(prediction)
        letter = stated[0] if len(stated) == 1 else ""
    return (letter, "letter") if letter and letter in _SQA_LETTERS[: len(choices)] else _UNPARSED


def _lmms_sqa(prediction: str, choices: Mapping[str, str]) -> Extraction:
    prediction = prediction.strip()
    if prediction.upper() in choices:
        return prediction.upper(), "letter"
    if len(prediction) >= 2 and prediction[1] == "." and prediction[0] in choices:
        return prediction[0], "letter"
    return _UNPARSED


METHODS: dict[str, Callable[[str, Mapping[str, str]], Extraction]] = {
    "exact_matching": _exact_matching,
    "lmms_static": _lmms_static,
    "lmms_can_infer": _lmms_can_infer,
    "llava_sqa": _llava_sqa,
    "lmms_sqa": _lmms_sqa,
}


def resolve_option(prediction: str, choices: Mapping[str, str], method: str) -> Extraction:
    """Return the chosen letter and what resolved it: `"letter"`, `"text"` (an option's words) or `""`.

    Text matching is unsound where one option is part of another word ("no" in "not"), so its share is
    reported.

    Args:
        prediction: The model's answer.
        choices: Letter -> text of the options that this question has.
        method: As in `extract_option`.

    Raises:
        ValueError: If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown option extraction {method!r}: use one of {', '.join(METHODS)}.")
    return METHODS[method](prediction, choices)


def extract_option(prediction: str, choices: Mapping[str, str], method: str) -> str | None:
    """Return the option letter that an answer chooses.

    Args:
        prediction: The model's answer.
        choices: Letter -> text of the options that this question has.
        method: `"exact_matching"` (VLMEvalKit without a judge), `"lmms_static"` (lmms-eval's MMBench
            without a judge; `"lmms_can_infer"` is its first stage alone), `"llava_sqa"` or `"lmms_sqa"`
            (ScienceQA).

    Returns:
        The letter; `"Z"` where VLMEvalKit reads a refusal; `None` where the rule resolves nothing. The
        MMBench rules of lmms-eval may name a letter that the question does not have, which is wrong but
        parsed.

    Raises:
        ValueError: If the method is unknown.
    """
    return resolve_option(prediction, choices, method)[0]


_CN_MARKS = str.maketrans(dict.fromkeys("。、（）：():", " "))


def normalise_cn(prediction: str) -> str:
    """Fold full-width forms and set Chinese marks to spaces before extraction (opt-in for MMBench-CN).

    With LLaVA's suffix a model answers with a bare letter and this changes nothing; a large difference
    between the counts with and without it points at a wrong prompt.
    """
    return unicodedata.normalize("NFKC", prediction).translate(_CN_MARKS).strip()


# Equality with one reference answer, as the GQA and SEED-Bench scripts test it.
#
# Sources: LLaVA `scripts/convert_gqa_for_eval.py` followed by GQA's `eval.py`, lmms-eval `api/metrics.py`
# (`exact_match` with `ignore_case`, `ignore_punctuation`), VLMEvalKit `dataset/utils/vqa_eval.py`
# (`accuracy`), LLaVA `scripts/convert_seed_for_submission.py` (`exact`), lmms-eval `tasks/seedbench/utils.py`
# (`first_character`).

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


# Yes or no, as POPE and MME read it from an answer.
#
# Sources: LLaVA `llava/eval/eval_pope.py`, lmms-eval `tasks/pope/utils.py` and `tasks/mme/utils.py`, MME's
# `calculation.py`.

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
