"""Words of a caption, and which rows of a vocabulary stand for them: what a nearest token names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

FUNCTION_WORDS: frozenset[str] = frozenset(
    """
    a about above across after again against all along also am among an and another any are aren't around as
    at away back be because been before behind being below beneath beside besides between beyond both but by
    can can't cannot could couldn't did didn't do does doesn't doing don't down during each either else etc
    even ever every few for from further had hadn't has hasn't have haven't having he he's her here hers
    herself him himself his how i i'm if in inside into is isn't it it's its itself just least less let like
    many may me might more most much must my myself near neither no nor not now of off on once one's only
    onto or other others ought our ours ourselves out outside over own per quite rather really s same shall
    she she's should shouldn't since so some still such t than that that's the their theirs them themselves
    then there there's these they they're this those though through thus to together too toward towards
    under until up upon us very was wasn't we were weren't what what's when where which while who whom whose
    why will with within without won't would wouldn't yet you your yours yourself yourselves
    """.split()
)
"""English words of grammar; they are true of every picture."""

FUNCTION_CHARACTERS: frozenset[str] = frozenset(
    "的地得了着过在是有和与及或也都就而且但这那其之个位只张条把被让对从到于以为中里上下吗呢吧很"
)
"""Chinese characters of grammar, counters and places; a token of them alone says nothing."""

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]+|[^\W_{_HAN}]+(?:['’-][^\W_{_HAN}]+)*")
_IS_HAN = re.compile(rf"[{_HAN}]")


def is_han(text: str) -> bool:
    """Return whether a text holds a Chinese character."""
    return _IS_HAN.search(text) is not None


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; a run of Chinese characters is one."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def is_content(word: str) -> bool:
    """Whether a word, or a token's text, may say something of a picture: no grammar, no punctuation."""
    word = word.strip().lower()
    if is_han(word):
        return any(is_han(c) and c not in FUNCTION_CHARACTERS for c in word)
    return bool(word) and word not in FUNCTION_WORDS and any(c.isalnum() for c in word)


SHORTEST_PIECE: int = 3
"""Letters that a piece of a longer word must have to count: "s" and "er" are pieces of everything."""


class WordTokens:
    """Finds the tokens that stand for words, of one fast tokenizer; `texts` are its `token_texts`.

    A token stands for a word if its text is the word, whatever its case and whether a space stands in front
    of it, or if it is one of the pieces that the tokenizer writes the word in, with or without a leading
    space, and has at least three letters. Chinese has no spaces: there every piece of the run counts that is
    not grammar alone. Function words and punctuation never count.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        self._named: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            self._named.setdefault(text.strip().lower(), []).append(number)

    def of(self, words: Iterable[str]) -> frozenset[int]:
        """Return the ids of all tokens that stand for one of the words."""
        found: set[int] = set()
        for word in {word for word in words if is_content(word)}:
            found.update(self._named.get(word, ()))
            for written in (word, f" {word}"):
                pieces = self._tokenizer(written, add_special_tokens=False).input_ids
                found.update(piece for piece in pieces if self._counts(self._texts[int(piece)]))
        return frozenset(found)

    @staticmethod
    def _counts(piece: str) -> bool:
        letters = sum(c.isalnum() for c in piece)
        return (
            is_content(piece) and not piece.startswith("<") and (is_han(piece) or letters >= SHORTEST_PIECE)
        )


def token_texts(tokenizer: Any, rows: int) -> list[str]:
    """Return the text of every row of the embedding table, which may have more than the tokenizer has tokens.

    A leading space is kept, where the vocabulary has one. A token that is no whole character is shown by its
    bytes, as in `<0xE280>`; a row that no token has as `<row 32000>`.
    """
    known = tokenizer.convert_ids_to_tokens(list(range(min(rows, len(tokenizer)))))
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}
    byte_level = "ByteLevel" in tokenizer.backend_tokenizer.to_str()
    special = set(tokenizer.get_added_vocab())
    return [
        f"<row {row}>"
        if row >= len(known) or known[row] is None
        else _text(known[row], bytes_of if byte_level and known[row] not in special else None)
        for row in range(rows)
    ]


def _text(token: str, bytes_of: dict[str, int] | None) -> str:
    if bytes_of is None or not all(character in bytes_of for character in token):
        return token.replace("▁", " ")
    data = bytes(bytes_of[character] for character in token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"<0x{data.hex().upper()}>"
