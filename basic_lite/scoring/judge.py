"""MM-Vet without its judge: the prompts to hand out, the grades to take back, and a proxy named as one.

Source: MM-Vet `mm-vet_evaluator.py`. A judge gets a table of graded examples and the answer as its last row.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

OWN_TABLE = """\
Grade the prediction against the ground truth with a number from 0.0 (wrong) to 1.0 (right), in steps of \
0.1. Where the ground truth joins parts by <AND>, all of them are needed and each gives its share; where it \
joins them by <OR>, any one is enough. Write nothing but the number that is missing at the end of the last \
row.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which two numbers solve it? | 4 <AND> -4 | the answer is 7 | 0.0
Which two numbers solve it? | 4 <AND> -4 | 4 | 0.5
Which two numbers solve it? | 4 <AND> -4 | 4 or -4 | 1.0
What is parked there? | lorry <OR> truck | a truck | 1.0
What is the dog doing? | It runs after a red ball on the beach. | The dog plays with a ball. | 0.6
"""
"""Our own examples, for judges of your own; a published MM-Vet score needs MM-Vet's table (`read_table`)."""


def read_table(path: str | Path) -> str:
    """Return the judge's table of examples from MM-Vet's `mm-vet_evaluator.py`, or from a text file.

    Raises:
        ValueError: If the file is missing or the script assigns no text to `prompt`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix != ".py":
            return text
        for node in ast.parse(text).body:
            names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            if (
                "prompt" in names
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                return node.value.value
    except (OSError, SyntaxError, UnicodeDecodeError):
        pass
    raise ValueError(f"{path} holds no judge prompt: give MM-Vet's mm-vet_evaluator.py or a text file.")


def judge_prompt(question: str, answer: str, prediction: str, table: str = OWN_TABLE) -> str:
    """Return the one message that a judge gets; it ends where the grade belongs."""
    spaced = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{table}\n" + " | ".join([question, spaced, prediction, ""])


def read_grades(path: str | Path, ids: Sequence[str]) -> dict[str, list[float]]:
    """Read a judge's grades: `{id: grade}`, or MM-Vet's own file `{id: {"score": [grade per run]}}`.

    Returns:
        Id -> grades, one per run and the same number for all.

    Raises:
        ValueError: If an id is missing or unknown, or a grade is no number in [0, 1].
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{path} is no JSON file: give the judge's grades as {{id: grade}}.") from None
    if not isinstance(content, Mapping) or set(content) != set(ids):
        odd = sorted(set(content) ^ set(ids)) if isinstance(content, Mapping) else list(ids)
        raise ValueError(
            f"{path} does not grade exactly the questions asked: {len(odd)} ids differ (first: {odd[0]})."
        )
    grades = {}
    for identity, given in content.items():
        runs = given.get("score") if isinstance(given, Mapping) else [given]
        if not isinstance(runs, list) or not runs or not all(_is_grade(grade) for grade in runs):
            raise ValueError(f"{path}: the grade of {identity} is {given!r}, which is no number from 0 to 1.")
        grades[identity] = [float(grade) for grade in runs]
    if len({len(runs) for runs in grades.values()}) > 1:
        raise ValueError(f"{path} has questions with different numbers of runs: grade all as often.")
    return grades


def _is_grade(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= 1


def proxy_substring(prediction: str, answer: str) -> float:
    """Return the share of `<AND>` parts that occur in the prediction, for the best `<OR>` alternative.

    A proxy to notice a broken run by, without a judge: it is not an MM-Vet score.
    """
    said = prediction.lower()
    shares = []
    for alternative in answer.lower().split("<or>"):
        parts = [part.strip() for part in alternative.split("<and>")]
        shares.append(sum(part in said for part in parts) / len(parts))
    return max(shares)
