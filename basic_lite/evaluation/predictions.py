"""Prediction files: JSON lines with LLaVA's fields, one answer a line."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from basic_lite.evaluation.files import read_json_lines
from basic_lite.evaluation.question import Id, Question
from basic_lite.files import complete, write_json

Predictions = dict[Id, str]


def _conditions_file(path: Path) -> Path:
    return path.with_suffix(".conditions.json")


def conditions_of(path: Path) -> dict[str, Any]:
    """Return the conditions under which a prediction file was made; empty where none are written down."""
    beside = _conditions_file(path)
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}


def claim(path: Path, conditions: dict[str, Any], overwrite: bool = False) -> None:
    """Make sure that a prediction file is continued under the conditions it was begun with.

    The conditions (checkpoint, benchmark, prompts, decoding) are written beside it. Raises ValueError if the
    file was made under others, and leaves it as it is unless `overwrite` begins it again.
    """
    if overwrite:
        path.unlink(missing_ok=True)
    elif path.is_file():
        then = conditions_of(path)
        differing = [key for key in (conditions | then) if then.get(key) != conditions.get(key)]
        if differing:
            raise ValueError(
                f"{path} holds answers made with another {', '.join(differing)}; start again with "
                "--overwrite, or choose another --out"
            )
    write_json(_conditions_file(path), conditions)


def answered(path: Path, questions: Sequence[Question]) -> set[Id]:
    """Return the ids that a prediction file answers, and cut off a line that a kill left unfinished."""
    if not path.is_file():
        return set()
    answers, content = read(path, questions, drop_cut_end=True), path.read_bytes()
    if content and not content.endswith(b"\n"):
        with complete(path) as draft:
            draft.write_bytes(content[: content.rfind(b"\n") + 1])
        answers = read(path, questions)
    return set(answers)


def record(question: Question, text: str, model_id: str) -> dict[str, Any]:
    """Return an answer in LLaVA's fields; its id is made of the content, the same after a resume."""
    identity = f"{model_id}/{question.id}/{question.text}/{text}"
    line: dict[str, Any] = {
        "question_id": question.id,
        "prompt": question.text,
        "text": text,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, identity).hex,
        "model_id": model_id,
        "metadata": {},
    }
    if question.choices:
        line |= {
            "round_id": 0,
            "options": list(question.choices.values()),
            "option_char": list(question.choices),
        }
    return line


def read(path: str | Path, questions: Sequence[Question], drop_cut_end: bool = False) -> Predictions:
    """Read a prediction file, pairing lines with questions by id, "7" and 7 alike, in the questions' order.

    `drop_cut_end` leaves out a last line that a killed run did not finish. Raises ValueError if a line lacks
    a field, comes twice, is of none of the questions, or answers other words.
    """
    known = {str(question.id): question for question in questions}
    answers: Predictions = {}
    strangers = []
    rows = read_json_lines(Path(path), ("question_id", "text"), drop_cut_end)
    for number, row in enumerate(rows, start=1):
        question = known.get(str(row["question_id"]))
        if question is None:
            strangers.append(row["question_id"])
            continue
        if question.id in answers:
            raise ValueError(f"{path} answers question {question.id} twice: remove one of the lines.")
        if not _same_words(str(row.get("prompt") or ""), question.text):
            raise ValueError(
                f"{path} line {number} answers other words than question {question.id} has: it belongs to "
                "another benchmark, language or prompt style."
            )
        answers[question.id] = str(row["text"])
    if strangers:
        raise ValueError(
            f"{path} answers {len(strangers)} questions that were not asked (first: {strangers[0]}): it "
            "belongs to another benchmark, split or limit."
        )
    return {question.id: answers[question.id] for question in questions if question.id in answers}


def _same_words(recorded: str, asked: str) -> bool:
    """Compare prompts; LLaVA's files leave out the request of MMBench and keep ScienceQA's image token."""
    recorded = recorded.removeprefix("<image>\n")
    return recorded in asked or asked in recorded
