"""MMBench's circular accuracy: a question counts only if every rotation of its options is answered rightly.

Source: VLMEvalKit `dataset/utils/multiple_choice.py` (`mcq_circular_eval`, `report_acc`) and lmms-eval
`tasks/mmbench/mmbench_evals.py`; both agree on the grouping and differ in the extraction alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from basic_lite.scoring.options import normalise_cn, resolve_option

ROTATION = 1_000_000
"""Rotation k of question i has index `i + k * ROTATION`."""

LETTERS = "ABCD"


@dataclass(frozen=True)
class CircularAccuracy:
    """What MMBench reports, all shares in [0, 1].

    Attributes:
        overall: Circular accuracy, the published number.
        vanilla: Accuracy over the unrotated rows.
        all_rows: Accuracy over all rows.
        per_category: Circular accuracy by `category`, as the file names them.
        per_l2_category: The same by `l2-category`.
        histogram: How often each letter was extracted, over all rows.
        n_unparsed: Rows without an extracted letter.
        n_missing: Rows without a prediction; they count as wrong and are among `n_unparsed`.
        text_share: Share of all rows that only the option's words resolved.
        n_questions: Groups of rotations.
        n_rows: Rows.
        hits: Question (index of the unrotated row) -> right in every rotation.
        row_hits: Row index -> right.
    """

    overall: float
    vanilla: float
    all_rows: float
    per_category: dict[str, float]
    per_l2_category: dict[str, float]
    histogram: dict[str, int]
    n_unparsed: int
    n_missing: int
    text_share: float
    n_questions: int
    n_rows: int
    hits: dict[int, bool]
    row_hits: dict[int, bool]

    def __getitem__(self, name: str) -> Any:
        """Return a figure by its name, as `results.json` holds it."""
        return getattr(self, name)


def is_missing(value: object) -> bool:
    """Return whether a cell is empty as LLaVA sees it: null, NaN, or "nan" / "none" in any case.

    Source: `is_none` in LLaVA `llava/eval/model_vqa_mmbench.py`. An empty string is an empty cell of a TSV.
    """
    if value is None or value != value:
        return True
    return isinstance(value, str) and value.lower() in ("nan", "none", "")


def choices_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Return letter -> text of the options that a row has (a gap is skipped; LLaVA's prompt stops at it)."""
    return {letter: str(row[letter]) for letter in LETTERS if not is_missing(row.get(letter))}


def _mean(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def _by(name: str, base: Mapping[int, Mapping[str, Any]], hits: Mapping[int, bool]) -> dict[str, float]:
    """Average hits by a column of the unrotated rows."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for question, row in base.items():
        if not is_missing(row.get(name)):
            groups[str(row[name])].append(hits[question])
    return {category: _mean(groups[category]) for category in sorted(groups)}


def circular_accuracy(
    rows: Iterable[Mapping[str, Any]], predictions: Mapping[int, str], method: str, *, normalise: bool = False
) -> CircularAccuracy:
    """Score MMBench rows.

    Args:
        rows: One mapping per row with `index`, `A` to `D`, `answer`, `category` and `l2-category`.
        predictions: Row index -> the model's answer.
        method: How a letter is read from an answer, see `extract_option`.
        normalise: Fold Chinese punctuation and full-width letters first (`normalise_cn`).

    Returns:
        The accuracies; no answer is guessed, so an unresolved row makes its question wrong.

    Raises:
        ValueError: If there are no rows, an index comes twice, or a row has no labelled answer.
    """
    by_index: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        index = int(row["index"])
        if index in by_index:
            raise ValueError(f"MMBench row index {index} comes twice: remove the duplicate row.")
        if is_missing(row.get("answer")):
            raise ValueError(
                f"MMBench row {index} has no answer: score a labelled split, or export a submission."
            )
        by_index[index] = row
    if not by_index:
        raise ValueError("No MMBench rows to score: the file or the limit left nothing.")

    histogram: Counter[str] = Counter()
    row_hits: dict[int, bool] = {}
    n_missing = by_text = 0
    for index, row in by_index.items():
        if index not in predictions:
            n_missing += 1
            row_hits[index] = False
            continue
        prediction = str(predictions[index])
        letter, stage = resolve_option(
            normalise_cn(prediction) if normalise else prediction, choices_of(row), method
        )
        if letter is not None:
            histogram[letter] += 1
        by_text += stage == "text"
        row_hits[index] = letter == row["answer"]

    groups: dict[int, list[bool]] = defaultdict(list)
    for index, hit in row_hits.items():
        groups[index % ROTATION].append(hit)
    hits = {question: all(group) for question, group in groups.items()}
    base = {question: by_index.get(question, {}) for question in hits}
    for index, row in by_index.items():
        base[index % ROTATION] = base[index % ROTATION] or row  # a limit may have cut the unrotated row off
    return CircularAccuracy(
        overall=_mean(hits.values()),
        vanilla=_mean(hit for index, hit in row_hits.items() if index < ROTATION),
        all_rows=_mean(row_hits.values()),
        per_category=_by("category", base, hits),
        per_l2_category=_by("l2-category", base, hits),
        histogram=dict(sorted(histogram.items())),
        n_unparsed=len(by_index) - sum(histogram.values()),
        n_missing=n_missing,
        text_share=by_text / len(by_index),
        n_questions=len(hits),
        n_rows=len(by_index),
        hits=hits,
        row_hits=row_hits,
    )
