"""MMBench, English and Chinese: the published TSV and the Hugging Face rows, the score and the submission.

Sources: LLaVA `llava/eval/model_vqa_mmbench.py` (cells) and `scripts/convert_mmbench_for_submission.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, published
from basic_lite.evaluation.choices import METHODS, resolve_option
from basic_lite.evaluation.files import Source, main_file, table_rows, unique
from basic_lite.evaluation.question import LETTER, Id, Question, question_of
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tsv import PANDAS_NA, picture_holders, picture_of, tsv_rows
from basic_lite.files import complete

LETTER_CN = "请直接回答选项字母。"
LETTER_CN_LMMS = "请直接使用所提供的选项字母作为答案回答。"

ROTATION = 1_000_000  # rotation k of question i has index `i + k * ROTATION`

LETTERS = "ABCD"

CIRCULAR = "circular accuracy"
"""The metric: a question counts only if every rotation of its options is answered rightly."""


def is_missing(value: object) -> bool:
    """Return whether a cell is empty as LLaVA's `is_none` sees it, or in a TSV."""
    if value is None or value != value:
        return True
    return isinstance(value, str) and value.lower() in ("nan", "none", "")


def choices_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Return letter -> text of the options that a row has (a gap is skipped; LLaVA's prompt stops at it)."""
    return {letter: str(row[letter]) for letter in LETTERS if not is_missing(row.get(letter))}


def _per_cent(hits: Iterable[bool]) -> float:
    hits = list(hits)
    return 100 * (sum(hits) / len(hits)) if hits else 0.0


def circular_accuracy(
    rows: Iterable[Mapping[str, Any]], predictions: Mapping[int, str], method: str
) -> Score:
    """Score MMBench rows: a question counts only if every rotation of its options is answered rightly.

    Source: VLMEvalKit `dataset/utils/multiple_choice.py` (`mcq_circular_eval`, `report_acc`) and lmms-eval
    `tasks/mmbench/mmbench_evals.py`; both agree on the grouping and differ in the extraction alone.

    A row has `index`, `A` to `D`, `answer`, `category` and `l2-category`, and `predictions` are by index;
    `method` is of `extract_option`. Raises ValueError if there are no rows, or a row has no labelled answer.
    """
    by_index = {int(row["index"]): row for row in rows}
    if not by_index:
        raise ValueError("No MMBench rows to score: the file or the limit left nothing.")
    letters: Counter[str] = Counter()
    by_text = missing = 0
    row_hits: dict[int, bool] = {}
    rotations: dict[int, list[bool]] = defaultdict(list)
    base: dict[int, Mapping[str, Any]] = {}  # question -> its unrotated row, or the first that a limit left
    for index, row in by_index.items():
        if is_missing(row.get("answer")):
            raise ValueError(
                f"MMBench row {index} has no answer: score a labelled split, or export a submission."
            )
        letter, resolved_by = None, ""
        if index in predictions:
            letter, resolved_by = resolve_option(str(predictions[index]), choices_of(row), method)
        missing += index not in predictions
        letters.update([] if letter is None else [letter])
        by_text += resolved_by == "text"
        row_hits[index] = letter == row["answer"]
        question = index % ROTATION
        rotations[question].append(row_hits[index])
        base[question] = row if index == question else base.get(question, row)
    hits = {question: all(each) for question, each in rotations.items()}
    breakdown = {}
    for name in ("category", "l2-category"):
        members: dict[str, list[bool]] = defaultdict(list)
        for question, row in base.items():
            if not is_missing(row.get(name)):
                members[str(row[name])].append(hits[question])
        breakdown[name] = {group: _per_cent(members[group]) for group in sorted(members)}
    return Score(
        metric=CIRCULAR,
        scorer=method,
        value=_per_cent(hits.values()),
        items={question: float(hit) for question, hit in hits.items()},
        right_wrong=True,
        breakdown=breakdown,
        figures={
            "vanilla": _per_cent(hit for index, hit in row_hits.items() if index < ROTATION),
            "all_rows": _per_cent(row_hits.values()),
            "letters": dict(sorted(letters.items())),
            "resolved_by_text": 100 * (by_text / len(by_index)),
            "n_questions": len(hits),
            "n_rows": len(by_index),
        },
        unparsed=len(by_index) - missing - letters.total(),
        missing=missing,
    )


_CN_MARKS = str.maketrans(dict.fromkeys("。、（）：():", " "))


def normalise_cn(prediction: str) -> str:
    """Fold full-width forms and set Chinese marks to spaces before extraction (opt-in for MMBench-CN).

    With LLaVA's suffix a model answers with a bare letter: a large difference points at a wrong prompt.
    """
    return unicodedata.normalize("NFKC", prediction).translate(_CN_MARKS).strip()


COLUMNS = ("index", "question", "A", "B", "C", "D", "image")
LABELS = ("answer", "category")
OPTIONAL = ("hint", "source", "l2-category", "comment", "split")


def row_index(row: Mapping[str, Any]) -> int:
    """Return the row's index; "7.0" comes from files that went through a float column."""
    try:
        number = float(row["index"])
        if number.is_integer():
            return int(number)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"MMBench row index {row.get('index')!r} is no whole number.")


def _lines(row: Mapping[str, Any], options: Iterable[str]) -> str:
    """Return hint (if there is one), question and options, one a line."""
    return "\n".join([*([row["hint"]] if row["hint"] else []), str(row["question"]), *options])


def _options(row: Mapping[str, Any]) -> list[str]:
    return [f"{letter}. {text}" for letter, text in choices_of(row).items()]


def llava_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return LLaVA-1.5's user turn, whose options end at the first that is missing."""
    options = (f"{letter}. {row[letter]}" for letter in takewhile(row.get, LETTERS))
    return f"{_lines(row, options)}\n{LETTER_CN if language == 'cn' else LETTER}"


def lmms_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return lmms-eval's user turn; its Chinese task has a heading and a suffix of its own."""
    heading, suffix = (
        ("有如下几个选项：", LETTER_CN_LMMS) if language == "cn" else ("There are several options:", LETTER)
    )
    hint = f"{row['hint']} " if row["hint"] else ""
    return "\n".join([f"{hint}{row['question']} {heading}", *_options(row), "", suffix])


def vlmevalkit_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return VLMEvalKit's default user turn, the same in both languages; a space and a newline end it."""
    hint = [f"Hint: {row['hint']}"] if row["hint"] else []
    request = "Please select the correct answer from the options above. \n"
    return "\n".join([*hint, f"Question: {row['question']}", "Options:", *_options(row), request])


def vlmevalkit_llava_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return the turn of VLMEvalKit's LLaVA wrapper: the suffix follows the script of the text."""
    text = _lines(row, _options(row))
    return f"{text}\n{LETTER_CN if re.search('[一-鿿]', text) else LETTER}"


PROMPTS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "llava": llava_prompt,
    "lmms": lmms_prompt,
    "vlmevalkit": vlmevalkit_prompt,
    "vlmevalkit_llava": vlmevalkit_llava_prompt,
}
"""Sources: LLaVA `llava/eval/model_vqa_mmbench.py`, lmms-eval `tasks/mmbench/en_utils.py` and
`mmbench_cn.yaml`, VLMEvalKit `dataset/image_mcq.py` and `vlm/llava/llava.py`."""

_SERVER = "dev, scored by the server, which asked a GPT where matching failed"
_ENGLISH = published(64.3, 67.7, 66.1, 68.5, basic=68.8, on=_SERVER)
_CHINESE = published(58.3, 63.6, 58.9, 61.5, basic=62.1, on=_SERVER)
V1_1 = 4_876
"""Rows of version 1.1's dev split, of other questions than version 1.0's: no figure of that compares."""

SCORERS = tuple(METHODS)
_SUBMITTED = ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
NORMALISE_CN = "_normalise_cn"
_COLUMNS = tuple(name for name in (*COLUMNS, *LABELS, *OPTIONAL) if name not in ("index", "image"))


def _question(row: Row, style: str, language: str) -> Question:
    """Make a question; the row itself (without its picture) is `Question.fields`, for the scorer."""
    cells = {name: None if is_missing(row.get(name)) else str(row[name]) for name in _COLUMNS}
    row = {**row, **cells}
    return question_of(
        row,
        PROMPTS[style](row, language),
        stem=_lines(row, ()),
        max_new_tokens=1024,
        answer=cells["answer"],
        choices=choices_of(row),
        category="category",
        fields=("index", *_COLUMNS),
    )


def _tsv(source: Source, language: str) -> Path:
    upper = f"MMBench_{source.split.upper()}"
    patterns = [f"mmbench_{source.split}_cn*.tsv", f"{upper}_CN.tsv", f"{upper}_CN_V11.tsv"]
    if language == "en":
        patterns = [f"mmbench_{source.split}_2*.tsv", f"mmbench_{source.split}_en*.tsv"]
        patterns += [f"mmbench_{source.split}.tsv", f"{upper}_EN.tsv", f"{upper}_EN_V11.tsv"]
    return main_file(source, f"MMBench TSV ({language}, {source.split})", *patterns)


def _file_rows(source: Source, language: str) -> Iterator[dict[str, Any]]:
    """Read a TSV; its columns may come in any order and case (`L2-category`)."""
    path = _tsv(source, language)
    needs = (*COLUMNS, *(LABELS if source.split == "dev" else ()))
    rows = tsv_rows(path, needs, "MMBench", missing=PANDAS_NA)
    indices = [row_index(row) for row in rows]
    unique(indices, str(path))
    cells = {str(index): row["image"] for index, row in zip(indices, rows, strict=True)}
    holders = picture_holders(cells, "MMBench")
    encoded = {holder: "".join(str(cells[holder]).split()) for holder in set(holders.values())}
    # Two rows may hold the same picture twice, without a pointer.
    names = {holder: sha256(cell.encode()).hexdigest()[:16] for holder, cell in encoded.items()}
    decoded = {
        holder: picture_of(cell, f"MMBench row {holder}")
        for holder, cell in encoded.items()
        if source.with_images
    }
    for index, row in zip(indices, rows, strict=True):
        holder = holders[str(index)]
        yield {**row, "id": index, "index": index, "picture": names[holder], "image": decoded.get(holder)}


def _table_rows(source: Source, language: str) -> Iterator[dict[str, Any]]:
    needs = [name for name in COLUMNS if name != "image"] + (["answer"] if source.split == "dev" else [])
    for row in table_rows(source, language, source.split, needs):
        lowered = {name if name in LETTERS else name.lower(): cell for name, cell in row.items()}
        # The rows do not name their pictures, and reading all to tell them apart takes long: rotations count
        # as one about the same picture anyway, as they are one question.
        index = row_index(lowered)
        yield {**lowered, "id": index, "index": index, "picture": None}


def score(questions: Sequence[Question], predictions: Predictions, scorer: str) -> Score:
    """Score by circular accuracy, by category and l2-category as the data names them.

    A scorer that ends in `_normalise_cn` folds Chinese punctuation before it looks for a letter; answers with
    Chinese characters are counted both ways.
    """
    rows = [question.fields for question in questions]
    given = {int(index): text for index, text in predictions.items()}
    folded = {index: normalise_cn(text) for index, text in given.items()}
    method = scorer.removesuffix(NORMALISE_CN)
    result = circular_accuracy(rows, folded if scorer.endswith(NORMALISE_CN) else given, method)
    figures = dict(result.figures)
    if any(ord(character) > 0x2E7F for text in given.values() for character in text):
        for name, answers in (("as_answered", given), ("normalise_cn", folded)):
            other = circular_accuracy(rows, answers, method)
            figures[name] = {"value": other.value, "parse_failures": other.unparsed}
    base: dict[Id, Question] = {rotations_of(question): question for question in reversed(questions)}
    return replace(
        result,
        scorer=scorer,
        figures=figures,
        categories={index: base[index].category for index in result.items},
        clusters={index: q.picture for index, q in base.items() if q.picture is not None},
    )


def export(questions: Sequence[Question], predictions: Predictions, path: Path) -> Path:
    """Write the server's Excel file; raises ValueError if openpyxl is not installed."""
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
    for question in questions:
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
    with complete(path) as draft:
        book.save(draft)
    return path


def rotations_of(question: Question) -> int:
    """Return the question that a row is a rotation of."""
    return question.fields["index"] % ROTATION


def check_rotations(questions: Sequence[Question], where: str) -> None:
    """Raise ValueError if a question of a rotated TSV lacks some of its rotations: the file has lost rows."""
    rows = Counter(map(rotations_of, questions))
    if max(rows.values(), default=1) == 1:
        return
    for question in questions:
        base = rotations_of(question)
        if rows[base] != len(question.choices):
            raise ValueError(
                f"{where}: question {base} has {rows[base]} of {len(question.choices)} rotations; "
                "the file is cut off or damaged, get it again"
            )


def _benchmark(language: str, **more: Any) -> Benchmark:
    return Benchmark(
        hub="lmms-lab/MMBench",
        rows=(partial(_table_rows, language=language), partial(_file_rows, language=language)),
        question=partial(_question, language=language),
        styles=PROMPTS,
        score=score,
        export=export,
        submission="submission.xlsx",
        unit=rotations_of,
        units={4_329: 1_164, 4_377: 1_164},
        check=check_rotations,
        **more,
    )


BENCHMARKS = (
    _benchmark(
        "en",
        name="mmbench",
        sizes={"dev": (4_329, 4_377, V1_1), "test": (6_666, 6_718)},
        scorers=SCORERS,
        published=_ENGLISH,
        of_size={4_329: _ENGLISH, 4_377: _ENGLISH},
        aliases=("mmbench-en", "mmb"),
    ),
    _benchmark(
        "cn",
        name="mmbench-cn",
        sizes={"dev": (4_329, V1_1), "test": (6_666,)},
        scorers=(*SCORERS, *(f"{name}{NORMALISE_CN}" for name in SCORERS)),
        published=_CHINESE,
        of_size={4_329: _CHINESE},
        aliases=("mmb-cn",),
    ),
)
