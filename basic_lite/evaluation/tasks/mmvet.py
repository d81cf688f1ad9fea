"""MM-Vet: the released JSON and the Hugging Face rows; the score is a judge's, who must be named.

Sources: MM-Vet `mm-vet_evaluator.py`, LLaVA `scripts/convert_mmvet_for_eval.py`, lmms-eval `tasks/mmvet`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, published
from basic_lite.evaluation.files import (
    Source,
    find_optional,
    main_file,
    read_keyed,
    table_rows,
    with_pictures,
)
from basic_lite.evaluation.question import Id, Question, question_of
from basic_lite.evaluation.statistics import Score, score_of
from basic_lite.evaluation.tsv import tsv_reader
from basic_lite.files import write_text

# MM-Vet without its judge: the prompts to hand out, the grades to take back, and a proxy named as one.
#
# Source: MM-Vet `mm-vet_evaluator.py`. A judge gets a table of graded examples; the answer is its last row.

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


_THINK = (
    "First please perform reasoning, and think step by step "
    "to provide best answer to the following question: "
)
STYLES: dict[str, Callable[[str], str]] = {
    "llava": lambda question: question,
    "lmms": lambda question: f"{_THINK}\n\n{question}",
}
SCORERS = ("unjudged", "proxy_substring")


def _question(row: Row, style: str) -> Question:
    capabilities = sorted(row["capability"])
    return question_of(
        {**row, "capability": capabilities, "capability_set": "+".join(capabilities)},
        STYLES[style](row["question"]),
        max_new_tokens=1024,
        answer=row["answer"],
        category="capability_set",
        fields=("question", "capability"),
    )


def _file_rows(source: Source) -> list[dict[str, Any]]:
    if find_optional(source, "mm-vet-v2.json") and not find_optional(source, "mm-vet.json"):
        raise ValueError(
            f"{source.data} holds MM-Vet v2, whose questions go with several pictures: its first version "
            "(mm-vet.json, 218 questions) is asked here."
        )
    return [
        {**row, "capability": str(row["category"]).replace(" ", "").split(",")} if "index" in row else row
        for row in _tsv_or_json_rows(source)
    ]


def _json_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, "MM-Vet questions", "mm-vet.json")
    content = read_keyed(path, ("imagename", "question", "answer", "capability"))
    names = ({"picture": row["imagename"], "file": row["imagename"]} for row in content.values())
    rows = [
        {**row, "id": identity, **name} for (identity, row), name in zip(content.items(), names, strict=True)
    ]
    return with_pictures(source, rows, ("images", "."))


_tsv_or_json_rows = tsv_reader(
    "MM-Vet", ("MMVet.tsv",), ("question", "answer", "category"), otherwise=_json_rows
)


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    needs = ("question_id", "question", "answer", "capability")
    for row in table_rows(replace(source, with_images=True), None, "test", needs):
        # The rows do not name their pictures, of which some have two questions.
        picture = None if row["image"] is None else hashlib.sha256(row["image"].read()).hexdigest()[:16]
        image = row["image"] if source.with_images else None
        capability = row["capability"].split(",")
        yield {**row, "id": row["question_id"], "capability": capability, "picture": picture, "image": image}


def _score(
    questions: Sequence[Question], predictions: Predictions, items: Mapping[Id, float], **more: Any
) -> Score:
    """Average grades over all questions, each capability and each set of capabilities."""
    groups: dict[str, list[float]] = defaultdict(list)
    for question in questions:
        for capability in question.fields["capability"]:
            groups[capability].append(100 * items[question.id])
    score = score_of(
        questions,
        predictions,
        items,
        groupings={"capability_set": lambda question: question.category},
        **more,
    )
    by_capability = {name: mean(groups[name]) for name in sorted(groups)}
    return replace(score, breakdown={"capability": by_capability, **score.breakdown})


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Return a score without value, or the substring proxy; `judged` gives the benchmark's number.

    Raises:
        ValueError: If the scorer is unknown.
    """
    if scorer == "proxy_substring":
        items = {q.id: proxy_substring(predictions.get(q.id, ""), str(q.answer)) for q in questions}
        note = "proxy, not MM-Vet: compare it only with itself"
        metric = "share of expected words, a proxy and not MM-Vet"
        return _score(questions, predictions, items, metric=metric, scorer=scorer, notes=(note,))
    if scorer == "unjudged":
        note = "no judge, no MM-Vet score: hand the judge prompts to one and give its grades and its name"
        return score_of(
            questions, predictions, {}, metric="MM-Vet score", scorer=scorer, value=None, notes=(note,)
        )
    raise ValueError(f"Unknown MM-Vet scorer {scorer!r}: use one of {', '.join(SCORERS)}, or give grades.")


def judged(
    questions: Sequence[Question], predictions: Predictions, grades: str | Path, judge: str | None
) -> Score:
    """Return the MM-Vet score that a named judge gave.

    Args:
        questions: What was asked.
        predictions: Question id -> answer, for the counts.
        grades: The judge's grades, see `read_grades`; several runs are averaged.
        judge: Who graded, such as `gpt-4-0613`.

    Raises:
        ValueError: If the judge has no name, or the grades do not fit the questions.
    """
    if not judge or not judge.strip():
        raise ValueError("MM-Vet scores of different judges do not compare: name the judge with --judge.")
    runs = read_grades(grades, [str(question.id) for question in questions])
    items = {question.id: mean(runs[str(question.id)]) for question in questions}
    count = len(next(iter(runs.values())))
    totals = [100 * mean(run[number] for run in runs.values()) for number in range(count)]
    return _score(
        questions,
        predictions,
        items,
        metric=f"MM-Vet score, judged by {judge}",
        scorer=f"judge:{judge}",
        figures={"runs": totals, "std_of_runs": pstdev(totals)},
    )


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the result file that MM-Vet's evaluator reads: `{id: answer}`."""
    answers = {question.id: predictions.get(question.id, "") for question in questions}
    return write_text(path, json.dumps(answers, ensure_ascii=False, indent=4))


def write_judge_prompts(
    questions: Sequence[Question],
    predictions: Predictions,
    path: Path,
    table: str = OWN_TABLE,
) -> Path:
    """Write a JSON line `{id, prompt}` per question, for a judge.

    Args:
        questions: What was asked.
        predictions: Question id -> answer.
        path: The file to write.
        table: The judge's examples; `read_table` takes MM-Vet's own from its script.
    """
    lines = []
    for question in questions:
        answer = predictions.get(question.id, "")
        prompt = judge_prompt(question.fields["question"], str(question.answer), answer, table)
        lines.append(json.dumps({"id": question.id, "prompt": prompt}, ensure_ascii=False) + "\n")
    return write_text(path, "".join(lines))


BENCHMARK = Benchmark(
    name="mmvet",
    hub="lmms-lab/MMVet",
    sizes={"test": (218,)},
    styles=STYLES,
    scorers=SCORERS,
    published=published(31.1, 36.1, 30.2, 38.3, basic=33.8, on="judged by gpt-4-0613"),
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
    export=export,
    aliases=("mm-vet",),
)
