"""MME: the released folders with a text file per picture, and the Hugging Face rows.

Sources: MME's `calculation.py`, LLaVA `scripts/v1_5/eval/mme.sh` and `convert_answer_to_mme.py`, lmms-eval
`tasks/mme/utils.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, published
from basic_lite.evaluation.files import AGAIN, Source, read_text, table_rows
from basic_lite.evaluation.question import SHORT, Id, Question
from basic_lite.evaluation.statistics import Score, mean_by, score_of, value_of
from basic_lite.evaluation.tsv import find_tsv, tsv_table
from basic_lite.files import write_text

STYLES = {"llava": 128, "lmms": 16}  # one prompt; lmms-eval lets the model write less
SCORERS = ("mme_official", "mme_lmms")
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_REQUEST = " Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg")


def _question(row: Mapping[str, Any], style: str) -> Question:
    if row["answer"].lower() not in ("yes", "no"):
        raise ValueError(
            f"The answer of MME's question {row['id']} is {row['answer']!r}, neither yes nor no."
        )
    return Question(
        id=row["id"],
        text=f"{row['question'].strip().replace(_REQUEST, '')}\n{SHORT}",
        image=row["image"],
        max_new_tokens=STYLES[style],
        answer=row["answer"].lower(),
        category=row["category"],
        picture=row["picture"],
        fields={name: row[name] for name in ("question", "answer")},
    )


def _tsv_rows(source: Source, path: Path) -> Iterator[dict[str, Any]]:
    """Read VLMEvalKit's table: rows about one picture share its image path."""
    for row in tsv_table(source, path, ("question", "answer", "category", "image_path"), "MME"):
        yield {**row, "id": row["index"], "picture": row["image_path"]}


def _folder_rows(source: Source) -> Iterator[dict[str, Any]]:
    tsv = find_tsv(source, "MME.tsv")
    if tsv is not None:
        yield from _tsv_rows(source, tsv)
        return
    names = (*PERCEPTION, *COGNITION)
    # The archive unpacks into MME_Benchmark_release_version, and that once more into MME_Benchmark.
    places = (source.folder, *sorted(source.folder.glob("*/")), *sorted(source.folder.glob("*/*/")))
    root = next((place for place in places if any((place / name).is_dir() for name in names)), source.folder)
    categories = [name for name in names if (root / name).is_dir()]
    if not categories:
        raise ValueError(f"{source.data} has no MME categories: looked for folders such as {PERCEPTION[0]}.")
    for category in categories:
        folder = root / category
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
                    raise ValueError(f"{path} line {number} has no answer after a tab: {AGAIN}.")
                yield {
                    "id": f"{category}/{name}/{number}",
                    "question": question,
                    "answer": answer.strip(),
                    "category": category,
                    "picture": f"{category}/{name}",
                    "image": picture if source.with_images else None,
                }


def _table_rows(source: Source) -> Iterator[dict[str, Any]]:
    asked: dict[str, int] = defaultdict(int)
    for row in table_rows(source, None, "test", ("question_id", "question", "answer", "category")):
        picture = row["question_id"]
        asked[picture] += 1
        identity = f"{picture}/{asked[picture]}"
        yield {**row, "id": identity, "picture": picture, "answer": row["answer"].strip()}


def yes_or_no(text: str, scorer: str) -> str:
    """Return `"yes"`, `"no"` or `"other"`: which of the words stands in the first four characters."""
    lowered = text.lower()
    if scorer == "mme_lmms":
        lowered = lowered.strip().replace(".", "")
        if lowered in ("y", "n"):
            return "yes" if lowered == "y" else "no"
    start = lowered[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score points: 100 x accuracy + 100 x share of pictures with all answers right, summed over categories.

    The value is the sum over perception; where only cognition was asked, over that.
    """
    said = {item: yes_or_no(text, scorer) for item, text in predictions.items()}
    items = {question.id: float(said.get(question.id) == question.answer) for question in questions}
    pictures: dict[Id, tuple[str, int, int]] = {}
    for question in questions:
        assert question.picture is not None
        category, right, asked = pictures.get(question.picture, (question.category, 0, 0))
        pictures[question.picture] = (category, right + int(items[question.id]), asked + 1)

    def points(names: Sequence[str]) -> float:
        return value_of((cell for cell in pictures.values() if cell[0] in names), "pair_points")

    by_id = {question.id: question.category for question in questions}
    present = sorted(set(by_id.values()))
    measured = [name for name in present if name in PERCEPTION] or present
    return score_of(
        questions,
        predictions,
        items,
        metric="perception points" if measured[0] in PERCEPTION else "cognition points",
        scorer=scorer,
        value=points(measured),
        cells={picture: cell for picture, cell in pictures.items() if cell[0] in measured},
        statistic="pair_points",
        right_wrong=True,
        breakdown={
            "points": {name: points([name]) for name in present},
            "accuracy": mean_by(items, by_id.get),
        },
        figures={"perception": points(PERCEPTION), "cognition": points(COGNITION)},
        unparsed=sum(answer == "other" for answer in said.values()),
    )


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the folder that MME's `calculation.py` reads: per category a text file with tabs."""
    lines: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        answer = " ".join(predictions.get(question.id, "").split())
        asked = question.fields["question"].strip()
        name = Path(str(question.picture)).name
        lines[question.category].append("\t".join([name, asked, question.fields["answer"], answer]))
    for category, rows in lines.items():
        write_text(path / f"{category}.txt", "\n".join(rows) + "\n")
    return path


BENCHMARK = Benchmark(
    name="mme",
    hub="lmms-lab/MME",
    split="test",
    sizes={"test": (2_374,)},
    styles=STYLES,
    scorers=SCORERS,
    published=published(1510.7, 1531.3, 1476.9, 1541.7),
    measured_on="perception points",
    rows=(_table_rows, _folder_rows),
    question=_question,
    score=score,
    export=export,
    submission="submission",
    unit=lambda question: question.picture,
)
