"""MM-Vet and MM-Vet v2: the released JSON, the Hugging Face rows, VLMEvalKit's TSV; the score is a judge's.

Questions of version 2 have pictures between their words. LLaVA-1.5 takes one picture, so several are put into
one numbered grid, as MM-Vet v2's scripts do for models of one picture; the words say "(image 2)" where the
second belongs, which is ours. Sources: MM-Vet `mm-vet_evaluator.py`, `v2/mm-vet-v2_evaluator.py`,
`v2/inference/utils.py` (the grid), LLaVA `scripts/convert_mmvet_for_eval.py`, lmms-eval `tasks/mmvet`,
`tasks/mmvetv2` (columns of the hub's rows).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, published
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.judge import Grades, Grading, number_in, unjudged
from basic_lite.evaluation.question import Grid, Id, Question, StoredImage, question_of
from basic_lite.evaluation.statistics import Score, score_of
from basic_lite.evaluation.tsv import tsv_reader
from basic_lite.files import write_text

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
"""Our own examples; a published score needs MM-Vet's, which `judge.read_rule` takes from its script."""


def _truth(question: Question) -> str:
    return str(question.answer).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")


def judge_prompt(question: Question, prediction: str, table: str) -> str:
    """Return the message that a judge of version 1 gets: the answer is the table's last row."""
    return f"{table}\n" + " | ".join([question.fields["question"], _truth(question), prediction, ""])


def judge_prompt_v2(question: Question, prediction: str, table: str) -> str:
    """Return the message of version 2: pictures are `<image>`, and a row of the table is one line."""
    asked = "".join("<image>" if name else words for words, name in parts_of(question.fields["question"]))
    cells = [text.replace("\n", "<br>") for text in (asked, _truth(question), prediction)]
    return f"{table}| " + " | ".join([*cells, ""])


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
_NEEDS = ("question", "answer", "capability")


def parts_of(question: str) -> list[tuple[str, str]]:
    """Return the words and pictures of a question of version 2 in order, as `(words, "")` and `("", name)`.

    A picture stands between two `<IMG>` by its file, or in the hub's rows as `<image_3>`, its column.
    """
    parts = []
    for text in re.sub(r"<(image_\d+)>", r"<IMG>\1.png<IMG>", question).split("<IMG>"):
        is_picture = text.strip().endswith((".jpg", ".jpeg", ".png"))
        parts.append(("", text.strip()) if is_picture else (text, ""))
    return parts


def _question(row: Row, style: str) -> Question:
    capabilities = row["capability"]
    if isinstance(capabilities, str):
        capabilities = capabilities.replace(" ", "").split(",")
    pictures, text = 0, ""
    for words, name in parts_of(row["question"]) if "pictures" in row else [(row["question"], "")]:
        pictures += bool(name)
        text += f"(image {pictures})" if name and row["pictures"] > 1 else words
    return question_of(
        {**row, "capability": sorted(capabilities), "capability_set": "+".join(sorted(capabilities))},
        STYLES[style](text),
        max_new_tokens=1024,
        answer=row["answer"],
        category="capability_set",
        fields=("question", "capability", "capability_set"),
    )


def _json_rows(source: Source) -> list[dict[str, Any]]:
    if files.find_optional(source, "mm-vet-v2.json") and not files.find_optional(source, "mm-vet.json"):
        raise ValueError(f"{source.data} holds MM-Vet v2: ask mmvet-v2.")
    content = files.read_keyed(
        files.main_file(source, "MM-Vet questions", "mm-vet.json"), ("imagename", *_NEEDS)
    )
    rows = [{**row, "id": identity, "file": row["imagename"]} for identity, row in content.items()]
    return files.with_pictures(source, rows, ("images", "."))


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    for row in files.table_rows(replace(source, with_images=True), None, "test", ("question_id", *_NEEDS)):
        # The rows do not name their pictures, of which some have two questions.
        picture = None if row["image"] is None else hashlib.sha256(row["image"].read()).hexdigest()[:16]
        image = row["image"] if source.with_images else None
        yield {**row, "id": row["question_id"], "picture": picture, "image": image}


def _json_rows_v2(source: Source) -> Iterator[dict[str, Any]]:
    content = files.read_keyed(files.main_file(source, "MM-Vet v2 questions", "mm-vet-v2.json"), _NEEDS)
    names = {key: [name for _, name in parts_of(row["question"]) if name] for key, row in content.items()}
    every: dict[Id, str | None] = {name: name for several in names.values() for name in several}
    located = files.locate_images(source, every, ("images", "."))
    for identity, row in content.items():
        pictures = [located[name] for name in names[identity]]
        yield {**row, "id": identity, "pictures": len(pictures), "image": _one(pictures)}


def _table_rows_v2(source: Source) -> Iterator[dict[str, Any]]:
    table = files.open_table(source, None, "test")
    for number, row in enumerate(files.table_rows(source, None, "test", ("id", *_NEEDS), image=None)):
        names = [name.removesuffix(".png") for _, name in parts_of(row["question"]) if name]
        unknown = [name for name in names if name not in table.column_names]
        if unknown:
            raise ValueError(f"{source.data}: question {row['id']} has no picture in column {unknown[0]}.")
        pictures = [StoredImage(table, number, name) for name in names] if source.with_images else []
        yield {**row, "pictures": len(names), "image": _one(pictures)}


def _one(pictures: Sequence[Any]) -> Any:
    """Return one picture as it is, several as a grid; `None` for none."""
    given = [picture for picture in pictures if picture is not None]
    return Grid(tuple(given)) if len(given) > 1 else given[0] if given else None


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    if scorer == "unjudged":
        return unjudged(questions, predictions, scorer, "MM-Vet score")
    items = {q.id: proxy_substring(predictions.get(q.id, ""), str(q.answer)) for q in questions}
    note = "proxy, not MM-Vet: compare it only with itself"
    metric = "share of expected words, a proxy and not MM-Vet"
    return _by_capability(questions, predictions, items, metric=metric, scorer=scorer, notes=(note,))


def _by_capability(
    questions: Sequence[Question], predictions: Predictions, items: Mapping[Id, float], **more: Any
) -> Score:
    """Average grades over all questions, each capability and each set of capabilities."""
    groups: dict[str, list[float]] = defaultdict(list)
    for question in questions:
        for capability in question.fields["capability"]:
            groups[capability].append(100 * items[question.id])
    score = score_of(questions, predictions, items, groupings=("capability_set",), **more)
    by_capability = {name: mean(groups[name]) for name in sorted(groups)}
    return replace(score, breakdown={"capability": by_capability, **score.breakdown})


def graded(questions: Sequence[Question], predictions: Predictions, grades: Grades, judge: str) -> Score:
    runs: dict[str, list[float]] = {identity: [float(g) for g in of] for identity, of in grades.items()}  # type: ignore[arg-type]
    items = {question.id: mean(runs[str(question.id)]) for question in questions}
    totals = [100 * mean(run) for run in zip(*runs.values(), strict=True)]
    return _by_capability(
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


def _grading(prompt: Callable[[Question, str, str], str], again: str) -> Grading:
    return Grading(
        prompt=prompt,
        read=lambda reply: float(reply.split(" ")[0].strip()),
        valid=partial(number_in, low=0, high=1),
        what="a number from 0 to 1",
        score=graded,
        rule=OWN_TABLE,
        note="graded by our own examples, not MM-Vet's: give --judge-prompt with its evaluator's script",
        again=f"{again}Predict the correctness of the answer (digit): ",
    )


_benchmark = partial(
    Benchmark, question=_question, styles=STYLES, scorers=SCORERS, score=score, export=export
)
_TSV = ("question", "answer", "category")  # columns of VLMEvalKit's table

BENCHMARKS = (
    _benchmark(
        name="mmvet",
        hub="lmms-lab/MMVet",
        sizes={"test": (218,)},
        rows=(
            _table_rows,
            tsv_reader("MM-Vet", "MMVet.tsv", needs=_TSV, otherwise=_json_rows, capability="category"),
        ),
        published=published(31.1, 36.1, 30.2, 38.3, basic=33.8, on="judged by gpt-4-0613"),
        grading=_grading(judge_prompt, "\n"),
        aliases=("mm-vet",),
    ),
    _benchmark(
        name="mmvet-v2",
        hub="whyu/mm-vet-v2",
        sizes={"test": (517,)},
        rows=(_table_rows_v2, _json_rows_v2),
        grading=_grading(judge_prompt_v2, "\n\n"),
        aliases=("mm-vet-v2", "mmvetv2"),
    ),
)
