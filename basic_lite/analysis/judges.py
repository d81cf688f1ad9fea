"""Which matches mean something: by what a patch shows, by a caption's words, or by a list.

A judge is given the tokens of one picture, patch by patch, and says for each `True`, `False`, or `None` where
there is nothing to be right about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from basic_lite.data.conversation import stop_ids
from basic_lite.data.templates import Template
from basic_lite.data.world.render import Picture
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.world import meaningful

# Words of a caption: which of them say something of a picture, and how much two texts share.

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
    """Say whether a text holds a Chinese character."""
    return _IS_HAN.search(text) is not None


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; a run of Chinese characters is one."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def is_content(word: str) -> bool:
    """Say whether a word, or a token's text, may say something of a picture: no grammar, no punctuation."""
    word = word.strip().lower()
    if is_han(word):
        return any(is_han(c) and c not in FUNCTION_CHARACTERS for c in word)
    return bool(word) and word not in FUNCTION_WORDS and any(c.isalnum() for c in word)


def units(text: str, content: bool = False) -> Counter[str]:
    """Count the words of a text, Chinese ones character by character.

    Args:
        text: any.
        content: only words that say something.
    """
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
        tokens: set[int] = set()
        for word in {word for word in words if is_content(word)}:
            tokens.update(self._named.get(word, ()))
            for written in (word, f" {word}"):
                pieces = self._tokenizer(written, add_special_tokens=False).input_ids
                tokens.update(piece for piece in pieces if self._counts(self._texts[piece]))
        return frozenset(tokens)

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


# Vocabulary tokens as text: what each stands for, how it is shown, and which end a text or a line.

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u3000": "␣", "\xa0": "␣"}


def token_texts(tokenizer: Any, rows: int) -> list[str]:
    """Return the text of every row of the embedding table.

    A leading space is kept, where the vocabulary has one. A token that is no whole character is shown by its
    bytes, as in `<0xE280>`; a row that no token has as `<row 32000>`.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        rows: `V`, rows of the table; may be more than the tokenizer has tokens.
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
    """Return the ids that end or structure a text and say nothing of a picture.

    All special tokens, what ends an answer in one of `templates`, and tokens that are newlines alone, be it
    as a byte token.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        texts: of `token_texts`.
        templates: whose ends count.
    """
    ids = set(tokenizer.all_special_ids)
    for template in templates:
        ids.update(stop_ids(template, tokenizer))
    for number, text in enumerate(texts):
        if text == "<0x0A>" or (text and not text.strip("\r\n")):
            ids.add(number)
    return frozenset(number for number in ids if number < len(texts))
