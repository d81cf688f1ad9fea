"""MMBench, English and Chinese: the published TSV and the Hugging Face rows, and the prompts.

Sources: LLaVA `llava/eval/model_vqa_mmbench.py` (cells and prompt), lmms-eval `tasks/mmbench/en_utils.py` and
`cn_utils.py`, VLMEvalKit `dataset/image_mcq.py` (other prompts).
"""

from __future__ import annotations

import base64
import binascii
import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from basic_lite.benchmarks.question import ImageSource, Question
from basic_lite.scoring.circular import LETTERS, choices_of, is_missing

MAX_NEW_TOKENS = 1024
COLUMNS = ("index", "question", "A", "B", "C", "D", "answer", "category", "image")
_OPTIONAL = ("hint", "source", "l2-category", "comment", "split")
_LONGEST_INDEX = 64  # a shorter image cell names the row that holds the picture

# What pandas reads as missing, also inside quotes: an option that is literally "None" is lost, as in LLaVA.
_PANDAS_NA = frozenset(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)

_LETTER_EN = "Answer with the option's letter from the given choices directly."
_LETTER_CN = "请直接回答选项字母。"
_LETTER_CN_LMMS = "请直接使用所提供的选项字母作为答案回答。"


def _options_until_gap(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield "A. text" and so on, up to the first missing option."""
    for letter in LETTERS:
        if is_missing(row.get(letter)):
            return
        yield f"{letter}. {row[letter]}"


def _all_options(row: Mapping[str, Any]) -> list[str]:
    return [f"{letter}. {text}" for letter, text in choices_of(row).items()]


def _hint(row: Mapping[str, Any]) -> str:
    return "" if is_missing(row.get("hint")) else str(row["hint"])


def llava_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return LLaVA-1.5's user turn: hint, question, options, and the request for a letter, one a line."""
    hint = _hint(row)
    suffix = _LETTER_CN if language == "cn" else _LETTER_EN
    return "\n".join([*([hint] if hint else []), str(row["question"]), *_options_until_gap(row), suffix])


def lmms_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return lmms-eval's user turn; its Chinese task has a heading and a suffix of its own."""
    hint = _hint(row)
    heading, suffix = (
        ("有如下几个选项：", _LETTER_CN_LMMS)
        if language == "cn"
        else ("There are several options:", _LETTER_EN)
    )
    options = "\n".join(_all_options(row))
    return f"{hint + ' ' if hint else ''}{row['question']} {heading}\n{options}\n\n{suffix}"


def vlmevalkit_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return VLMEvalKit's default user turn, the same in both languages; a space and a newline end it."""
    hint = _hint(row)
    lines = [
        *([f"Hint: {hint}"] if hint else []),
        f"Question: {row['question']}",
        "Options:",
        *_all_options(row),
    ]
    return "\n".join([*lines, "Please select the correct answer from the options above. \n"])


def vlmevalkit_llava_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return the turn of VLMEvalKit's LLaVA wrapper: the suffix follows the script of the text."""
    hint = _hint(row)
    text = "\n".join([*([hint] if hint else []), str(row["question"]), *_all_options(row)])
    return f"{text}\n{_LETTER_CN if re.search('[一-鿿]', text) else _LETTER_EN}"


PROMPTS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "llava": llava_prompt,
    "lmms": lmms_prompt,
    "vlmevalkit": vlmevalkit_prompt,
    "vlmevalkit_llava": vlmevalkit_llava_prompt,
}


def _tsv_rows(path: Path) -> list[dict[str, str | None]]:
    """Read the cells as text, missing ones as `None`; every row must have all columns."""
    csv.field_size_limit(sys.maxsize)  # a picture is one cell of up to some hundred thousand characters
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, delimiter="\t") if line]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give the path of an MMBench TSV.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text ({error.reason}): it may be cut off or compressed."
        ) from None
    header = [name if name in LETTERS else name.lower() for name in lines[0]] if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(
            f"{path} is no MMBench TSV: column {', '.join(missing)} is missing; "
            f"it has {', '.join(header) or 'none'}."
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise ValueError(
                f"{path} row {number} has {len(line)} of {len(header)} columns: the file is cut off or "
                "damaged, get it again."
            )
        rows.append(
            {name: None if cell in _PANDAS_NA else cell for name, cell in zip(header, line, strict=True)}
        )
    return rows


def _picture(cell: str, row: str) -> bytes:
    """Decode a base64 cell and look at the header of the picture."""
    from io import BytesIO

    from PIL import Image, UnidentifiedImageError

    try:
        picture = base64.b64decode("".join(cell.split()), validate=True)
        Image.open(BytesIO(picture)).close()  # reads the header alone
    except (binascii.Error, UnidentifiedImageError) as error:
        reason = "base64" if isinstance(error, binascii.Error) else "picture"
        raise ValueError(
            f"MMBench row {row}: the image cell does not decode ({reason}): the file is damaged, get it "
            "again."
        ) from None
    return picture


def _pictures(cells: Mapping[int, str | None]) -> dict[int, bytes]:
    """Decode each picture once and share it with the rows that point at it."""
    decoded: dict[int, bytes] = {}

    def find(index: int, via: int, seen: tuple[int, ...] = ()) -> bytes:
        if index in seen or is_missing(cells.get(index)):
            raise ValueError(
                f"MMBench row {via}: its image cell points at row {index}, which holds no picture: the file "
                "is damaged or cut off."
            )
        if index not in decoded:
            cell = str(cells[index]).strip()
            if len(cell) > _LONGEST_INDEX:
                decoded[index] = _picture(cell, str(index))
            elif cell.isdigit():
                decoded[index] = find(int(cell), index, (*seen, index))
            else:
                raise ValueError(
                    f"MMBench row {index}: image cell {cell!r} is neither base64 nor a row index."
                )
        return decoded[index]

    return {index: find(index, index) for index in cells}


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
    if prompt_style not in PROMPTS:
        raise ValueError(f"Unknown MMBench prompt style {prompt_style!r}: use one of {', '.join(PROMPTS)}.")
    made: dict[int, Question] = {}
    for row in rows:
        index = _index(row)
        if index in made:
            raise ValueError(f"MMBench row index {index} comes twice: remove the duplicate row.")
        cells = {name: row.get(name) for name in (*COLUMNS, *_OPTIONAL) if name != "image"}
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


def _index(row: Mapping[str, Any]) -> int:
    """Return the row's index; "7.0" comes from files that went through a float column."""
    try:
        number = float(row["index"])
        if number.is_integer():
            return int(number)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"MMBench row index {row.get('index')!r} is no whole number.")


def read_tsv(path: str | Path, language: str = "en", prompt_style: str = "llava") -> list[Question]:
    """Read a TSV in the published format.

    Cells are read as LLaVA's pandas call reads them, but all as text, so that an option "5" stays "5".

    Args:
        path: The TSV; its columns may come in any order and case (`L2-category`).
        language: `"en"` or `"cn"`.
        prompt_style: A name in `PROMPTS`.

    Returns:
        One question per row, rotations included, in the order of the file.

    Raises:
        ValueError: In one line, if columns are missing, a row is cut off, an index comes twice or a picture
            does not decode.
    """
    rows = _tsv_rows(Path(path))
    cells: dict[int, str | None] = {}
    for row in rows:
        index = _index(row)
        if index in cells:
            raise ValueError(f"{path}: row index {index} comes twice: remove the duplicate row.")
        cells[index] = row["image"]
    if not rows:
        raise ValueError(f"{path} has a header and no rows: the file is cut off, get it again.")
    return questions(rows, _pictures(cells), language, prompt_style)
