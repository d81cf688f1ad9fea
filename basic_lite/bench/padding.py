"""How much of a batch is padding: for rows of LLaVA-665k's shape, or for one's own."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from basic_lite.data.batches import batch_order
from basic_lite.data.conversation import choose_template
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.lengths import WordCounter
from basic_lite.data.readers import Rows, open_rows
from basic_lite.data.rows import MAX_LENGTH, TOKENS_PER_IMAGE, RowFault
from basic_lite.files import write_json

SIZES: tuple[int, ...] = (2, 4, 16)
"""Rows per batch that are compared."""

STEP: int = 128
"""Rows per optimizer step, LLaVA's in stage 2."""

WORDS = (
    "the a of on in to with and is are there what which how many color red blue left right man woman "
    "person holding standing near table street image picture shows likely because shortest answer "
    "question using single word phrase train bus kitchen counter small large two three window sign "
    "building wooden background foreground visible café "
).split()

SOURCES = (  # share of the mix, exchanges, words of an answer, folder; None: text only
    (0.237, (1, 4), (12, 160), "coco/train2017"),
    (0.124, (8, 12), (1, 3), "coco/train2017"),
    (0.108, (8, 20), (1, 3), "gqa/images"),
    (0.120, (3, 6), (1, 6), "ocr_vqa/images"),
    (0.133, (1, 3), (1, 40), "textvqa/train_images"),
    (0.203, (5, 15), (3, 12), "vg/VG_100K_2"),
    (0.075, (1, 5), (60, 150), None),
)


def mix_rows(count: int, pictures: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield rows of the shape of LLaVA-1.5's 665k instruction rows; their words mean nothing.

    Their image paths name `pictures` different files; `seed` is that of everything.
    """
    rng = random.Random(seed)
    weights = [share for share, *_ in SOURCES]
    for number in range(count):
        _, exchanges, words, folder = rng.choices(SOURCES, weights)[0]
        row: dict[str, Any] = {"id": f"{number:09d}"}
        if folder:
            row["image"] = f"{folder}/{rng.randrange(pictures):09d}.jpg"
        else:
            row["model"] = ""
        turns = []
        for place in range(rng.randint(*exchanges)):
            question = text(rng, rng.randint(6, 18)) + "?"
            if not place and folder:
                question = rng.choice((f"<image>\n{question}", f"{question}\n<image>"))
            turns += [
                {"from": "human", "value": question},
                {"from": "gpt", "value": text(rng, rng.randint(*words))},
            ]
        if not folder and rng.random() < 0.1:
            turns.insert(0, {"from": "gpt", "value": "A turn that LLaVA drops."})
        row["conversations"] = turns
        yield row


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def padding_share(
    lengths: np.ndarray, known: np.ndarray, pictured: np.ndarray, rows: int, *, group: bool = True
) -> float:
    """Return which share of an epoch's token positions is padding.

    Args:
        lengths: `(rows,)` tokens of each row.
        known: `(rows,)` what the order is made by.
        pictured: `(rows,)` whether the row has an image.
        rows: per batch, in optimizer steps of `STEP` rows.
        group: rows of similar length together, as stage 2 puts them; without, at random.
    """
    order = batch_order(
        known, pictured, batch_size=rows, seed=0, epoch=0, group=group, accumulation=max(STEP // rows, 1)
    )
    return 1 - float(lengths.sum()) / sum(int(lengths[batch].max()) * len(batch) for batch in order)


@dataclass(frozen=True)
class Padding:
    """Which share of a batch is padding, by rows per batch."""

    rows: int  # how many were looked at
    made: bool  # of LLaVA-665k's shape, without data
    counted: bool  # by a tokenizer; otherwise lengths are estimated, and taken as exact
    grouped: dict[int, float]  # as stage 2 puts them together
    mixed: dict[int, float]  # in random order

    def lines(self) -> list[str]:
        by = "the tokenizer's own lengths" if self.counted else "lengths estimated from letters"
        of = f"{self.rows:,} rows{' of the shape of LLaVA-665k' if self.made else ''}"
        lines = [f"        padding in batches of {', '.join(map(str, self.grouped))} rows ({of}, {by}):"]
        orders = ("put together by length, as stage 2 does", "at random")
        for shares, order in zip((self.grouped, self.mixed), orders, strict=True):
            lines.append(f"        {'  '.join(f'{share:6.2%}' for share in shares.values())}  {order}")
        return lines


def measure_padding(
    annotations: Path | None = None,  # as for `open_rows`; `None` makes rows of LLaVA-665k's shape
    *,
    tokenizer: Any = None,
    tokens_per_image: int = TOKENS_PER_IMAGE,
    most: int = 4096,  # rows to look at, spread evenly
) -> Padding:
    """Put rows together as a stage-2 training would, and measure what is padding.

    With a tokenizer, rows are ordered by its words, as in a training, and measured by its exact lengths;
    without, lengths are estimated from letters and taken as exact. Longer rows than a training takes are cut.
    Raises ValueError if the data cannot be opened.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "rows.json"
        if annotations is None:
            write_json(made, list(mix_rows(most, 1000)))
        rows = open_rows(annotations or made)
        usable = np.flatnonzero(rows.usable)
        chosen = usable[np.linspace(0, len(usable) - 1, min(most, len(usable))).astype(np.int64)]
        lengths = known = rows.batch_lengths(tokens_per_image, MAX_LENGTH)[chosen]
        if tokenizer is not None:
            template = choose_template(tokenizer)
            encoder = TextEncoder(template, tokenizer, len(tokenizer), tokens_per_image, MAX_LENGTH)
            chosen, lengths, known = _counted(rows, chosen, encoder)
        given = lengths, known, rows.has_image[chosen]
        grouped, mixed = ({n: padding_share(*given, n, group=g) for n in SIZES} for g in (True, False))
        return Padding(len(chosen), annotations is None, tokenizer is not None, grouped, mixed)


def _counted(
    rows: Rows, chosen: np.ndarray, encoder: TextEncoder
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows that can be encoded, their exact lengths, and those that a training goes by."""
    count, kept = WordCounter(encoder), []
    for row in chosen.tolist():
        try:
            sample = rows[row]
            kept.append((row, len(encoder(sample).input_ids), count(sample.turns, len(sample.images))))
        except RowFault:
            continue
    table = np.array(kept, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
