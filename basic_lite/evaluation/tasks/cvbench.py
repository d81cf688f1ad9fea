"""CV-Bench: the Hugging Face rows and VLMEvalKit's TSVs; half of the value is 2D (two sources), half 3D.

Sources: Cambrian `eval/cv_bench` (prompt, the weights of the three sources), lmms-eval
`tasks/cv_bench/utils.py` (letters, `cv_bench_default_aggregate_results`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions
from basic_lite.evaluation.files import Source, main_file, table_rows
from basic_lite.evaluation.question import LETTER, Question
from basic_lite.evaluation.rules import Rule, by_letter, options_prompt, score_each
from basic_lite.evaluation.statistics import Score, value_of
from basic_lite.evaluation.tsv import choices_in, find_tsv, tsv_table

STYLES = {"llava": 128}
WEIGHTS = {"ADE20K": 0.25, "COCO": 0.25, "Omni3D": 0.5}
_FIRST = re.compile(r"[(\s]*([A-Z])[).\s]*", re.IGNORECASE)


def first_letter(text: str, question: Question) -> float | None:
    """Compare the first letter of the answer, whatever word it begins."""
    letter = _FIRST.match(text.strip())
    return None if letter is None else float(letter[1].upper() == question.answer)


RULES: dict[str, Rule] = {"cv_bench": first_letter, "exact_matching": by_letter("exact_matching")}


def _question(row: Mapping[str, Any], style: str) -> Question:
    if row["source"] not in WEIGHTS:
        raise ValueError(
            f"CV-Bench's question {row['id']} is of source {row['source']!r}, none of its three."
        )
    return Question(
        id=row["id"],
        text=row["text"],
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=str(row["answer"]).strip().strip("()"),
        choices=row["options"],
        category=str(row["task"]),
        picture=row.get("picture"),
        fields={"source": row["source"], "task": str(row["task"])},
    )


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    needs = ("idx", "task", "prompt", "choices", "answer", "source")
    for row in table_rows(source, None, "test", needs):
        options = dict(zip("ABCDEF", map(str, row["choices"]), strict=False))
        picture = row.get("filename")
        yield {
            **row,
            "id": row["idx"],
            "text": f"{row['prompt']}\n{LETTER}",
            "options": options,
            "picture": picture,
        }


def _file_rows(source: Source) -> Iterator[dict[str, Any]]:
    names = ("CV-Bench-2D.tsv", "CV-Bench-3D.tsv")
    paths = [path for path in (find_tsv(source, name) for name in names) if path is not None]
    for path in dict.fromkeys(paths or [main_file(source, "CV-Bench TSV", *names)]):
        for row in tsv_table(source, path, ("question", "A", "B", "answer", "source"), "CV-Bench"):
            options = choices_in(row)
            yield {
                **row,
                "id": f"{path.stem}/{row['index']}",
                "picture": f"{path.stem}/{row['picture']}",
                "text": options_prompt(str(row["question"]), options),
                "options": options,
                "task": row.get("task") or row.get("category") or "",
            }


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score letters: the mean of 2D, itself the mean over its two sources, and 3D."""
    plain = score_each(questions, predictions, scorer, RULES[scorer], ("source", "task"))
    source = {question.id: question.fields["source"] for question in questions}
    cells = {
        item: (source[item], WEIGHTS[source[item]], 100.0 * share) for item, share in plain.items.items()
    }
    return score_each(
        questions,
        predictions,
        scorer,
        RULES[scorer],
        ("source", "task"),
        metric="mean of 2D and 3D accuracy",
        cells=cells,
        statistic="weighted_groups",
        value=value_of(cells.values(), "weighted_groups"),
        figures={"accuracy_over_questions": plain.value},
    )


BENCHMARK = Benchmark(
    name="cv-bench",
    hub="nyu-visionx/CV-Bench",
    split="test",
    sizes={"test": (2_638,)},
    styles=STYLES,
    scorers=tuple(RULES),
    rows=(_table_rows, _file_rows),
    question=_question,
    score=score,
    aliases=("cvbench",),
)
