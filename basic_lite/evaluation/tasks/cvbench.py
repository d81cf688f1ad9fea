"""CV-Bench: the Hugging Face rows and VLMEvalKit's TSVs; half of the value is 2D (two sources), half 3D.

Sources: Cambrian `eval/eval/ade`, `coco` and `omni` (prompt), lmms-eval `tasks/cv_bench/utils.py` (letters,
`cv_bench_default_aggregate_results` with the weights of the three sources).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, by_letter, compared, score_each
from basic_lite.evaluation.files import Source, main_file, table_reader
from basic_lite.evaluation.question import LETTER, Question, options_prompt, question_of
from basic_lite.evaluation.statistics import Score, value_of
from basic_lite.evaluation.tsv import choices_in, find_tsv, tsv_table

STYLES = {
    "llava": f"{{prompt}}\n{LETTER}",
    "lmms": "Note: You only need to respond with {letters} without providing any additional information.\n\n"
    "{prompt}",
}
WEIGHTS = {"ADE20K": 0.25, "COCO": 0.25, "Omni3D": 0.5}
_NEEDS = ("idx", "task", "prompt", "choices", "answer", "source")
_FIRST = re.compile(r"[(\s]*([A-Z])[).\s]*", re.IGNORECASE)


def first_letter(text: str, question: Question) -> str | None:
    letter = _FIRST.match(text.strip())
    return None if letter is None else letter[1].upper()


RULES = {"cv_bench": compared(first_letter), "exact_matching": by_letter("exact_matching")}


def _question(row: Row, style: str) -> Question:
    if row["source"] not in WEIGHTS:
        raise ValueError(
            f"CV-Bench's question {row['id']} is of source {row['source']!r}, none of its three."
        )
    options = choices_in(row)
    if row.get("prompt"):  # the question with its options
        text = STYLES[style].format(prompt=row["prompt"], letters=", ".join(options))
    else:
        text = options_prompt(str(row["question"]), options)
    return question_of(
        {**row, "task": str(row["task"])},
        text,
        stem=str(row.get("question") or ""),
        answer=str(row["answer"]).strip().strip("()"),
        choices=options,
        category="task",
        fields=("source", "task"),
    )


def _tsv_rows(source: Source) -> Iterator[dict[str, Any]]:
    names = ("CV-Bench-2D.tsv", "CV-Bench-3D.tsv")
    paths = [path for path in (find_tsv(source, name) for name in names) if path is not None]
    for path in dict.fromkeys(paths or [main_file(source, "CV-Bench TSV", *names)]):
        for row in tsv_table(source, path, ("question", "A", "B", "answer", "source"), "CV-Bench"):
            task = row.get("task") or row.get("category") or ""
            ids = {"id": f"{path.stem}/{row['index']}", "picture": f"{path.stem}/{row['picture']}"}
            yield {**row, **ids, "task": task}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score letters: the mean of 2D, itself the mean over its two sources, and 3D."""
    plain = score_each(questions, predictions, scorer, RULES[scorer], ("source", "task"))
    source = {question.id: question.fields["source"] for question in questions}
    cells = {
        item: (source[item], WEIGHTS[source[item]], 100.0 * share) for item, share in plain.items.items()
    }
    return replace(
        plain,
        metric="mean of 2D and 3D accuracy",
        cells=cells,
        statistic="weighted_groups",
        value=value_of(cells.values(), "weighted_groups"),
        figures={"accuracy_over_questions": plain.value},
    )


BENCHMARK = Benchmark(
    name="cv-bench",
    hub="nyu-visionx/CV-Bench",
    sizes={"test": (2_638,)},
    rows=(table_reader(*_NEEDS, key="idx", picture="filename"), _tsv_rows),
    question=_question,
    styles=STYLES,
    scorers=tuple(RULES),
    score=score,
    aliases=("cvbench",),
)
