"""DocVQA and InfographicVQA, labelled validation splits: original JSON, Hugging Face rows, VLMEvalKit's TSV.

Sources: the challenge's `infographicsvqa_eval.py` (ANLS with threshold 0.5), lmms-eval `api/metrics.py`
(`anls`) and `tasks/docvqa`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Row, scored_by
from basic_lite.evaluation.files import Source, main_file, read_list, submission, table_rows, with_pictures
from basic_lite.evaluation.question import SAME_STYLES, SHORT, Question, question_of
from basic_lite.evaluation.tsv import answers_in, tsv_reader

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


def _question(row: Row, style: str) -> Question:
    kinds = row.get("question_types") or row.get("answer_type")
    asked = {**row, "kind": str(kinds[0]) if isinstance(kinds, list) and kinds else ""}
    return question_of(
        asked,
        f"{row['question']}\n{SHORT}",
        answers=tuple(map(str, answers_in(row))),
        category="kind",
        fields=("kind",),
    )


def _benchmark(name: str, config: str, tsv: str, patterns: Sequence[str], **more: Any) -> Benchmark:
    def from_table(source: Source) -> Iterator[dict[str, Any]]:
        split = {"val": "validation"}.get(source.split, source.split)
        for row in table_rows(source, config, split, ("questionId", "question", "answers")):
            page = f"{row.get('ucsf_document_id')}/{row.get('ucsf_document_page_no')}"
            picture = page if row.get("ucsf_document_id") else row.get("image_url")
            yield {**row, "id": str(row["questionId"]), "picture": picture}

    def from_json(source: Source) -> list[dict[str, Any]]:
        names = [pattern.format(source.split) for pattern in patterns]
        rows = read_list(
            main_file(source, f"{config} questions", *names, tsv), "data", ("questionId", "question")
        )
        for row in rows:
            row["id"] = str(row["questionId"])
            row["file"] = Path(row.get("image") or row.get("image_local_name") or "?").name
        folders = ("documents", "images", "spdocvqa_images", "infographicsvqa_images")
        return with_pictures(source, rows, (*folders, f"{source.split}/documents"))

    return Benchmark(
        name=name,
        hub="lmms-lab/DocVQA",
        rows=(
            from_table,
            tsv_reader(config, tsv, split="val", otherwise=from_json),
        ),
        question=_question,
        styles=SAME_STYLES,
        scorers=("anls",),
        score=scored_by({"anls": anls}, "kind", metric="ANLS", right_wrong=False),
        export=submission(lambda q, answer: {"questionId": int(q.id), "answer": answer}),
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
