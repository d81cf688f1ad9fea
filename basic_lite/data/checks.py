"""What is wrong with training data: all of it for a person, what matters for the start of a training."""

from __future__ import annotations

from collections import Counter
from functools import partial

from basic_lite.data.encoding import TextEncoder
from basic_lite.data.findings import Finding, caption_findings, in_order, text_findings
from basic_lite.data.gallery import check_pictures, known_bad_pictures
from basic_lite.data.index import Progress
from basic_lite.data.lengths import counted_findings, estimated_findings
from basic_lite.data.pictures import Depth
from basic_lite.data.readers import Rows
from basic_lite.data.samples import STILL_TRAINS
from basic_lite.data.texts import shown


def check_data(
    rows: Rows,
    *,
    pictures: Depth | None = "decode",
    max_length: int = 2048,
    tokens_per_image: int = 576,
    stage: int = 2,
    encoder: TextEncoder | None = None,
    workers: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> list[Finding]:
    """Check every row's text, length and pictures.

    Args:
        rows: from `open_rows`.
        pictures: how closely to look at them; `None` for not at all.
        max_length: most tokens of a row, images included.
        tokens_per_image: tokens that an image takes.
        stage: 1 takes only rows of one image and its caption.
        encoder: counts tokens, with the two limits above; `None` estimates them.
        workers: processes to do it.
        progress: told what is being done, how much of it is done, and of how much.

    Returns:
        The findings, by row.
    """
    found = _stage_findings(rows, stage)
    if encoder is None:
        found += estimated_findings(rows, max_length=max_length, tokens_per_image=tokens_per_image)
    else:
        found += counted_findings(rows, encoder, workers=workers, progress=partial(progress, "tokens"))
    if pictures is not None:
        looked = partial(progress, "images")
        found += check_pictures(rows, depth=pictures, workers=workers, progress=looked)
    return in_order(found)


def check_rows(
    rows: Rows,
    stage: int = 2,
    *,
    images: int | None = 2000,
    decoded: int | None = 100,
) -> list[Finding]:
    """Check every row's text, and a sample of the pictures; a few seconds, for the start of every training.

    What `basic-lite data check` found about the pictures earlier counts too. Lengths are not judged, as they
    are estimates here: a row whose answers are all cut off is found, and replaced, when it is read.

    Args:
        rows: from `open_rows`.
        stage: 1 takes only rows of one image and its caption.
        images: how many pictures are looked for, spread evenly over the rows; `None` means all.
        decoded: how many of them are decoded; `None` means all.

    Returns:
        What keeps rows from training, by row. Repeated ids, long rows and wrong suffixes do not.
    """
    found = _stage_findings(rows, stage)
    found += check_pictures(rows, depth="present", sample=images)
    found += check_pictures(rows, depth="decode", sample=decoded)
    found += known_bad_pictures(rows)
    return in_order(finding for finding in found if finding.code not in STILL_TRAINS)


def _stage_findings(rows: Rows, stage: int) -> list[Finding]:
    return text_findings(rows) + (caption_findings(rows) if stage == 1 else [])


def check_budget(rows: Rows, budget: float = 0.005, stage: int = 2) -> None:
    """See that not too many rows are left out.

    Args:
        rows: from `open_rows`, with the `faults` that were found.
        budget: largest share of rows that may be left out.
        stage: that the rows are for.

    Raises:
        ValueError: If more rows are bad than the budget allows; counts them by code and names the first.
    """
    bad, most = int((~rows.usable).sum()), budget * len(rows)
    if bad <= most and bad < len(rows):
        return
    faults = in_order([*text_findings(rows), *rows.faults])
    faults = [fault for fault in faults if fault.code not in STILL_TRAINS]
    counts = Counter({fault.row: fault.code for fault in reversed(faults)}.values()).most_common()
    first = "; ".join(f"row {f.row} (id {shown(f.id)}): {f.code}, {f.detail}" for f in faults[:3])
    raise ValueError(
        f"{bad:,} of {len(rows):,} rows of {rows.path} cannot be trained on "
        f"({', '.join(f'{count} {code}' for code, count in counts)}), more than the allowed {budget:.1%}: "
        f"{first}{'; ...' if len(faults) > 3 else ''}. "
        f"Repair what `basic-lite data check {rows.path} --stage {stage}` lists, or allow more"
    )
