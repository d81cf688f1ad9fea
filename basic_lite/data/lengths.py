"""How many tokens each row takes with one LLM, for batches of rows of similar length.

An estimate from letters errs by source and language, from row to row by 7 %, which shows as padding. To
tokenise every row exactly costs as much as training's own tokenising (1,100 rows a second on one core,
Vicuna's tokenizer, rows of LLaVA-665k's shape). So each different word is tokenised once, and a row is the
sum of its words: right to a hundredth, at 6,500 rows a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial

import numpy as np

from basic_lite.data.conversation import IMAGE, encode
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.index import FORMAT, no_progress
from basic_lite.data.readers import Rows
from basic_lite.data.rows import RowFault
from basic_lite.data.templates import template_of
from basic_lite.data.tokenise import backend_of, specification
from basic_lite.data.workers import mapped
from basic_lite.files import load_table, save_table, table_places

CHUNK: int = 8192
"""Rows that one process counts at a time."""

LONGEST_WORD: int = 24
"""Letters of the longest word whose count is kept: a text without spaces is one word, hardly seen again."""

COLUMNS: dict[str, type[np.generic]] = {"tokens": np.int32}


class WordCounter:
    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.backend = encoder, backend_of(encoder.tokenizer)
        self.known: dict[str, int] = {}
        self.before = self._tokens("a")
        self.caption = template_of(encoder.template).caption
        # The tokens that a template writes around the texts of the first exchange, and of each further one
        exchange = [("user", IMAGE if self.caption else "a"), ("assistant", "a")]
        once, twice = self._whole(exchange), 0 if self.caption else self._whole(exchange * 2)
        self.first, self.more = once - 2, max(twice - once - 2, 0)

    def __call__(self, turns: list[tuple[str, str]], images: int) -> int:
        """Return the tokens of a row in normal form, cut off at the encoder's limit."""
        texts = [text for role, text in turns if role == "assistant" or not self.caption]
        tokens = images * self.encoder.tokens_per_image + self.first + self.more * (len(turns) // 2 - 1)
        for text in texts:
            text = text.replace(IMAGE, "") if IMAGE in text else text
            tokens += sum(map(self._word, filter(None, text.split(" "))))  # a newline belongs to its words
        return tokens if self.encoder.max_length is None else min(tokens, self.encoder.max_length)

    def _word(self, word: str) -> int:
        count = self.known.get(word)
        if count is None:
            count = self._tokens(f"a {word}") - self.before
            if len(word) <= LONGEST_WORD:
                self.known[word] = count
        return count

    def _tokens(self, text: str) -> int:
        return len(self.backend.encode(text, add_special_tokens=False).ids)

    def _whole(self, turns: list[tuple[str, str]]) -> int:
        e = self.encoder
        whole = encode(e.template, e.tokenizer, turns, image_token_id=e.image_token_id, tokens_per_image=1)
        return len(whole.input_ids)


def _counts(rows: Rows, count: WordCounter, numbers: range) -> list[int]:
    counts = []
    for number in numbers:
        try:
            sample = rows[number]
            counts.append(count(sample.turns, len(sample.images)))
        except RowFault:
            counts.append(0)  # no batch has it
    return counts


def token_lengths(
    rows: Rows,
    encoder: TextEncoder,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = no_progress,  # called with the rows done and their number
) -> np.ndarray:
    """Count the tokens that each row takes in a batch, images included.

    Returns `(rows,)` int32, right to about a hundredth; 0 for rows that cannot be trained on. The counts are
    kept beside the annotations.
    """
    if rows.parts[0] is not rows:  # each keeps its own
        given = {"workers": workers, "progress": progress}
        return np.concatenate([token_lengths(part, encoder, **given) for part in rows.parts])
    content = json.dumps(specification(backend_of(encoder.tokenizer)), sort_keys=True)
    tokenizer = hashlib.sha256(content.encode()).hexdigest()
    key = {"format": f"2 {FORMAT}", "sha256": rows.sha256, "tokenizer": tokenizer}
    key["template"] = repr((template_of(encoder.template), encoder.tokens_per_image, encoder.max_length))
    places = table_places(rows.path, "lengths")
    kept = load_table(places, key, COLUMNS)
    if kept is not None and len(kept[1]["tokens"]) == len(rows):
        return kept[1]["tokens"]
    parts = [range(at, min(at + CHUNK, len(rows))) for at in range(0, len(rows), CHUNK)]
    count = partial(_counts, rows, WordCounter(encoder))
    tokens = np.zeros(len(rows), np.int32)
    for part, counts in zip(parts, mapped(count, parts, workers), strict=True):
        tokens[part.start : part.stop] = counts
        progress(part.stop, len(rows))
    save_table(places, key, {"tokens": tokens})
    return tokens
