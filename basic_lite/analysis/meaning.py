"""Which matches mean something: by what a patch shows, by a caption's words, or by a list.

A judge looks at the tokens of one picture, patch by patch, and says for each `True`, `False`, or `None` where
there is nothing to be right about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from basic_lite.analysis.words import is_content, is_han, words_of
from basic_lite.demo.inspection import meaningful
from basic_lite.demo.render import Picture
from basic_lite.demo.scenes import Scene

Judge = Callable[[Sequence[int]], list[bool | None]]
"""From the `(P,)` token ids of a picture's patches to a verdict for each."""

SHORTEST_PIECE: int = 3
"""Letters that a piece of a longer word must have to count: "s" and "er" are pieces of everything."""


class WordTokens:
    """Finds the tokens that stand for words, of one tokenizer.

    A token stands for a word if its text is the word, whatever its case and whether a space stands in front
    of it, or if it is one of the pieces that the tokenizer writes the word in, with or without a leading
    space, and has at least three letters. Chinese has no spaces: there every piece of the run counts that is
    not grammar alone. Function words and punctuation never count.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        """Index the vocabulary.

        Args:
            tokenizer: a Hugging Face fast tokenizer.
            texts: of `token_texts`.
        """
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
                found.update(piece for piece in pieces if self._counts(self._texts[piece]))
        return frozenset(found)

    @staticmethod
    def _counts(piece: str) -> bool:
        letters = sum(c.isalnum() for c in piece)
        return (
            is_content(piece) and not piece.startswith("<") and (is_han(piece) or letters >= SHORTEST_PIECE)
        )


def by_words(tokens: frozenset[int]) -> Judge:
    """Return a judge to whom these tokens mean something, on every patch."""
    return lambda ids: [token in tokens for token in ids]


def by_truth(scene: Scene, picture: Picture, texts: Sequence[str]) -> Judge:
    """Return the exact judge of the embedded world: does the token name something true of the thing there?"""
    return lambda ids: meaningful(scene, picture, [texts[token] for token in ids])


def read_words(path: Path) -> list[str]:
    """Return the words of a file with one on each line; `#` starts a comment.

    Raises:
        ValueError: If it cannot be read or holds no word that may say something of a picture.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--words {path} cannot be read as a text file, one word per line: {error}"
        ) from error
    words = [word for line in lines for word in words_of(line.partition("#")[0])]
    if not any(map(is_content, words)):
        raise ValueError(f"--words {path} holds no word that says something of a picture; one word per line")
    return words
