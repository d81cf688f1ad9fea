"""Captions and questions as sentences, in English and Chinese.

Sentences are filled templates. `caption` says everything about a scene or leaves attributes out, `ask` words
a `Query`, `choose` words it as a multiple-choice question the way MMBench does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from basic_lite.data.world.lexicon import (
    COLOUR_ZH,
    NUMBER_EN,
    NUMBER_ZH,
    PLACE_ZH,
    SHAPE_ZH,
    SIZE_EN,
    SIZE_ZH,
    Language,
    word,
)
from basic_lite.data.world.questions import Noun, Query
from basic_lite.data.world.scenes import Scene, Thing

LETTER_PROMPT = {
    "en": "Answer with the option's letter from the given choices directly.",
    "zh": "请直接回答选项字母。",
}
"""LLaVA's suffixes of MMBench questions."""

DESCRIBE = {
    "en": (
        "Describe the picture.",
        "What does the picture show?",
        "What do you see?",
        "Tell me what is in the picture.",
    ),
    "zh": ("请描述这张图片。", "图中有什么？", "这张图片里有哪些物体？", "你看到了什么？"),
}

_AT: dict[str, tuple[str, ...]] = {
    "top left": ("at the top left", "in the top left corner", "in the upper left"),
    "top": ("at the top", "at the top in the middle"),
    "top right": ("at the top right", "in the top right corner", "in the upper right"),
    "left": ("on the left", "at the left"),
    "centre": ("in the centre", "in the middle"),
    "right": ("on the right", "at the right"),
    "bottom left": ("at the bottom left", "in the bottom left corner", "in the lower left"),
    "bottom": ("at the bottom", "at the bottom in the middle"),
    "bottom right": ("at the bottom right", "in the bottom right corner", "in the lower right"),
}

_ASK = {
    "en": {
        "colour": (
            "What colour is {0}?",
            "Which colour does {0} have?",
            "Tell me the colour of {0}.",
            "What is the colour of {0}?",
        ),
        "shape": (
            "What shape is {0}?",
            "Which shape does {0} have?",
            "Tell me the shape of {0}.",
            "What is the shape of {0}?",
        ),
        "place": (
            "Where is {0}?",
            "In which place is {0}?",
            "Where can you find {0}?",
            "Tell me where {0} is.",
        ),
        "count": ("How many {0} are there?", "How many {0} do you see?", "Count the {0}."),
        "count all": ("How many objects are there?", "How many objects do you see?", "Count the objects."),
        "which left": ("Is {0} left or right of {1}?", "Is {0} to the left or to the right of {1}?"),
        "which above": ("Is {0} above or below {1}?", "Seen from {1}, is {0} above or below?"),
        "is left": ("Is {0} left of {1}?", "Is {0} to the left of {1}?"),
        "is right": ("Is {0} right of {1}?", "Is {0} to the right of {1}?"),
        "is above": ("Is {0} above {1}?", "Is {0} higher than {1}?"),
        "is below": ("Is {0} below {1}?", "Is {0} lower than {1}?"),
        "existence": ("Is there {0}?", "Do you see {0}?", "Does the picture show {0}?", "Can you find {0}?"),
        "which large": ("Which is larger, {0} or {1}?", "Which one is big, {0} or {1}?"),
        "which small": ("Which is smaller, {0} or {1}?", "Which one is little, {0} or {1}?"),
        "same colour": ("Do {0} and {1} have the same colour?", "Are {0} and {1} of the same colour?"),
        "same shape": ("Do {0} and {1} have the same shape?", "Are {0} and {1} of the same shape?"),
        "more": ("Are there more {0} than {1}?", "Do you see more {0} than {1}?"),
    },
    "zh": {
        "colour": ("{0}是什么颜色？", "{0}的颜色是什么？", "请问{0}是哪种颜色？"),
        "shape": ("{0}是什么形状？", "{0}的形状是什么？", "请问{0}是哪种形状？"),
        "place": ("{0}在哪里？", "{0}的位置在哪里？", "请问{0}在什么地方？"),
        "count": ("有几个{0}？", "图中有多少个{0}？", "请数一数{0}。"),
        "count all": ("有几个物体？", "图中有多少个物体？", "请数一数物体。"),
        "which left": ("{0}在{1}的左边还是右边？", "从{1}看，{0}在左边还是右边？"),
        "which above": ("{0}在{1}的上面还是下面？", "从{1}看，{0}在上面还是下面？"),
        "is left": ("{0}在{1}的左边吗？", "{0}是不是在{1}的左边？"),
        "is right": ("{0}在{1}的右边吗？", "{0}是不是在{1}的右边？"),
        "is above": ("{0}在{1}的上面吗？", "{0}是不是在{1}的上面？"),
        "is below": ("{0}在{1}的下面吗？", "{0}是不是在{1}的下面？"),
        "existence": ("是不是有{0}？", "图中是不是有{0}？", "你看到的是不是有{0}？"),
        "which large": ("{0}和{1}，哪个更大？", "{0}和{1}哪一个大？"),
        "which small": ("{0}和{1}，哪个更小？", "{0}和{1}哪一个小？"),
        "same colour": ("{0}和{1}的颜色是不是相同？", "{0}和{1}是不是同一种颜色？"),
        "same shape": ("{0}和{1}的形状是不是相同？", "{0}和{1}是不是同一种形状？"),
        "more": ("{0}是不是比{1}多？", "图中{0}的数量是不是比{1}多？"),
    },
}


@dataclass(frozen=True)
class Ask:
    """A question in words."""

    kind: str  # of its query
    text: str
    answer: str  # the short answer
    options: tuple[str, ...] = ()  # to choose from, the right one among them; empty for an open question


def caption(scene: Scene, language: Language, rng: random.Random, full: bool = True) -> str:
    """Describe a scene in one or several sentences; see `caption_pieces`."""
    return "".join(text for text, _ in caption_pieces(scene, language, rng, full))


def caption_pieces(
    scene: Scene, language: Language, rng: random.Random, full: bool = True, shuffle: bool = True
) -> list[tuple[str, Thing | None]]:
    """Return a caption in pieces: joined they are its text, and each thing is described in one piece.

    Without `full` sizes or places may be left out; without `shuffle` the things come in the scene's own
    order.
    """
    things = list(scene.things)
    if shuffle:
        rng.shuffle(things)
    size, place = (True, True) if full else rng.choice(((True, True), (False, True), (True, False)))
    write = _caption_en if language == "en" else _caption_zh
    return write(things, size, place, rng)


def _caption_en(
    things: list[Thing], size: bool, place: bool, rng: random.Random
) -> list[tuple[str, Thing | None]]:
    what, where = [], []
    for thing in things:
        words = [rng.choice(SIZE_EN[thing.size])] if size else []
        what.append(_article(" ".join([*words, thing.colour, thing.shape])))
        where.append(rng.choice(_AT[thing.place]) if place else "")
    both = [f"{noun} {spot}".strip() for noun, spot in zip(what, where, strict=True)]
    forms = ["there", "shows", "see", "count"] + (["is", "first"] if place else [])
    form = rng.choice(forms)
    if form in ("is", "first"):
        pairs = zip(what, where, strict=True) if form == "is" else zip(where, what, strict=True)
        return _listed("", [_capital(f"{one} is {other}.") for one, other in pairs], things, " ", " ", "")
    if form == "count":
        plural = "" if len(things) == 1 else "s"
        start = f"{_capital(NUMBER_EN[len(things)])} object{plural}: "
        return _listed(start, both, things, ", ", ", ", ".")
    start = {"there": "There is ", "shows": "The picture shows ", "see": "I see "}[form]
    return _listed(start, both, things, ", ", " and ", ".")


def _caption_zh(
    things: list[Thing], size: bool, place: bool, rng: random.Random
) -> list[tuple[str, Thing | None]]:
    what = []
    for thing in things:
        big, colour, shape = SIZE_ZH[thing.size], COLOUR_ZH[thing.colour], SHAPE_ZH[thing.shape]
        sized = rng.choice((f"{big}的{colour}{shape}", f"{colour}的{big}{shape}"))
        what.append(sized if size else f"{colour}的{shape}")
    where = [PLACE_ZH[thing.place] for thing in things]
    form = rng.choice(["count", "shows"] + (["have", "is"] if place else []))
    if form == "have":
        said = [f"{spot}有一个{noun}" for noun, spot in zip(what, where, strict=True)]
        return _listed("", said, things, "，", "，", "。")
    if form == "is":
        said = [f"一个{noun}在{spot}。" for noun, spot in zip(what, where, strict=True)]
        return _listed("", said, things, "", "", "")
    both = [f"{spot}的{noun}" if place else noun for noun, spot in zip(what, where, strict=True)]
    start = f"图中有{NUMBER_ZH[len(things)]}个物体：" if form == "count" else "图中有"
    return _listed(start, both, things, "、", "、", "。")


def _listed(
    start: str, said: list[str], things: list[Thing], between: str, last: str, end: str
) -> list[tuple[str, Thing | None]]:
    """Return pieces: the text about each thing, and those before, between and after them."""
    pieces: list[tuple[str, Thing | None]] = [(start, None)]
    for i, (text, thing) in enumerate(zip(said, things, strict=True)):
        if i:
            pieces.append((last if i == len(said) - 1 else between, None))
        pieces.append((text, thing))
    return [piece for piece in [*pieces, (end, None)] if piece[0]]


def noun_phrase(noun: Noun, language: Language, rng: random.Random, many: bool = False) -> str:
    """Word a noun without an article, for instance `"red star"`, `"object at the top"` or `"左边的物体"`."""
    facts = dict(noun)
    if language == "zh":
        parts = [SIZE_ZH[facts["size"]] + "的"] if "size" in facts else []
        parts += [PLACE_ZH[facts["place"]] + "的"] if "place" in facts else []
        parts += [COLOUR_ZH[facts["colour"]] + "的"] if "colour" in facts else []
        return "".join(parts) + (SHAPE_ZH[facts["shape"]] if "shape" in facts else "物体")
    words = [rng.choice(SIZE_EN[facts["size"]])] if "size" in facts else []
    words += [facts["colour"]] if "colour" in facts else []
    head = facts.get("shape", "object")
    plural = ("es" if head == "cross" else "s") if many else ""
    words.append(head + plural)
    words += [rng.choice(_AT[facts["place"]])] if "place" in facts else []
    return " ".join(words)


def ask(query: Query, language: Language, rng: random.Random) -> Ask:
    many = query.form in ("count", "more")
    nouns = [noun_phrase(noun, language, rng, many) for noun in query.nouns]
    if language == "en" and not many:
        indefinite = query.form == "existence"
        nouns = [_article(noun) if indefinite else f"the {noun}" for noun in nouns]
    text = rng.choice(_ASK[language][query.form]).format(*nouns)
    return Ask(query.kind, _capital(text), answer_word(query, query.answer[1], language))


def choose(query: Query, language: Language, rng: random.Random, most: int = 4) -> Ask:
    """Word a query as a multiple-choice question: text without the options, and two to `most` options."""
    wrong = [choice for choice in query.choices if choice != query.answer[1]]
    chosen = [query.answer[1], *rng.sample(wrong, min(len(wrong), rng.randint(min(2, most - 1), most - 1)))]
    rng.shuffle(chosen)
    question = ask(query, language, rng)
    options = tuple(answer_word(query, choice, language) for choice in chosen)
    return Ask(query.kind, question.text, question.answer, options)


def answer_word(query: Query, value: str | int | Noun, language: Language) -> str:
    if not isinstance(value, tuple):
        return word(query.answer[0], value, language)
    colour, shape = dict(value)["colour"], dict(value)["shape"]
    return f"{colour} {shape}" if language == "en" else f"{COLOUR_ZH[colour]}的{SHAPE_ZH[shape]}"


def with_options(question: Ask, language: Language) -> str:
    """Return the prompt of a multiple-choice question as LLaVA's MMBench script writes it."""
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", question.options, strict=False)]
    return "\n".join([question.text, *lines, LETTER_PROMPT[language]])


def letter(question: Ask) -> str:
    return "ABCD"[question.options.index(question.answer)]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
