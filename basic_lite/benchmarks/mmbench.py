"""MMBench, English and Chinese: the published TSV and the Hugging Face rows, the score and the submission.

Sources: LLaVA `llava/eval/model_vqa_mmbench.py` (cells) and `scripts/convert_mmbench_for_submission.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.benchmarks import hub
from basic_lite.benchmarks.files import Source, main_file
from basic_lite.benchmarks.mmbench_prompts import PROMPTS
from basic_lite.benchmarks.mmbench_tsv import COLUMNS, LABELS, OPTIONAL, pictures, row_index, tsv_rows
from basic_lite.benchmarks.prompts import check_style
from basic_lite.benchmarks.question import ImageSource, Question
from basic_lite.scoring.circular import LETTERS, ROTATION, choices_of, circular_accuracy, is_missing
from basic_lite.scoring.options import METHODS
from basic_lite.scoring.score import Score

MAX_NEW_TOKENS = 1024
SCORERS = tuple(METHODS)
_SUBMITTED = ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
NORMALISE_CN = "_normalise_cn"
SCORERS_CN = (*SCORERS, *(f"{name}{NORMALISE_CN}" for name in SCORERS))


def questions(
    rows: Iterable[Mapping[str, Any]],
    images: Mapping[int, ImageSource],
    language: str = "en",
    prompt_style: str = "llava",
) -> list[Question]:
    """Make questions from rows; the row itself (without its picture) is `Question.fields`, for the scorer.

    Args:
        rows: Mappings with `index`, `question`, `A` to `D` and, where known, the other columns.
        images: Row index -> picture.
        language: `"en"` or `"cn"`, which decides the suffix of LLaVA's prompt.
        prompt_style: A name in `PROMPTS`.

    Raises:
        ValueError: If an index comes twice or is no number, or the prompt style is unknown.
    """
    check_style(prompt_style, PROMPTS, "mmbench")
    made: dict[int, Question] = {}
    for row in rows:
        index = row_index(row)
        if index in made:
            raise ValueError(f"MMBench row index {index} comes twice: remove the duplicate row.")
        cells = {name: row.get(name) for name in (*COLUMNS, *LABELS, *OPTIONAL) if name != "image"}
        cells = {name: None if is_missing(cell) else str(cell) for name, cell in cells.items()}
        fields: dict[str, Any] = {**cells, "index": index}
        made[index] = Question(
            id=index,
            text=PROMPTS[prompt_style](fields, language),
            image=images.get(index),
            max_new_tokens=MAX_NEW_TOKENS,
            answer=cells["answer"],
            choices=choices_of(fields),
            category=cells["category"] or "",
            fields=fields,
        )
    return list(made.values())


def read_tsv(
    path: str | Path,
    language: str = "en",
    prompt_style: str = "llava",
    labelled: bool = True,
    with_images: bool = True,
) -> list[Question]:
    """Read a TSV in the published format.

    Cells are read as LLaVA's pandas call reads them, but all as text, so that an option "5" stays "5".

    Args:
        path: The TSV; its columns may come in any order and case (`L2-category`).
        language: `"en"` or `"cn"`.
        prompt_style: A name in `PROMPTS`.
        labelled: Whether the file must have answers and categories.
        with_images: False leaves the pictures out.

    Returns:
        One question per row, rotations included, in the order of the file.

    Raises:
        ValueError: In one line, if columns are missing, a row is cut off, an index comes twice or a picture
            does not decode.
    """
    rows = tsv_rows(Path(path), (*COLUMNS, *(LABELS if labelled else ())))
    cells: dict[int, str | None] = {}
    for row in rows:
        index = row_index(row)
        if index in cells:
            raise ValueError(f"{path}: row index {index} comes twice: remove the duplicate row.")
        cells[index] = row["image"]
    if not rows:
        raise ValueError(f"{path} has a header and no rows: the file is cut off, get it again.")
    return questions(rows, pictures(cells) if with_images else {}, language, prompt_style)


def read(source: Source, style: str = "llava", language: str = "en") -> list[Question]:
    """Read a split from a TSV or from a Hugging Face data set.

    Raises:
        ValueError: If the data is missing or damaged, or the style is unknown.
    """
    labelled = source.split == "dev"
    if not hub.is_table(source):
        patterns = [f"mmbench_{source.split}_cn*.tsv", f"MMBench_{source.split.upper()}_CN.tsv"]
        if language == "en":
            patterns = [f"mmbench_{source.split}_2*.tsv", f"mmbench_{source.split}_en*.tsv"]
            patterns += [f"mmbench_{source.split}.tsv", f"MMBench_{source.split.upper()}_EN.tsv"]
        path = main_file(source, f"MMBench TSV ({language}, {source.split})", *patterns)
        return read_tsv(path, language, style, labelled, source.with_images)
    needs = [name for name in COLUMNS if name != "image"] + (["answer"] if labelled else [])
    rows = list(hub.rows(source.data, language, source.split, needs, with_images=source.with_images))
    images = {row_index(row): row["image"] for row in rows}
    lowered = [
        {name if name in LETTERS else name.lower(): cell for name, cell in row.items()} for row in rows
    ]
    return questions(lowered, images, language, style)


def score(asked: Sequence[Question], predictions: Mapping[int | str, str], scorer: str) -> Score:
    """Score by circular accuracy, by category and l2-category as the data names them.

    A scorer that ends in `_normalise_cn` folds Chinese punctuation before it looks for a letter. Answers with
    Chinese characters are counted both ways, as a large difference points at a wrong prompt.

    Raises:
        ValueError: If a row has no public answer, or the scorer is unknown.
    """
    method = scorer.removesuffix(NORMALISE_CN)
    rows = [question.fields for question in asked]
    answers = {int(index): text for index, text in predictions.items()}
    result = circular_accuracy(rows, answers, method, normalise=scorer.endswith(NORMALISE_CN))
    figures: dict[str, Any] = {
        "vanilla": 100 * result.vanilla,
        "all_rows": 100 * result.all_rows,
        "letters": result.histogram,
        "resolved_by_text": 100 * result.text_share,
        "n_questions": result.n_questions,
        "n_rows": result.n_rows,
    }
    if any(ord(character) > 0x2E7F for text in answers.values() for character in text):
        for name, folded in (("as_answered", False), ("normalise_cn", True)):
            other = circular_accuracy(rows, answers, method, normalise=folded)
            figures[name] = {
                "value": 100 * other.overall,
                "parse_failures": other.n_unparsed - other.n_missing,
            }
    base = {question.fields["index"] % ROTATION: question.category for question in reversed(asked)}
    return Score(
        metric="circular accuracy",
        scorer=scorer,
        value=100 * result.overall,
        items={question: float(hit) for question, hit in result.hits.items()},
        categories={question: base[question] for question in result.hits},
        right_wrong=True,
        breakdown={
            "category": {name: 100 * share for name, share in result.per_category.items()},
            "l2-category": {name: 100 * share for name, share in result.per_l2_category.items()},
        },
        figures=figures,
        unparsed=result.n_unparsed - result.n_missing,
        missing=result.n_missing,
    )


def export(asked: Sequence[Question], predictions: Mapping[int | str, str], path: Path) -> Path:
    """Write the server's Excel file.

    Raises:
        ValueError: If openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ModuleNotFoundError:
        raise ValueError(
            "An MMBench submission is an Excel file: pip install openpyxl (basic-lite[xlsx])."
        ) from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(_SUBMITTED)
    for question in asked:
        row = {**question.fields, "prediction": predictions.get(question.id)}
        cells = []
        for name in _SUBMITTED:
            value = row[name]
            if isinstance(value, str):
                # As text even where it begins with "=", which Excel would take for a formula.
                cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
                cell.data_type = "s"
                cells.append(cell)
            else:
                cells.append(value)
        sheet.append(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    book.save(unfinished)
    unfinished.replace(path)
    return path
