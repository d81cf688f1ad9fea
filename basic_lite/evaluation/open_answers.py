"""Short free-form answers: the normalisers of the VQA family and their soft accuracy over human answers.

Four scorers are in use for the same ten human answers and differ by several points, so each has a name here
and a result must carry it. Sources: GT-Vision-Lab/VQA `vqaEval.py` (`vqa_official`), LLaVA
`llava/eval/m4c_evaluator.py` (`m4c`), lmms-eval `tasks/vqav2/utils.py` (`vqa_lmms`), VLMEvalKit
`dataset/utils/vqa_eval.py` (`vlmevalkit`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial

from basic_lite.evaluation.files import submission
from basic_lite.evaluation.question import Id, Question
from basic_lite.evaluation.statistics import Score, score_of

# Contractions that the VQA scorers write out: data of the VQA evaluation code, kept with its licence.
#
# Source: https://github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py. The map
# includes its slips (`somebody'd` loses the apostrophe, keys with a capital never match lower-cased words):
# scores depend on them.
#
# Copyright (c) 2014, Aishwarya Agrawal. All rights reserved.
#
# Redistribution and use in source and binary forms, with or without modification, are permitted provided that
# the following conditions are met:
#
# 1. Redistributions of source code must retain the above copyright notice, this list of conditions and the
#    following disclaimer.
# 2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the
#    following disclaimer in the documentation and/or other materials provided with the distribution.
#
# THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED
# WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A
# PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT OWNER OR CONTRIBUTORS BE LIABLE FOR ANY
# DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO,
# PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION)
# HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING
# NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE
# POSSIBILITY OF SUCH DAMAGE.
#
# The views and conclusions contained in the software and documentation are those of the authors and should
# not be interpreted as representing official policies, either expressed or implied, of the FreeBSD Project.

CONTRACTIONS: dict[str, str] = dict(
    pair.split(":")
    for pair in """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've
    couldnt've:couldn't've didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've
    hadn'tve:hadn't've hasnt:hasn't havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's
    howd:how'd howll:how'll hows:how's Id've:I'd've I'dve:I'd've Im:I'm Ive:I've isnt:isn't itd:it'd
    itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am mightnt:mightn't mightnt've:mightn't've
    mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've
    oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't
    shed've:she'd've she'dve:she'd've she's:she's shouldve:should've shouldnt:shouldn't
    shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd somebodyd've:somebody'd've
    somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd
    someoned've:someone'd've someone'dve:someone'd've someonell:someone'll someones:someone's
    somethingd:something'd somethingd've:something'd've something'dve:something'd've
    somethingll:something'll thats:that's thered:there'd thered've:there'd've there'dve:there'd've
    therere:there're theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've theyll:they'll
    theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've
    werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's whered:where'd
    wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
    whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't
    wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll
    yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've
    you'dve:you'd've youll:you'll youre:you're youve:you've
    """.split()
)

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

    One `digit,digit` anywhere makes every mark a deletion.
    """
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION.intersection(text):
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or delete_all else " ")
    return period.sub("", result, count=_PERIODS_REMOVED)


def without_punctuation(text: str) -> str:
    """Return a text as VLMEvalKit's `process_punctuation` leaves it."""
    return _strip_punctuation(text, _PERIOD_VLMEVALKIT)


def _words(text: str) -> str:
    """Lower the case, write numbers as digits, drop articles, write contractions out, in this order."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def normalize(text: str, variant: str) -> str:
    """Return an answer as a scorer compares it; it may be empty (`"a"`, `"the"`).

    `variant` is `"m4c"` (LLaVA, TextVQA: deletes commas and question marks and splits `'s` off first),
    `"vqa_official"` (the VQA server) or `"vlmevalkit"` (keeps the dot of `"5."`); another raises ValueError.
    """
    if variant not in NORMALIZERS:
        raise ValueError(f"Unknown answer normaliser {variant!r}: use one of {', '.join(NORMALIZERS)}.")
    if variant == "m4c":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    period = _PERIOD_VLMEVALKIT if variant == "vlmevalkit" else _PERIOD
    return _words(_strip_punctuation(_one_line(text), period))


_official = partial(normalize, variant="vqa_official")
_m4c = partial(normalize, variant="m4c")


def _soft(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the humans of `min(1, matches among the others / 3)`: with ten 0, .3, .6, .9 or 1."""
    humans = len(answers)
    matches = sum(answer == prediction for answer in answers)
    as_matching_human = matches * min(1.0, (matches - 1) / 3)
    as_other_human = (humans - matches) * min(1.0, matches / 3)
    return (as_matching_human + as_other_human) / humans


def vqa_accuracy(prediction: str, answers: Sequence[str], scorer: str) -> float:
    """Return the accuracy in [0, 1] of one answer against the human ones, ten in VQAv2, TextVQA and VizWiz.

    `scorer` is `"vqa_official"` (both sides normalised, but compared as they are where all humans wrote the
    same), `"vqa_official_on_m4c"` (the same on the m4c-normalised prediction, as LLaVA submits to the
    server), `"vqa_lmms"` (both sides always normalised), `"vqa_m4c"` (both sides always through m4c; TextVQA)
    or `"vizwiz_official"` (only the prediction normalised). Raises ValueError if it is unknown or there is no
    human answer.
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
    if scorer not in SCORERS:
        raise ValueError(f"Unknown VQA scorer {scorer!r}: use one of {', '.join(SCORERS)}.")
    of_model = _m4c if scorer == "vqa_m4c" else _official
    of_humans = str if scorer == "vizwiz_official" else of_model
    return _soft(of_model(prediction), [of_humans(answer) for answer in answers])


def soft_accuracies(
    questions: Sequence[Question], predictions: Mapping[Id, str], scorer: str
) -> dict[Id, float]:
    """Return question -> accuracy in [0, 1]; a question without a prediction has 0."""
    return {
        question.id: vqa_accuracy(predictions[question.id], question.answers, scorer)
        if question.id in predictions
        else 0.0
        for question in questions
    }


def soft_score(
    questions: Sequence[Question],
    predictions: Mapping[Id, str],
    scorer: str,
    groupings: Iterable[str],
    notes: tuple[str, ...] = (),
) -> Score:
    """Score open answers by a scorer of `vqa_accuracy`, by the named entries of `Question.fields`."""
    return score_of(
        questions,
        predictions,
        soft_accuracies(questions, predictions, scorer),
        metric="accuracy over ten human answers",
        scorer=scorer,
        groupings=groupings,
        notes=notes,
    )


export_answers = submission(lambda q, answer: {"question_id": q.id, "answer": _m4c(answer)})
"""Writes the JSON list that the VQA servers read: every question, m4c-normalised, `""` if unanswered."""
