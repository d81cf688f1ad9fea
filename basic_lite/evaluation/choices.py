"""Which option did the model choose? The extraction rules in use for multiple choice, each under its name.

None of them asks a judge model and none guesses at random: what a rule cannot resolve is `None` and counts
as wrong. Sources: VLMEvalKit `vlmeval/utils/matching_util.py` (`exact_matching`), lmms-eval
`tasks/mmbench/mmbench_evals.py` (`lmms_can_infer`) with `tasks/_task_utils/mcq_extract.py` (`lmms_static`),
LLaVA `llava/eval/eval_science_qa.py` (`llava_sqa`), lmms-eval `tasks/scienceqa/utils.py` (`lmms_sqa`).
"""

from __future__ import annotations

import re
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
    named = [letter for letter, text in choices.items() if str(text).lower() in lowered]
    return (named[0], "text") if len(named) == 1 else _UNPARSED


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
_LMMS_MARKS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def _lmms_can_infer(prediction: str, choices: Mapping[str, str]) -> Extraction:
    if _API_FAILURE not in prediction:
        tokens = prediction.split()
        present = [letter for letter in _LMMS_LETTERS if letter in tokens]
        # An "A" among more than three words may be the article; the marks below are still tried.
        if len(present) == 1 and not ("A" in tokens and len(tokens) > 3):
            return present[0], "letter"
        for mark in _LMMS_MARKS:
            present = [letter for letter in _LMMS_LETTERS if mark.format(letter) in tokens]
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


def lmms_mcq(prediction: str, letters: Sequence[str]) -> str | None:
    """Search the letters in ever weaker surroundings: the strongest wins, then the latest position."""
    text = prediction.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    core, text = text.strip(), f" {text} "
    hits: list[tuple[int, int, str]] = []  # strength, position, letter
    for letter in letters:
        if core.startswith(letter) and not core[1:2].isalpha():
            hits.append((10, 0, letter))
        if core.endswith(letter) and not core[-2:-1].isalpha():
            hits.append((9, len(text) - 1, letter))
        for strength, mark in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "), (0, "{}")):
            hits.append((strength, text.rfind(mark.format(letter)), letter))
        for phrase in _ANSWER_PHRASES:
            start = text.lower().find(phrase)
            if start >= 0:
                hits.append((7, text.find(letter, start + len(phrase)), letter))
    hits = [hit for hit in hits if hit[1] >= 0]
    return max(hits)[2] if hits else None


def _lmms_static(prediction: str, choices: Mapping[str, str]) -> Extraction:
    inferred = _lmms_can_infer(prediction, choices)
    if inferred[0]:
        return inferred
    letter = lmms_mcq(prediction, list(choices))
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
    reported. Arguments and errors as of `extract_option`.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown option extraction {method!r}: use one of {', '.join(METHODS)}.")
    return METHODS[method](prediction, choices)


def extract_option(prediction: str, choices: Mapping[str, str], method: str) -> str | None:
    """Return the option letter that an answer chooses, `None` where the rule resolves nothing.

    Args:
        prediction: The model's answer.
        choices: Letter -> text of the options that this question has.
        method: `"exact_matching"` (VLMEvalKit without a judge; `"Z"` is a refusal), `"lmms_static"`
            (lmms-eval's MMBench without a judge, which may name a letter that the question does not have;
            `"lmms_can_infer"` is its first stage alone), `"llava_sqa"` or `"lmms_sqa"` (ScienceQA).

    Raises:
        ValueError: If the method is unknown.
    """
    return resolve_option(prediction, choices, method)[0]
