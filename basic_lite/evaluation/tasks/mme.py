"""MME: the released folders with a text file per picture, and the Hugging Face rows.

Sources: MME's `calculation.py`, LLaVA `scripts/v1_5/eval/mme.sh` and `convert_answer_to_mme.py`, lmms-eval
`tasks/mme/utils.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, Rule, compared, published, score_each
from basic_lite.evaluation.files import AGAIN, Source, read_text, table_rows
from basic_lite.evaluation.question import SHORT, TOKEN_LIMITS, Id, Question, question_of
from basic_lite.evaluation.statistics import Score, mean_by, value_of
from basic_lite.evaluation.tsv import tsv_reader
from basic_lite.files import write_text

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_REQUEST = " Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg")


def _question(row: Row, style: str) -> Question:
    truth = row["answer"].strip()
    if truth.lower() not in ("yes", "no"):
        raise ValueError(f"The answer of MME's question {row['id']} is {truth!r}, neither yes nor no.")
    asked = row["question"].strip().replace(_REQUEST, "")
    return question_of(
        {**row, "answer": truth},
        # Two spaces stand before some requests: lmms-eval leaves one of them.
        f"{asked.strip() if style == 'llava' else asked}\n{SHORT}",
        max_new_tokens=TOKEN_LIMITS[style],
        answer=truth.lower(),
        category="category",
        fields=("question", "answer"),
    )


def _folder_rows(source: Source) -> Iterator[dict[str, Any]]:
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
        yield {**row, "id": f"{picture}/{asked[picture]}", "picture": picture}


def yes_or_no(text: str, scorer: str) -> str | None:
    """Return which of the two words stands in the first four characters, `None` for neither."""
    lowered = text.lower()
    if scorer == "mme_lmms":
        lowered = lowered.strip().replace(".", "")
        if lowered in ("y", "n"):
            return "yes" if lowered == "y" else "no"
    start = lowered[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


RULES: dict[str, Rule] = {
    name: compared(lambda text, question, name=name: yes_or_no(text, name))
    for name in ("mme_official", "mme_lmms")
}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score points: 100 x accuracy + 100 x share of pictures with all answers right, summed over categories.

    The value is the sum over perception; where only cognition was asked, over that.
    """
    each = score_each(questions, predictions, scorer, RULES[scorer])
    pictures: dict[Id, tuple[str, int, int]] = {}
    for question in questions:
        assert question.picture is not None
        category, right, asked = pictures.get(question.picture, (question.category, 0, 0))
        pictures[question.picture] = (category, right + int(each.items[question.id]), asked + 1)

    def points(names: Sequence[str]) -> float:
        return value_of((cell for cell in pictures.values() if cell[0] in names), "pair_points")

    by_id = {question.id: question.category for question in questions}
    present = sorted(set(by_id.values()))
    measured = [name for name in present if name in PERCEPTION] or present
    return replace(
        each,
        metric="perception points" if measured[0] in PERCEPTION else "cognition points",
        value=points(measured),
        cells={picture: cell for picture, cell in pictures.items() if cell[0] in measured},
        statistic="pair_points",
        breakdown={
            "points": {name: points([name]) for name in present},
            "accuracy": mean_by(each.items, by_id.get),
        },
        figures={"perception": points(PERCEPTION), "cognition": points(COGNITION)},
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


_file_rows = tsv_reader(  # rows about one picture share its path
    "MME",
    "MME.tsv",
    needs=("question", "answer", "category", "image_path"),
    otherwise=_folder_rows,
    picture="image_path",
)

BENCHMARK = Benchmark(
    name="mme",
    hub="lmms-lab/MME",
    sizes={"test": (2_374,)},
    rows=(_table_rows, _file_rows),
    question=_question,
    styles=TOKEN_LIMITS,
    scorers=tuple(RULES),
    score=score,
    published=published(1510.7, 1531.3, 1476.9, 1541.7, on="perception points"),
    export=export,
    submission="submission",
    unit=lambda question: question.picture,
)
