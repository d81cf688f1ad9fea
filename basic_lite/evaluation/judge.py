"""Grades of a judge: asked of a model at an OpenAI-style address, or read from a file."""

from __future__ import annotations

import ast
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from basic_lite.evaluation.files import json_lines, read_json_lines
from basic_lite.evaluation.question import Id, Question
from basic_lite.evaluation.statistics import Score, score_of
from basic_lite.files import write_text

KEY = "BASIC_LITE_JUDGE_KEY"  # environment variable of the key, which goes to the given address alone

_TRIES = 5
_WAITS = (2.0, 4.0, 8.0, 16.0)  # seconds before an address that is busy is asked again
_TIMEOUT = 120.0

Grade = float | tuple[float, ...]
Grades = Mapping[str, Sequence[Grade]]  # question id, as text -> grades, one per run


def number_in(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type]


@dataclass(frozen=True)
class Grading:
    # `(question, answer, rule) -> message`; the rule is the benchmark's or the user's
    prompt: Callable[[Question, str, str], str]
    read: Callable[[str], Any]  # reply -> grade, not checked yet
    valid: Callable[[object], bool]  # whether a value is a grade
    what: str  # what a grade is, in words
    # `(questions, predictions, grades, judge) -> score`
    score: Callable[[Sequence[Question], Mapping[Id, str], Grades, str], Score]
    rule: str  # the rule that is used unless another is given
    note: str = ""  # what a reader of a score by `rule` must know
    system: str = ""  # message; "" for none
    max_tokens: int = 3  # most tokens of a reply
    temperature: float = 0.0  # of the first try
    again: str = ""  # added to the message where a reply held no grade
    warmer: float = 0.5  # added to the temperature at each try after the second

    def messages(self, text: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]


@dataclass(frozen=True)
class Judge:
    name: str  # as its address and the results name it
    url: str  # its address: `https://host/v1`, or the whole path of the chat completions
    rule: str | None = None  # rule or table of examples in place of the benchmark's

    @property
    def address(self) -> str:
        """The address of the chat completions; raises ValueError if the address is none of the web."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"--judge-url {self.url} is no address: give one such as http://localhost:8000/v1."
            )
        path = "/chat/completions"
        return self.url if self.url.endswith(path) else self.url.rstrip("/") + path


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key and the answers go to the address that was named, and nowhere else."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


def _reply(judge: Judge, grading: Grading, text: str, temperature: float) -> str:
    """Send one message, again while the address is busy, and return the reply."""
    body = {"model": judge.name, "messages": grading.messages(text)}
    body |= {"max_tokens": grading.max_tokens, "temperature": temperature}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(judge.address, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(_NoRedirect)
    for wait in (*_WAITS, None):
        try:
            with opener.open(request, timeout=_TIMEOUT) as response:
                content = json.load(response)
            return str(content["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
            if error.code in (401, 403):
                raise ValueError(
                    f"{judge.address} refuses the key (HTTP {error.code}): put one into the environment "
                    f"variable {KEY}. It said: {said}"
                ) from None
            if wait is None or (error.code != 429 and error.code < 500):
                raise ValueError(
                    f"{judge.address} does not grade with model {judge.name} (HTTP {error.code}): {said}"
                ) from None
        except (KeyError, IndexError, TypeError, json.JSONDecodeError):
            raise ValueError(
                f"{judge.address} sent no chat completion: is it an OpenAI-style address?"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            if wait is None:
                reason = getattr(error, "reason", error)
                raise ValueError(f"{judge.address} cannot be reached ({reason}).") from None
        time.sleep(wait)
    raise AssertionError("the last round raises")


def ask(
    grading: Grading,
    questions: Sequence[Question],
    predictions: Mapping[Id, str],
    judge: Judge,
    kept: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, list[Grade]]:
    """Have every answer graded once, a missing one as an empty one.

    Each grade is appended to the JSON lines of `kept`; what stands there for the same judge and message is
    not asked again. `advance` is called with 1 for each. Raises ValueError if the judge cannot be reached or
    its reply holds no grade.
    """
    known: dict[str, Any] = {}
    if kept.is_file():
        rows = read_json_lines(kept, ("key", "grade"), drop_cut_end=True)
        known = {row["key"]: row["grade"] for row in rows}
        write_text(kept, json_lines(rows))
    grades: dict[str, list[Grade]] = {}
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as file:
        for question in questions:
            text = grading.prompt(question, predictions.get(question.id, ""), judge.rule or grading.rule)
            key = sha256(json.dumps([judge.name, grading.messages(text)]).encode()).hexdigest()
            if key not in known:
                try:
                    grade, reply = _graded(grading, judge, text)
                except ValueError as error:
                    done = f"The grades so far are in {kept}; the same command goes on."
                    raise ValueError(f"Question {question.id}: {error} {done}") from None
                row = {"key": key, "question_id": question.id, "judge": judge.name}
                file.write(json_lines([row | {"grade": grade, "reply": reply}]))
                file.flush()
                known[key] = grade
            grades[str(question.id)] = [_as_grade(known[key])]
            advance(1)
    return grades


def _as_grade(value: Any) -> Grade:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def _graded(grading: Grading, judge: Judge, text: str) -> tuple[Any, str]:
    """Return a grade and the reply that holds it, asking again where it holds none."""
    reply = ""
    for number in range(_TRIES):
        warmer = grading.warmer * max(number - 1, 0)
        reply = _reply(judge, grading, text + (grading.again if number else ""), grading.temperature + warmer)
        try:
            grade = grading.read(reply)
        except (ValueError, IndexError):
            continue
        if grading.valid(grade):
            return grade, reply
    raise ValueError(
        f"{_TRIES} replies of {judge.name} hold no grade, {grading.what} (the last: {reply[:80]!r})."
    )


def read_grades(path: str | Path, questions: Sequence[Question], grading: Grading) -> dict[str, list[Grade]]:
    """Read a judge's grades from a file, the same number of runs for all questions.

    The file is JSON of `{id: grade}` or of MM-Vet's `{id: {"score": [grade per run]}}`, or JSON lines with
    `question_id` and `tuple` (LLaVA's reviews) or `grade` (what `ask` keeps). Raises ValueError if an id is
    missing or unknown, or a grade is none.
    """
    path, ids = Path(path), {str(question.id) for question in questions}
    if path.suffix == ".jsonl":
        rows = read_json_lines(path, ("question_id",))
        content: Any = {str(row["question_id"]): row.get("tuple", row.get("grade")) for row in rows}
    else:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(f"{path} is no JSON file: give the judge's grades as {{id: grade}}.") from None
    if not isinstance(content, Mapping) or set(content) != ids:
        odd = sorted(set(content) ^ ids) if isinstance(content, Mapping) else sorted(ids)
        raise ValueError(
            f"{path} does not grade exactly the questions asked: {len(odd)} ids differ (first: {odd[0]})."
        )
    grades: dict[str, list[Grade]] = {}
    for identity, given in content.items():
        runs = given.get("score") if isinstance(given, Mapping) else [given]
        if not isinstance(runs, list) or not runs or not all(map(grading.valid, runs)):
            raise ValueError(f"{path}: the grade of {identity} is {given!r}, not {grading.what}.")
        grades[identity] = [_as_grade(grade) for grade in runs]
    if len({len(runs) for runs in grades.values()}) > 1:
        raise ValueError(f"{path} has questions with different numbers of runs: grade all as often.")
    return grades


def unjudged(questions: Sequence[Question], predictions: Mapping[Id, str], scorer: str, metric: str) -> Score:
    """Return the score without a value of a benchmark that only a judge can score."""
    note = f"no judge, no {metric}: name one with --judge and --judge-url, or give its grades with --grades"
    return score_of(questions, predictions, {}, metric=metric, scorer=scorer, value=None, notes=(note,))


def write_prompts(
    grading: Grading,
    questions: Sequence[Question],
    predictions: Mapping[Id, str],
    path: Path,
    rule: str | None = None,
) -> Path:
    """Write a JSON line `{id, prompt}` per question, for a judge that is asked by other means."""
    rows = [
        {"id": q.id, "prompt": grading.prompt(q, predictions.get(q.id, ""), rule or grading.rule)}
        for q in questions
    ]
    return write_text(path, json_lines(rows))


def read_rule(path: str | Path) -> str:
    """Return a judge's rule from a text file, or the text that MM-Vet's script assigns to `prompt`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix != ".py":
            return text
        for node in ast.parse(text).body:
            if (
                isinstance(node, ast.Assign)
                and any(isinstance(target, ast.Name) and target.id == "prompt" for target in node.targets)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                return node.value.value
    except (OSError, SyntaxError, UnicodeDecodeError):
        pass
    raise ValueError(f"{path} holds no judge prompt: give MM-Vet's mm-vet_evaluator.py or a text file.")
