"""MMVP: the original `Questions.csv` with its pictures, Hugging Face rows with both, and VLMEvalKit's TSV.

The value is over pairs: two pictures that CLIP takes for the same, and both questions answered rightly. The
original asked a GPT whether an answer matches; the letter is read by lmms-eval's rule here. Four published
labels are swapped (MMVP issue 30); `mmvp_corrected` swaps them back, as lmms-eval does. Source: lmms-eval
`tasks/mmvp/utils.py`.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, Rule, compared, score_each
from basic_lite.evaluation.files import Source, main_file, require, table_reader, with_pictures
from basic_lite.evaluation.question import Id, Question, options_prompt, question_of
from basic_lite.evaluation.statistics import Score, percent
from basic_lite.evaluation.tsv import choices_in, find_tsv, tsv_table

CORRECTED = {99: "B", 100: "A", 279: "B", 280: "A"}  # index, from 1 -> the label that the picture shows

_COLUMNS = ("Index", "Question", "Options", "Correct Answer")
_OPTION = re.compile(r"\(([a-z])\)\s*([^(]+?)(?=\s*\([a-z]\)|$)", re.IGNORECASE)
_LETTER = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
    )
)


def letter_of(text: str) -> str | None:
    """Return A or B by the first of five patterns that matches, or by the first character."""
    text = text.strip()
    for pattern in _LETTER:
        if hit := pattern.search(text):
            return hit[1].upper()
    return text[0].upper() if text[:1].upper() in ("A", "B") else None


def _corrected(text: str, question: Question) -> float | None:
    letter = letter_of(text)
    true = CORRECTED.get(int(question.id), question.answer)
    return None if letter is None else float(letter == true)


RULES: dict[str, Rule] = {
    "mmvp": compared(lambda text, question: letter_of(text)),
    "mmvp_corrected": _corrected,
}


def _question(row: Row, style: str) -> Question:
    number = int(row["Index"])
    named = _OPTION.findall(str(row.get("Options")))
    options = {letter.upper(): text.strip() for letter, text in named} or choices_in(row)
    letter = str(row["Correct Answer"]).strip().strip("()").upper()
    if set(options) != {"A", "B"} or letter not in options:
        raise ValueError(
            f"MMVP's question {number} has options {row.get('Options')!r} and answer {letter!r}."
        )
    pair, asked = (number + 1) // 2, str(row["Question"]).strip()
    return question_of(
        {**row, "id": number, "pair": pair},
        options_prompt(asked, options),
        stem=asked,
        answer=letter,
        choices=options,
        picture=f"pair {pair}",
        fields=("pair",),
    )


def _csv_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, "MMVP questions", "Questions.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        require(row, _COLUMNS, f"{path} row {number}")
    rows = [{**row, "id": row["Index"], "file": f"{row['Index']}.jpg"} for row in rows]
    return with_pictures(source, rows, ("MMVP Images", "images"))


def _file_rows(source: Source) -> list[dict[str, Any]]:
    """Read the original, or VLMEvalKit's table, in which the place tells pairs: they follow one another."""
    tsv = find_tsv(source, "MMVP.tsv")
    if tsv is None:
        return _csv_rows(source)
    rows = tsv_table(source, tsv, ("question", "A", "B", "answer"), "MMVP")
    return [
        {**row, "id": number, "Index": number, "Question": row["question"], "Correct Answer": row["answer"]}
        for number, row in enumerate(rows, start=1)
    ]


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score pairs; a pair of which a limit left one question is not counted, unless there is no other."""
    each = score_each(questions, predictions, scorer, RULES[scorer])
    pairs: dict[Id, list[Id]] = defaultdict(list)
    for question in questions:
        pairs[question.fields["pair"]].append(question.id)
    whole = {pair: ids for pair, ids in pairs.items() if len(ids) == 2} or pairs
    items = {pair: float(all(each.items[identity] for identity in ids)) for pair, ids in whole.items()}
    return Score(
        metric="accuracy over pairs",
        scorer=scorer,
        value=percent(items),
        items=items,
        categories=dict.fromkeys(items, ""),
        right_wrong=True,
        figures={"accuracy_over_questions": each.value, "n_pairs": len(items)},
        unparsed=each.unparsed,
        missing=each.missing,
    )


BENCHMARK = Benchmark(
    name="mmvp",
    hub="lmms-lab-eval/MMVP",
    sizes={"test": (300,)},
    rows=(table_reader(*_COLUMNS, key="Index"), _file_rows),
    question=_question,
    scorers=tuple(RULES),
    score=score,
    unit=lambda question: question.fields["pair"],
)
