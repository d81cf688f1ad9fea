"""A set of your own: pictures, questions and answers in JSON, JSON lines, a TSV or the layout of `datasets`.

A row has `question` and `answer` (or `answers`), and may have `image` (a file beside the data), `choices` (a
list, or letter to text), `category` and `id`. The answer of a choice is its letter or its words. A row with
`captions` needs no question; `cider` scores it by pycocoevalcap, over texts in COCO's tokens (its tokeniser
runs on Java).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, Rule, by_letter, score_each
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import SHORT, Question, options_prompt, question_of
from basic_lite.evaluation.statistics import Score, score_of
from basic_lite.evaluation.tasks.docvqa import anls
from basic_lite.evaluation.tsv import OPTIONS, choices_in, tsv_reader

STYLES = {"llava": True, "as_written": False}
"""Style -> whether LLaVA-1.5's request for a word or a letter follows the question."""

CAPTION = "Provide a one-sentence caption for the provided image."
"""What a row with captions asks without a question of its own: LLaVA-1.5's words in training, from memory."""

_FOLDERS = (".", "images", "pictures")


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


RULES: dict[str, Rule] = {
    "equal": lambda text, question: float(_plain(text) in map(_plain, question.answers)),
    "contains": lambda text, question: float(any(_plain(a) in _plain(text) for a in question.answers)),
    "anls": anls,
}
"""Rules of single answers; a choice is read by `exact_matching` under each of them."""

_choice = by_letter("exact_matching")


def _choices(row: Row) -> dict[str, str]:
    given = row.get("choices") or row.get("options") or []
    if isinstance(given, Mapping):
        return {str(letter): str(text) for letter, text in given.items() if text is not None}
    if not isinstance(given, list) or len(given) > len(OPTIONS):
        raise ValueError(
            f"Question {row['id']}: choices must be a list of at most {len(OPTIONS)}, got {given!r}."
        )
    return choices_in(row)


def _question(row: Row, style: str) -> Question:
    captions = row.get("captions")
    if not captions:
        files.require(row, ("question",), f"Question {row['id']}")
    choices, asked = _choices(row), str(row.get("question") or CAPTION).strip()
    given = captions or (row.get("answers") if row.get("answer") is None else row["answer"])
    answers = [] if given is None else [str(a) for a in (given if isinstance(given, list) else [given])]
    letter = None
    if choices and answers:
        said = answers[0].strip()
        by_words = [name for name, text in choices.items() if text == said]
        letter = said if said in choices else by_words[0] if len(by_words) == 1 else None
        if letter is None:
            raise ValueError(
                f"Question {row['id']}: answer {said!r} is none of its choices {', '.join(choices)}."
            )
    text = options_prompt(asked, choices) if choices else f"{asked}\n{SHORT}"
    return question_of(
        {**row, "category": str(row.get("category") or "")},
        text if STYLES[style] and not captions else asked,
        stem=asked,
        answer=letter,
        answers=() if choices else tuple(answers),
        choices=choices,
        category="category",
        fields=("category",),
    )


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    split = "test" if source.split == "all" else source.split
    for number, row in enumerate(files.table_rows(source, None, split, ())):
        yield {**row, "id": row.get("id") or str(number)}


def _json_rows(source: Source) -> list[dict[str, Any]]:
    path = files.main_file(source, "questions", "*.jsonl", "*.json")
    lines = path.suffix == ".jsonl"
    rows = files.read_json_lines(path) if lines else files.read_list(path, None, ())
    if not rows:
        raise ValueError(f"{path} holds no question.")
    rows = [
        {**row, "id": row.get("id", str(number)), "picture": row.get("image"), "file": row.get("image")}
        for number, row in enumerate(rows)
    ]
    first = next((row["file"] for row in rows if row["file"]), "")
    folder = source.images or source.folder
    places = sorted(_FOLDERS, key=lambda place: not (Path(folder) / place / first).is_file())
    return files.with_pictures(source, rows, places)


def _cider(questions: Sequence[Question], predictions: Predictions) -> Score:
    """Return 100 x CIDEr. It weighs words by how rare they are in this set: sets do not compare."""
    for question in questions:
        if question.choices or not question.answers:
            raise ValueError(
                f"Question {question.id} has no caption: score a set of captions alone by cider, or choose "
                f"another --scorer of {', '.join(RULES)}."
            )
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

    ids = {str(number): question for number, question in enumerate(questions)}
    true = {name: [{"caption": text} for text in question.answers] for name, question in ids.items()}
    said = {name: [{"caption": predictions.get(question.id, "")}] for name, question in ids.items()}
    tokens = PTBTokenizer()
    _, each = Cider().compute_score(tokens.tokenize(true), tokens.tokenize(said))
    items = {question.id: float(value) for question, value in zip(questions, each, strict=True)}
    by = ("category",)
    return score_of(questions, predictions, items, metric="CIDEr", scorer="cider", groupings=by)


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score choices by letter and short answers by the rule that was chosen, by category; or captions."""
    if scorer == "cider":
        return _cider(questions, predictions)

    def rule(text: str, question: Question) -> float | None:
        return (_choice if question.choices else RULES[scorer])(text, question)

    whole = scorer != "anls" or all(question.choices for question in questions)
    return score_each(questions, predictions, scorer, rule, ("category",), right_wrong=whole)


_file_rows = tsv_reader("question", "*.tsv", otherwise=_json_rows)

BENCHMARK = Benchmark(
    name="mine",
    hub="",
    sizes={"all": (), "train": (), "val": (), "validation": (), "test": ()},
    rows=(_table_rows, _file_rows),
    question=_question,
    styles=STYLES,
    scorers=(*RULES, "cider"),
    programs={"cider": ("pycocoevalcap", "java")},
    score=score,
)
