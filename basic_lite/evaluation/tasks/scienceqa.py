"""ScienceQA: the official JSON files, LLaVA's question file and the Hugging Face rows.

The published number is the accuracy over the questions with a picture. Sources: LLaVA
`llava/eval/model_vqa_science.py`, `eval_science_qa.py`, `scripts/convert_sqa_to_llava_base_prompt.py`;
lmms-eval `tasks/scienceqa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.files import (
    Source,
    find,
    find_optional,
    locate_images,
    main_file,
    read_json,
    require,
)
from basic_lite.evaluation.question import LETTER, Question, check_style
from basic_lite.evaluation.statistics import Score, mean_by, percent

SCORERS = ("llava_sqa", "lmms_sqa", "exact_matching")
_LETTERS = "ABCDE"
_NEEDS = ("question", "choices", "answer", "hint")
_GROUPS = ("subject", "topic", "grade", "task")


def _lines(row: Mapping[str, Any]) -> str:
    """Return context (if there is any), question and lettered options, one a line."""
    context = [f"Context: {row['hint']}"] if row["hint"] else []
    options = [f"{letter}. {text}" for letter, text in zip(_LETTERS, row["choices"], strict=False)]
    return "\n".join([*context, row["question"], *options])


def _script_lines(row: Mapping[str, Any]) -> str:
    """Return what LLaVA's conversion script writes for CQM: options on one line, "N/A" without context."""
    options = " ".join(f"({letter}) {text}" for letter, text in zip(_LETTERS, row["choices"], strict=False))
    text = f"Context: {row['hint'].strip() or 'N/A'}\nQuestion: {row['question']}\nOptions: {options}"
    return text.replace("  ", " ").strip()


STYLES: dict[str, tuple[Callable[[Mapping[str, Any]], str], int]] = {
    "llava": (_lines, 1024),
    "llava_script": (_script_lines, 1024),
    "lmms": (_lines, 16),  # the same words; lmms-eval lets the model write less
}


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the questions of a split; `-img` after its name leaves out those without a picture.

    Where LLaVA's own question file lies beside the problems, the `llava` style takes its words.

    Raises:
        ValueError: If files are missing or damaged, or the style is unknown.
    """
    check_style(style, STYLES, "scienceqa")
    render, max_new_tokens = STYLES[style]
    rows = files.rows_of(source, _hub_rows, _file_rows)
    return [
        Question(
            id=row["id"],
            text=f"{(row.get('llava') if style == 'llava' else None) or render(row)}\n{LETTER}",
            image=row["image"],
            max_new_tokens=max_new_tokens,
            answer=_LETTERS[row["answer"]],
            choices=dict(zip(_LETTERS, row["choices"], strict=False)),
            category=row.get("subject") or "",
            fields={"has_image": row["has_image"], **{name: row.get(name) for name in _GROUPS}},
        )
        for row in rows
    ]


def _file_rows(source: Source) -> list[dict[str, Any]]:
    split = source.split.removesuffix("-img")
    problems_path = main_file(source, "ScienceQA problems", "problems.json", "sqa_problems.json")
    splits_path = find(source, "ScienceQA splits", "pid_splits.json", "sqa_pid_splits.json")
    problems, splits = read_json(problems_path), read_json(splits_path)
    require(splits, [split], str(splits_path))
    absent = [identity for identity in splits[split] if identity not in problems]
    if absent:
        raise ValueError(
            f"{problems_path} lacks {len(absent)} problems of split {split} (first: {absent[0]})."
        )
    rows = []
    for identity in splits[split]:
        row = problems[identity]
        require(row, (*_NEEDS, "image"), f"{problems_path} problem {identity}")
        rows.append({**row, "id": identity, "has_image": bool(row["image"]), "llava": None})
    if source.split.endswith("-img"):
        rows = [row for row in rows if row["has_image"]]
    names = {row["id"]: f"{row['id']}/{row['image']}" if row["image"] else None for row in rows}
    images = locate_images(source, names, (f"images/{split}", split, "images"))
    texts = _llava_texts(source) if split == "test" else {}
    return [{**row, "image": images[row["id"]], "llava": texts.get(row["id"])} for row in rows]


def _llava_texts(source: Source) -> dict[str, str]:
    """Return id -> question as LLaVA's file words it, without the image token."""
    path = find_optional(source, "llava_test_CQM-A.json", "llava_sqa_questions.json")
    if path is None:
        return {}
    content = read_json(path)
    for number, row in enumerate(content):
        require(row, ("id", "conversations"), f"{path} question {number}")
    return {row["id"]: row["conversations"][0]["value"].replace("<image>", "").strip() for row in content}


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    config = "ScienceQA-IMG" if source.split.endswith("-img") else "ScienceQA-FULL"
    split = {"val": "validation"}.get(source.split.removesuffix("-img"), "test")
    # The hub's rows carry no id, so the row number stands for it; pictures decide which rows have one.
    for number, row in enumerate(files.rows(source.data, config, split, _NEEDS)):
        has_image = row["image"] is not None
        yield {
            **row,
            "id": str(number),
            "has_image": has_image,
            "image": row["image"] if source.with_images else None,
        }


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score letters; the value is over the questions with a picture, unless there are none."""
    letters = {
        question.id: extract_option(predictions[question.id], question.choices, scorer)
        for question in questions
        if question.id in predictions
    }
    right = {question.id: float(letters.get(question.id) == question.answer) for question in questions}
    by_id = {question.id: question for question in questions}
    with_image = {item: share for item, share in right.items() if by_id[item].fields["has_image"]}
    items = with_image or right
    return Score(
        metric="accuracy, questions with a picture" if with_image else "accuracy",
        scorer=scorer,
        value=percent(items),
        items=items,
        categories={item: by_id[item].category for item in items},
        right_wrong=True,
        breakdown={
            name: mean_by(items, lambda item, name=name: by_id[item].fields[name]) for name in _GROUPS
        },
        figures={"accuracy_all": percent(right), "n_all": len(right), "n_with_picture": len(with_image)},
        unparsed=sum(letter is None for letter in letters.values()),
        missing=len(questions) - len(letters),
    )
