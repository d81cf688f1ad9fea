"""Answers are worked out again here, from the English sentence alone, without code of the package."""

from __future__ import annotations

import random
import re

import pytest
from parts.answering import exam

from basic_lite.data.world.dialogues import dialogue
from basic_lite.data.world.grammar import ask, caption, choose, letter, with_options
from basic_lite.data.world.lexicon import COLOUR_ZH, PLACE_ZH, SHAPE_ZH, attributes, is_meaningful, named_by
from basic_lite.data.world.questions import KINDS, queries
from basic_lite.data.world.scenes import COLOURS, EVERY_PAIR, HELD_OUT, SEEN, SHAPES, Thing

SIZE_WORDS = {"small": "small", "little": "small", "large": "large", "big": "large"}
NUMBERS = ["zero", "one", "two", "three", "four"]
CORNER = re.compile(
    r"(?:at|in|on) the (top left|top right|bottom left|bottom right|upper left|upper right|lower left|"
    r"lower right|top|bottom|left|right|centre|middle)(?: corner)?(?: in the middle)?"
)


def place_of(text: str) -> str | None:
    found = CORNER.search(text)
    name = found and found.group(1).replace("upper", "top").replace("lower", "bottom")
    return "centre" if name == "middle" else name


def nouns(text: str) -> list[tuple[str | None, str | None]]:
    """All (colour, shape) mentions in order; either may be missing."""
    pattern = rf"\b({'|'.join(COLOURS)})?\s?\b({'|'.join(SHAPES)}|object)(?:e?s)?\b"
    return [(a or None, None if b == "object" else b) for a, b in re.findall(pattern, text)]


def matching(things: tuple[Thing, ...], colour: str | None, shape: str | None) -> list[Thing]:
    return [t for t in things if colour in (None, t.colour) and shape in (None, t.shape)]


def solve(text: str, things: tuple[Thing, ...]) -> str:
    words = text.lower()
    found = nouns(words)
    if words.startswith(("how many", "count")):
        size = next((SIZE_WORDS[w] for w in re.findall(r"\w+", words) if w in SIZE_WORDS), None)
        return NUMBERS[sum(size in (None, t.size) for t in matching(things, *found[0]))]
    if " more " in words:
        one, other = (len(matching(things, *noun)) for noun in found)
        return "yes" if one > other else "no"
    if "same" in words:
        (one,), (other,) = (matching(things, *noun) for noun in found)
        attribute = "colour" if "colour" in words else "shape"
        return "yes" if getattr(one, attribute) == getattr(other, attribute) else "no"
    if words.startswith("which") and len(found) == 2:
        small = "small" in words or "little" in words
        pair = [t for noun in found for t in matching(things, *noun)]
        winner = next(t for t in pair if (t.size == "small") == small)
        return f"{winner.colour} {winner.shape}"
    if len(found) == 2:
        if words.startswith("seen from"):
            found.reverse()
        (one,), (other,) = (matching(things, *noun) for noun in found)
        across = "left" if one.column < other.column else "right" if one.column > other.column else None
        down = "above" if one.row < other.row else "below" if one.row > other.row else None
        asked = re.findall(r"left|right|above|below|higher|lower", words)
        asked = [{"higher": "above", "lower": "below"}.get(w, w) for w in asked]
        if len(asked) == 2:
            return across if "left" in asked else down
        return "yes" if asked[0] in (across, down) else "no"
    if words.startswith(("where", "in which place", "tell me where")):
        return matching(things, *found[0])[0].place
    place = place_of(words)
    (thing,) = [t for t in matching(things, *found[0]) if place in (None, t.place)] or [None]
    if "colour" in words:
        return thing.colour
    if "shape" in words:
        return thing.shape
    return "yes" if thing else "no"


def test_english_answers_are_right_against_the_scene(training_scenes, held_out_scenes):
    rng = random.Random(0)
    kinds = dict.fromkeys(KINDS, 0)
    for scene in training_scenes[:80] + held_out_scenes[:80]:
        for kind, found in queries(scene, rng, EVERY_PAIR).items():
            for query in found:
                question = ask(query, "en", rng)
                assert solve(question.text, scene.things) == question.answer, (question, scene)
                kinds[kind] += 1
    assert min(kinds.values()) > 100


def test_chinese_says_the_same_as_english(training_scenes):
    rng = random.Random(0)
    back = {v: k for table in (COLOUR_ZH, SHAPE_ZH, PLACE_ZH) for k, v in table.items()}
    back |= {"是": "yes", "不是": "no", "上面": "above", "下面": "below"}
    back |= dict(zip(("零个", "一个", "两个", "三个", "四个"), NUMBERS, strict=True))
    for scene in training_scenes[:60]:
        for found in queries(scene, rng, SEEN).values():
            for query in found:
                english, chinese = ask(query, "en", rng), ask(query, "zh", rng)
                translated = " ".join(back[part] for part in chinese.answer.split("的"))
                assert translated == english.answer
                for colour, shape in nouns(english.text.lower()):
                    assert (colour is None) or COLOUR_ZH[colour] in chinese.text
                    assert (shape is None) or SHAPE_ZH[shape] in chinese.text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_letter_picks_the_answer_and_options_differ(training_scenes, language):
    rng = random.Random(2)
    for scene in training_scenes[:40]:
        for found in queries(scene, rng, SEEN).values():
            for query in found:
                question = choose(query, language, rng)
                assert 2 <= len(set(question.options)) == len(question.options) <= 4
                lines = with_options(question, language).split("\n")
                chosen = next(line for line in lines[1:-1] if line.startswith(f"{letter(question)}. "))
                assert chosen[3:] == question.answer


@pytest.mark.parametrize("language", ["en", "zh"])
def test_yes_and_no_are_balanced(language):
    answers = [q.answer for _, q in exam(1400, language, 3) if q.answer in ("yes", "no", "是", "不是")]
    share = sum(a in ("yes", "是") for a in answers) / len(answers)
    assert 0.4 < share < 0.6


def test_training_text_speaks_of_no_held_out_pair(training_scenes):
    rng = random.Random(4)
    chinese = {f"{COLOUR_ZH[c]}的{size}{SHAPE_ZH[s]}" for c, s in HELD_OUT for size in ("", "大", "小")}
    chinese |= {f"{COLOUR_ZH[c]}{SHAPE_ZH[s]}" for c, s in HELD_OUT}
    for scene in training_scenes:
        text = "\n".join(f"{q}\n{a}" for q, a in dialogue(scene, 8, rng))
        text += caption(scene, "en", rng) + caption(scene, "zh", rng)
        assert not HELD_OUT & set(nouns(text.lower()))
        assert not any(phrase in text for phrase in chinese)


def test_full_captions_name_everything_about_every_thing(training_scenes):
    rng = random.Random(4)
    for scene in training_scenes[:50]:
        english, chinese = caption(scene, "en", rng).lower(), caption(scene, "zh", rng)
        assert len([noun for noun in nouns(english) if noun != (None, None)]) == len(scene.things)
        for thing in scene.things:
            assert (thing.colour, thing.shape) in nouns(english)
            words = (COLOUR_ZH[thing.colour], SHAPE_ZH[thing.shape], PLACE_ZH[thing.place])
            assert all(word in chinese for word in words)


def test_every_kind_has_several_wordings(training_scenes):
    rng = random.Random(0)
    names = (*COLOURS, *SHAPES, *COLOUR_ZH.values(), *SHAPE_ZH.values(), *PLACE_ZH.values())
    forms = {(kind, lang): set() for kind in KINDS for lang in ("en", "zh")}
    for scene in training_scenes:
        for kind, found in queries(scene, rng, SEEN).items():
            for query in found:
                for language in ("en", "zh"):
                    text = ask(query, language, rng).text
                    forms[kind, language].add(re.sub("|".join(names), "_", text))
    assert all(len(found) >= 3 for found in forms.values())


def test_tokens_name_attribute_values():
    thing = Thing("red", "star", "large", 0, 2)
    expected = {"colour": "red", "shape": "star", "size": "large", "row": "top", "column": "right"}
    assert attributes(thing) == expected
    for token in (" red", "Red", "红", " star", "星", " big", "大", "top", "上", " right", "右"):
        assert is_meaningful(token, thing), token
    for token in (" blue", "ring", "蓝", "small", "左", "the", "<pad>", ""):
        assert not is_meaningful(token, thing), token
    assert not is_meaningful(" red", None)
    for token in (" middle", "centre", "中"):
        assert not is_meaningful(token, thing), token
        for row, column in ((1, 1), (1, 0), (2, 1)):
            assert is_meaningful(token, Thing("red", "star", "large", row, column)), token
    assert is_meaningful("三", Thing("red", "triangle", "large", 0, 0))
    assert named_by("the") is None
