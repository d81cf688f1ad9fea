"""MM-Vet: the released JSON and the Hugging Face rows; the score is a judge's, who must be named.

Sources: MM-Vet `mm-vet_evaluator.py`, LLaVA `scripts/convert_mmvet_for_eval.py`, lmms-eval `tasks/mmvet`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from basic_lite.benchmarks import hub
from basic_lite.benchmarks.files import (
    Source,
    locate_images,
    main_file,
    read_keyed,
    write_text,
)
from basic_lite.benchmarks.prompts import check_style
from basic_lite.benchmarks.question import Question
from basic_lite.scoring.judge import OWN_TABLE, judge_prompt, proxy_substring, read_grades
from basic_lite.scoring.score import Id, Score, percent

_THINK = (
    "First please perform reasoning, and think step by step "
    "to provide best answer to the following question: "
)
STYLES: dict[str, Callable[[str], str]] = {
    "llava": lambda question: question,
    "lmms": lambda question: f"{_THINK}\n\n{question}",
}
SCORERS = ("unjudged", "proxy_substring")
MAX_NEW_TOKENS = 1024


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the questions, which LLaVA asks as they are.

    Raises:
        ValueError: If files are missing or damaged, or the style is unknown.
    """
    check_style(style, STYLES, "mmvet")
    rows = hub.rows_of(source, _hub_rows, _file_rows)
    return [
        Question(
            id=row["id"],
            text=STYLES[style](row["question"]),
            image=row["image"],
            max_new_tokens=MAX_NEW_TOKENS,
            answer=row["answer"],
            category="+".join(sorted(row["capability"])),
            fields={"question": row["question"], "capability": sorted(row["capability"])},
        )
        for row in rows
    ]


def _file_rows(source: Source) -> list[dict[str, Any]]:
    path = main_file(source, "MM-Vet questions", "mm-vet.json")
    content = read_keyed(path, ("imagename", "question", "answer", "capability"))
    names = {identity: row["imagename"] for identity, row in content.items()}
    images = locate_images(source, names, ("images", "."))
    return [{**row, "id": identity, "image": images[identity]} for identity, row in content.items()]


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    needs = ("question_id", "question", "answer", "capability")
    for row in hub.rows(source.data, None, "test", needs, with_images=source.with_images):
        yield {**row, "id": row["question_id"], "capability": row["capability"].split(",")}


def _score(
    questions: Sequence[Question], items: Mapping[Id, float], metric: str, scorer: str, **more: Any
) -> Score:
    """Average grades over all questions, each capability and each set of capabilities."""
    groups: dict[str, list[float]] = defaultdict(list)
    sets: dict[str, list[float]] = defaultdict(list)
    for question in questions:
        sets[question.category].append(100 * items[question.id])
        for capability in question.fields["capability"]:
            groups[capability].append(100 * items[question.id])
    return Score(
        metric=metric,
        scorer=scorer,
        value=percent(items),
        items=items,
        categories={question.id: question.category for question in questions},
        breakdown={
            "capability": {name: mean(groups[name]) for name in sorted(groups)},
            "capability_set": {name: mean(sets[name]) for name in sorted(sets)},
        },
        **more,
    )


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Return a score without value, or the substring proxy; `judged` gives the benchmark's number.

    Raises:
        ValueError: If the scorer is unknown.
    """
    missing = len(questions) - len(predictions)
    empty = sum(not text.strip() for text in predictions.values())
    if scorer == "proxy_substring":
        items = {q.id: proxy_substring(predictions.get(q.id, ""), str(q.answer)) for q in questions}
        note = "proxy, not MM-Vet: compare it only with itself"
        metric = "share of expected words, a proxy and not MM-Vet"
        return _score(questions, items, metric, scorer, notes=(note,), unparsed=empty, missing=missing)
    if scorer == "unjudged":
        note = "no judge, no MM-Vet score: hand the judge prompts to one and give its grades and its name"
        metric = "MM-Vet score"
        return Score(metric, scorer, None, {}, notes=(note,), unparsed=empty, missing=missing)
    raise ValueError(f"Unknown MM-Vet scorer {scorer!r}: use one of {', '.join(SCORERS)}, or give grades.")


def judged(
    questions: Sequence[Question], predictions: Mapping[int | str, str], grades: str | Path, judge: str | None
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
        items,
        f"MM-Vet score, judged by {judge}",
        f"judge:{judge}",
        figures={"runs": totals, "std_of_runs": pstdev(totals)},
        unparsed=sum(not text.strip() for text in predictions.values()),
        missing=len(questions) - len(predictions),
    )


def export(questions: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the result file that MM-Vet's evaluator reads: `{id: answer}`."""
    answers = {question.id: predictions.get(question.id, "") for question in questions}
    return write_text(path, json.dumps(answers, ensure_ascii=False, indent=4))


def write_judge_prompts(
    questions: Sequence[Question],
    predictions: Mapping[int | str, str],
    path: Path,
    table: str = OWN_TABLE,
) -> Path:
    """Write a JSON line `{id, prompt}` per question, for a judge.

    Args:
        questions: What was asked.
        predictions: Question id -> answer.
        path: The file to write.
        table: The judge's examples; `scoring.judge.read_table` takes MM-Vet's own from its script.
    """
    lines = []
    for question in questions:
        answer = predictions.get(question.id, "")
        prompt = judge_prompt(question.fields["question"], str(question.answer), answer, table)
        lines.append(json.dumps({"id": question.id, "prompt": prompt}, ensure_ascii=False) + "\n")
    return write_text(path, "".join(lines))
