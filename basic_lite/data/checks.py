"""What a training must know of its data before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from basic_lite.data.findings import Finding, in_order, text_findings
from basic_lite.data.gallery import check_pictures, known_bad_pictures
from basic_lite.data.readers import Rows
from basic_lite.data.samples import CODES, STILL_TRAINS


def check_rows(
    rows: Rows,
    *,
    images: int | None = 2000,
    decoded: int | None = 100,
    max_length: int | None = 2048,
    tokens_per_image: int = 576,
) -> list[Finding]:
    """Check every row's text, and a sample of the pictures; a few seconds, for the start of every training.

    What `basic-lite data check` found about the pictures earlier counts too.

    Args:
        rows: from `open_rows`.
        images: how many pictures are looked for, spread evenly over the rows; `None` means all.
        decoded: how many of them are decoded; `None` means all.
        max_length: most tokens of a row, images included; `None` for no limit.
        tokens_per_image: tokens that an image takes.

    Returns:
        What keeps rows from training, by row. Repeated ids, long rows and wrong suffixes do not.
    """
    found = text_findings(rows, max_length=max_length, tokens_per_image=tokens_per_image)
    found += check_pictures(rows, depth="present", sample=images)
    found += check_pictures(rows, depth="decode", sample=decoded)
    found += known_bad_pictures(rows)
    return in_order(finding for finding in found if finding.code not in STILL_TRAINS)


def usable_rows(rows: Rows, findings: Sequence[Finding] = (), *, budget: float = 0.005) -> np.ndarray:
    """Say which rows training may draw from.

    Args:
        rows: from `open_rows`.
        findings: of `check_pictures`, `known_bad_pictures` or `sampled_findings`; those of the text are
        known.
        budget: largest share of rows that may be left out.

    Returns:
        `(rows,)` bool.

    Raises:
        ValueError: If more rows are bad than the budget allows; counts them by code.
    """
    usable = rows.index.fault == 0
    codes = Counter(CODES[code - 1] for code in rows.index.fault[~usable].tolist())
    for finding in findings:
        if finding.code not in STILL_TRAINS and usable[finding.row]:
            usable[finding.row] = False
            codes[finding.code] += 1
    bad = len(usable) - int(usable.sum())
    if bad > budget * len(usable) or bad == len(usable):
        counts = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        raise ValueError(
            f"{bad:,} of {len(usable):,} rows of {rows.path} cannot be trained on ({counts}), more than the "
            f"allowed {budget:.1%}: repair what `basic-lite data check {rows.path}` lists, or allow more"
        )
    return usable
