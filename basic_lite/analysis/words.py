"""Words of a caption: which of them say something of a picture, and how much two texts share."""

from __future__ import annotations

import re
from collections import Counter

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
    found: Counter[str] = Counter()
    for word in words_of(text):
        found.update(list(word) if is_han(word) else [word])
    return Counter({word: n for word, n in found.items() if is_content(word)}) if content else found


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
