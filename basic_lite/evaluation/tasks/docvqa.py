"""DocVQA and InfographicVQA, labelled validation splits: original JSON, Hugging Face rows, VLMEvalKit's TSV.

Sources: the challenge's `infographicsvqa_eval.py` (ANLS with threshold 0.5), lmms-eval `api/metrics.py`
(`anls`) and `tasks/docvqa`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions
from basic_lite.evaluation.files import (
    Source,
    locate_images,
    main_file,
    read_list,
    table_rows,
    write_rows,
)
from basic_lite.evaluation.question import SHORT, Question
from basic_lite.evaluation.rules import score_each
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import find_tsv, listed, tsv_table

STYLES = {"llava": SHORT, "lmms": SHORT}  # the same in both
_THRESHOLD = 0.5


def distance(a: str, b: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and substitutions."""
    above = list(range(len(b) + 1))
    for row, left in enumerate(a, start=1):
        here = [row]
        for column, right in enumerate(b, start=1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (left != right)))
        above = here
    return above[-1]


def anls(text: str, question: Question) -> float:
    """Return the largest normalised similarity to an answer; 0 below one half.

    Case and repeated space do not count in the distance, but they do in the length it is divided by.
    """
    said = " ".join(text.strip().lower().split())
    best = 0.0
    for answer in question.answers:
        longest = max(len(answer.upper()), len(text.upper()))
        edits = distance(" ".join(answer.strip().lower().split()), said)
        best = max(best, 1.0 - edits / longest if longest else 1.0)
    return best if best >= _THRESHOLD else 0.0


def _question(row: Mapping[str, Any], style: str) -> Question:
    kinds = row.get("question_types") or row.get("answer_type") or []
    kind = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    return Question(
        id=row["id"],
        text=f"{row['question']}\n{STYLES[style]}",
        image=row["image"],
        max_new_tokens=128,
        answers=tuple(map(str, row.get("answers") or ())),
        category=kind,
        picture=row.get("picture"),
        fields={"kind": kind},
    )


def _table_rows(source: Source, config: str) -> Iterator[dict[str, Any]]:
    split = {"val": "validation"}.get(source.split, source.split)
    for row in table_rows(source, config, split, ("questionId", "question", "answers")):
        page = f"{row.get('ucsf_document_id')}/{row.get('ucsf_document_page_no')}"
        picture = page if row.get("ucsf_document_id") else row.get("image_url")
        yield {**row, "id": str(row["questionId"]), "picture": picture}


def _file_rows(source: Source, config: str, tsv: str, patterns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    table = find_tsv(source, tsv) if source.split == "val" else None
    if table is not None:
        for row in tsv_table(source, table, ("question", "answer"), config):
            yield {**row, "id": row["index"], "answers": listed(str(row["answer"]))}
        return
    names = [pattern.format(source.split) for pattern in patterns]
    path = main_file(source, f"{config} questions", *names, tsv)
    rows = read_list(path, "data", ("questionId", "question"))
    files = {
        str(row["questionId"]): Path(row.get("image") or row.get("image_local_name") or "?").name
        for row in rows
    }
    folders = (
        "documents",
        "images",
        "spdocvqa_images",
        "infographicsvqa_images",
        f"{source.split}/documents",
    )
    images = locate_images(source, files, folders)
    for row in rows:
        name = str(row["questionId"])
        yield {**row, "id": name, "picture": files[name], "image": images[name]}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score by ANLS, by kind of question where the data names it."""
    return score_each(questions, predictions, scorer, anls, ("kind",), metric="ANLS", right_wrong=False)


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the JSON list that the challenge's server reads."""
    return write_rows(
        path, ({"questionId": int(q.id), "answer": predictions.get(q.id, "")} for q in questions)
    )


def _benchmark(name: str, config: str, tsv: str, patterns: tuple[str, ...], **more: Any) -> Benchmark:
    return Benchmark(
        name=name,
        hub="lmms-lab/DocVQA",
        split="val",
        styles=STYLES,
        scorers=("anls",),
        rows=(
            partial(_table_rows, config=config),
            partial(_file_rows, config=config, tsv=tsv, patterns=patterns),
        ),
        question=_question,
        score=score,
        export=export,
        **more,
    )


BENCHMARKS = (
    _benchmark(
        "docvqa",
        "DocVQA",
        "DocVQA_VAL.tsv",
        ("{}_v1.0_withQT.json", "{}_v1.0.json"),
        sizes={"val": (5_349,), "test": (5_188,)},
    ),
    _benchmark(
        "infovqa",
        "InfographicVQA",
        "InfoVQA_VAL.tsv",
        ("infographicsVQA_{}_v1.0_withQT.json", "infographicsVQA_{}_v1.0.json"),
        sizes={"val": (2_801,), "test": (3_288,)},
        aliases=("infographicvqa",),
    ),
)
