"""MME: the released folders with a text file per picture, and the Hugging Face rows.

Sources: MME's `calculation.py`, LLaVA `scripts/v1_5/eval/mme.sh` and `convert_answer_to_mme.py`, lmms-eval
`tasks/mme/utils.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.evaluation import files as evaluation_files
from basic_lite.evaluation.choices import MME_SCORERS, mme_answer
from basic_lite.evaluation.files import AGAIN, Source, read_text, write_text
from basic_lite.evaluation.question import SHORT, Question, check_style
from basic_lite.evaluation.statistics import Id, Score, mean_by, value_of

STYLES = {"llava": 128, "lmms": 16}  # one prompt; lmms-eval lets the model write less
SCORERS = MME_SCORERS
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_REQUEST = " Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg")


def read(source: Source, style: str = "llava") -> list[Question]:
    """Read the questions; a picture has two, told apart by a number after its name.

    Raises:
        ValueError: If files are missing or damaged, or the style is unknown.
    """
    check_style(style, STYLES, "mme")
    rows = evaluation_files.rows_of(source, _hub_rows, _folder_rows)
    odd = [row["id"] for row in rows if row["answer"].lower() not in ("yes", "no")]
    if odd:
        raise ValueError(f"{source.data}: the answer of question {odd[0]} is neither yes nor no.")
    return [
        Question(
            id=row["id"],
            text=f"{row['question'].strip().replace(_REQUEST, '')}\n{SHORT}",
            image=row["image"],
            max_new_tokens=STYLES[style],
            answer=row["answer"].lower(),
            category=row["category"],
            fields={name: row[name] for name in ("picture", "question", "answer")},
        )
        for row in rows
    ]


def _folder_rows(source: Source) -> Iterator[dict[str, Any]]:
    categories = [name for name in (*PERCEPTION, *COGNITION) if (source.folder / name).is_dir()]
    if not categories:
        raise ValueError(f"{source.data} has no MME categories: looked for folders such as {PERCEPTION[0]}.")
    for category in categories:
        folder = source.folder / category
        asked, pictures = folder / "questions_answers_YN", folder / "images"
        asked, pictures = (asked, pictures) if asked.is_dir() else (folder, folder)
        files = {path.stem: path for path in pictures.iterdir() if path.suffix.lower() in _PICTURES}
        for path in sorted(asked.glob("*.txt")):
            picture = files.get(path.stem)
            if picture is None and source.with_images:
                raise ValueError(f"{path} asks about a picture that {pictures} does not have.")
            name = picture.name if picture else f"{path.stem}.jpg"
            lines = [line for line in read_text(path).splitlines() if line.strip()]
            for number, line in enumerate(lines, start=1):
                question, _, answer = line.partition("\t")
                if not answer.strip():
                    raise ValueError(f"{path} line {number} has no answer behind a tab: {AGAIN}.")
                yield {
                    "id": f"{category}/{name}/{number}",
                    "question": question,
                    "answer": answer.strip(),
                    "category": category,
                    "picture": f"{category}/{name}",
                    "image": picture if source.with_images else None,
                }


def _hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    asked: dict[str, int] = defaultdict(int)
    needs = ("question_id", "question", "answer", "category")
    for row in evaluation_files.rows(source.data, None, "test", needs, with_images=source.with_images):
        picture = row["question_id"]
        asked[picture] += 1
        yield {
            **row,
            "id": f"{picture}/{asked[picture]}",
            "picture": picture,
            "answer": row["answer"].strip(),
        }


def score(questions: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score points: 100 x accuracy + 100 x share of pictures with all answers right, summed over categories.

    The value is the sum over perception; where only cognition was asked, over that.
    """
    said = {item: mme_answer(text, scorer) for item, text in predictions.items()}
    items = {question.id: float(said.get(question.id) == question.answer) for question in questions}
    pictures: dict[Id, tuple[str, int, int]] = {}
    for question in questions:
        category, right, asked = pictures.get(question.fields["picture"], (question.category, 0, 0))
        pictures[question.fields["picture"]] = (category, right + int(items[question.id]), asked + 1)

    def points(names: Sequence[str]) -> float:
        return value_of((cell for cell in pictures.values() if cell[0] in names), "pair_points")

    present = sorted({question.category for question in questions})
    measured = [name for name in present if name in PERCEPTION] or present
    by_id = {question.id: question for question in questions}
    return Score(
        metric="perception points" if measured[0] in PERCEPTION else "cognition points",
        scorer=scorer,
        value=points(measured),
        items=items,
        categories={question.id: question.category for question in questions},
        cells={picture: cell for picture, cell in pictures.items() if cell[0] in measured},
        statistic="pair_points",
        right_wrong=True,
        breakdown={
            "points": {name: points([name]) for name in present},
            "accuracy": mean_by(items, lambda item: by_id[item].category),
        },
        figures={"perception": points(PERCEPTION), "cognition": points(COGNITION)},
        unparsed=sum(answer == "other" for answer in said.values()),
        missing=len(questions) - len(predictions),
    )


def export(questions: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the folder that MME's `calculation.py` reads: per category a text file with tabs."""
    lines: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        answer = " ".join(predictions.get(question.id, "").split())
        asked = question.fields["question"].strip()
        name = Path(question.fields["picture"]).name
        lines[question.category].append("\t".join([name, asked, question.fields["answer"], answer]))
    for category, rows in lines.items():
        write_text(path / f"{category}.txt", "\n".join(rows) + "\n")
    return path
