"""MMMU's validation split: the Hugging Face rows and VLMEvalKit's TSV, by MMMU's own rule.

LLaVA-1.5 sees the first picture alone, as in MMMU's own script for it; `several_pictures` counts the
questions that have more. MMMU guesses at random where it reads no letter: here that is wrong. `mmmu_lmms`
reads letters as lmms-eval does, and open answers as MMMU. Sources: MMMU `mmmu/utils/eval_utils.py` and
`configs/llava1.5.yaml`, lmms-eval `tasks/_task_utils/mmmu_mcq_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, Rule, score_each
from basic_lite.evaluation.files import table_reader
from basic_lite.evaluation.question import LETTER, SHORT, Question, question_of
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import OPTIONS, choices_in, listed, tsv_reader

STYLES = {"llava": ("({}) {}", "\n"), "lmms": ("{}. {}", "\n\n")}
"""Style -> how an option stands, and what stands before the request of an open answer.

MMMU's YAML has blank lines between question, options and request; folded, each but the last is one newline.
"""
_PICTURE = re.compile(r"<image \d>")
_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_BEFORE_AN_ANSWER = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")


Steps = tuple[tuple[str, str], ...]
"""What marks a letter, tried in turn, and how its place is looked for where several are marked."""

OWN: Steps = (("({})", "({})"), (" {} ", " {} "))
LMMS: Steps = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))  # also at the end of a word, and "A."


def chosen(text: str, choices: Mapping[str, str], steps: Steps = OWN) -> str | None:
    """Return the letter that is read; of several the one that stands last.

    In an answer of more than five words without one, an option's words count.
    """
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        text = text.strip(mark)
    text = f" {text} "
    for marked, placed in steps:
        named = [letter for letter in choices if marked.format(letter) in text]
        if named:
            return max(named, key=lambda letter: (text.rfind(placed.format(letter)), -ord(letter)))
    if len(text.split()) > 5:
        lowered = text.lower()
        named = [letter for letter, option in choices.items() if option.lower() in lowered]
        if named:
            return max(named, key=lambda letter: (lowered.rfind(choices[letter].lower()), -ord(letter)))
    return None


def _forms(text: str) -> list[str | float]:
    """Return a number rounded to two digits, or the words in lower case; one letter never stands alone."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _said(text: str) -> list[str | float]:
    """Return what an open answer may say: the shortest end of each sentence, and the numbers in it."""
    text = text.strip().strip(".").lower()
    # MMMU splits at ". " before a capital, of which the lower-cased text has none: lines remain.
    sentences = re.split(r"\.\s(?=[A-Z])|\n", text)
    keys = []
    for number, sentence in enumerate(sentences):
        marks = (*_BEFORE_AN_ANSWER, "=") if number == len(sentences) - 1 else _BEFORE_AN_ANSWER
        ends = [sentence.split(mark)[-1].strip() for mark in marks if mark in sentence]
        end = ""
        for candidate in ends:  # an empty end is replaced by whatever comes next
            end = candidate if not end or len(candidate) < len(end) else end
        if end and end not in _TRIVIAL:
            keys.append(end)
    keys = keys or [text]
    numbers = [hit for key in keys for form in (_COMMAS, _SCIENTIFIC, _SIMPLE) for hit in form.findall(key)]
    return [form for key in (*keys, *numbers) for form in _forms(key)]


def right(text: str, question: Question, steps: Steps = OWN) -> float | None:
    if question.choices:
        letter = chosen(text, question.choices, steps)
        return None if letter is None else float(letter == question.answer)
    true = [form for answer in question.answers for form in _forms(answer)]
    words = [form for form in true if isinstance(form, str)]

    def matches(form: str | float) -> bool:
        return any(word in form for word in words) if isinstance(form, str) else form in true

    return float(any(map(matches, _said(text))))


RULES: dict[str, Rule] = {"mmmu": right, "mmmu_lmms": partial(right, steps=LMMS)}


def _question(row: Row, style: str) -> Question | None:
    if "index" in row:  # VLMEvalKit's table, which holds the dev split too
        if row["split"] != "validation":
            return None
        choices = choices_in(row) if len(choices_in(row)) > 1 else {}
        subject = row["category"]
    else:
        choice = row["question_type"] == "multiple-choice"
        choices = dict(zip(OPTIONS, listed(str(row["options"])), strict=False)) if choice else {}
        subject = str(row["id"]).removeprefix("validation_").rpartition("_")[0]
    option, before_open = STYLES[style]
    options = "".join(f"\n{option.format(letter, text)}" for letter, text in choices.items())
    request = f"\n\n{LETTER}" if choices else f"{before_open}{SHORT}"
    answers = listed(str(row["answer"]))
    groups = {
        "subject": str(subject),
        "kind": "choice" if choices else "open",
        "pictures": len(set(_PICTURE.findall(f"{row['question']} {options}"))),
    }
    return question_of(
        {**row, **groups},
        f"{row['question']}{options}{request}",
        answer=answers[0] if choices else None,
        answers=() if choices else tuple(answers),
        choices=choices,
        category="subject",
        fields=groups,
    )


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    each = score_each(questions, predictions, scorer, RULES[scorer], ("kind", "subject"))
    several = sum(question.fields["pictures"] > 1 for question in questions)
    return replace(each, figures={"several_pictures": several})


BENCHMARK = Benchmark(
    name="mmmu",
    hub="lmms-lab/MMMU",
    sizes={"val": (900,)},
    rows=(
        table_reader(
            *("id", "question", "options", "answer", "question_type"),
            key="id",
            splits={"val": "validation"},
            image="image_1",
        ),
        tsv_reader("MMMU", "MMMU_DEV_VAL.tsv", needs=("question", "A", "B", "answer", "category", "split")),
    ),
    question=_question,
    styles=STYLES,
    scorers=tuple(RULES),
    score=score,
)
