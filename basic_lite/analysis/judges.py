"""Which matches mean something: by what a patch shows, by a caption's words, or by a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from basic_lite.data.conversation import stop_ids
from basic_lite.data.templates import Template
from basic_lite.data.world.render import Picture
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.world import meaningful
from basic_lite.method.words import is_content, is_han, words_of


def units(text: str, content: bool = False) -> Counter[str]:
    """Count the words of a text, or its content words alone, Chinese ones character by character."""
    counts = Counter(unit for word in words_of(text) for unit in (word if is_han(word) else [word]))
    return Counter({word: n for word, n in counts.items() if is_content(word)}) if content else counts


def token_f1(text: str, reference: str) -> float:
    """Return F1 over the words of two texts, counted with repetitions; two empty texts agree."""
    ours, theirs = units(text), units(reference)
    if not ours or not theirs:
        return float(not ours and not theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def content_kept(text: str, reference: str) -> float | None:
    """Return the share of the reference's different content words that `text` has; `None` if it has none."""
    wanted = set(units(reference, content=True))
    return len(wanted & set(units(text, content=True))) / len(wanted) if wanted else None


Judge = Callable[[Sequence[int]], list[bool | None]]
"""From the `(P,)` token ids of a picture's patches to a verdict for each."""


def by_words(tokens: frozenset[int]) -> Judge:
    """Return a judge to whom these tokens mean something, on every patch."""
    return lambda ids: [token in tokens for token in ids]


def by_truth(scene: Scene, picture: Picture, texts: Sequence[str]) -> Judge:
    """Return the exact judge of the embedded world: does the token name something true of the thing there?"""
    return lambda ids: meaningful(scene, picture, [texts[token] for token in ids])


def read_words(path: Path) -> list[str]:
    """Return the words of a file with one on each line; `#` starts a comment."""
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


_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u3000": "␣", "\xa0": "␣"}


def shown(text: str) -> str:
    r"""Return a token's text with white space made visible; one space in front of a word stays away.

    `" red"` is shown as `red`, `"\n"` as `↵`, `" "` as `␣`; control characters by their code.
    """
    if len(text) > 1 and text[0] == " " and not text[1:].isspace():
        text = text[1:]
    return "".join(
        _VISIBLE.get(c, c) if c.isprintable() or c in _VISIBLE else f"<U+{ord(c):04X}>" for c in text
    )


def end_tokens(tokenizer: Any, texts: list[str], templates: list[Template]) -> frozenset[int]:
    """Return the ids that end or structure a text: special tokens, ends of answers, newlines alone."""
    ids = set(tokenizer.all_special_ids)
    for template in templates:
        ids.update(stop_ids(template, tokenizer))
    for number, text in enumerate(texts):
        if text == "<0x0A>" or (text and not text.strip("\r\n")):
            ids.add(number)
    return frozenset(number for number in ids if number < len(texts))
