"""What can be asked about a scene, and the right answers: facts without words.

A `Query` is a question in no language; `grammar` words it in English or Chinese. Every generator below looks
at a scene and returns the queries of its kind that have one clear answer there.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

from basic_lite.data.world.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

KINDS = ("colour", "shape", "count", "place", "relation", "existence", "comparison")

GROUPS = {
    "colour": "attribute_perception",
    "shape": "attribute_perception",
    "place": "spatial_perception",
    "relation": "spatial_perception",
    "count": "scene_reasoning",
    "existence": "scene_reasoning",
    "comparison": "scene_reasoning",
}
"""The `l2-category` of every kind in the MMBench files."""

Noun = tuple[tuple[str, str], ...]
"""Attributes that pick things out, as in `(("colour", "red"), ("shape", "star"))`; empty means any thing."""


@dataclass(frozen=True)
class Query:
    """One question about a scene."""

    kind: str  # one of `KINDS`
    form: str  # which sentence of that kind: the key of `grammar`'s templates
    nouns: tuple[Noun, ...]  # the things that it speaks of, in order
    answer: tuple[str, str | int | Noun]  # attribute and value; of a noun phrase `noun` and a `Noun`
    # The answer and wrong ones of the same attribute, at least two in all
    choices: tuple[str | int | Noun, ...]


def fits(thing: Thing, noun: Noun) -> bool:
    return all(getattr(thing, attribute) == value for attribute, value in noun)


def name(thing: Thing) -> Noun:
    """Return colour and shape: the noun that fits no other thing of the scene."""
    return (("colour", thing.colour), ("shape", thing.shape))


def _yes_or_no(kind: str, form: str, nouns: tuple[Noun, ...], truth: bool) -> Query:
    return Query(kind, form, nouns, ("truth", "yes" if truth else "no"), ("yes", "no"))


def attribute_queries(scene: Scene) -> list[Query]:
    """Colour by shape or place, shape by colour or place, place by shape or by colour and shape."""
    result = []
    values = {"colour": COLOURS, "shape": SHAPES, "place": PLACES}
    clues: dict[str, tuple[tuple[str, ...], ...]] = {
        "colour": (("shape",), ("place",)),
        "shape": (("colour",), ("place",)),
        "place": (("shape",), ("colour", "shape")),
    }
    for kind, keys in ((kind, keys) for kind, options in clues.items() for keys in options):
        for thing in scene.things:
            noun = tuple((key, getattr(thing, key)) for key in keys)
            if sum(fits(other, noun) for other in scene.things) == 1:
                result.append(Query(kind, kind, (noun,), (kind, getattr(thing, kind)), values[kind]))
    return result


def count_queries(scene: Scene, rng: random.Random) -> list[Query]:
    """How many things in all, of a colour, of a shape or of a size."""
    nouns: list[Noun] = [()]
    nouns += [(("size", size),) for size in SIZES]
    for attribute, values in (("colour", COLOURS), ("shape", SHAPES)):
        shown = {getattr(thing, attribute) for thing in scene.things}
        nouns += [((attribute, value),) for value in sorted(shown)]
        nouns.append(((attribute, rng.choice([v for v in values if v not in shown])),))
    result = []
    for noun in nouns:
        number = sum(fits(thing, noun) for thing in scene.things)
        result.append(
            Query("count", "count" if noun else "count all", (noun,), ("number", number), tuple(range(5)))
        )
    return result


def relation_queries(scene: Scene, rng: random.Random) -> list[Query]:
    """On which side of one thing another is: asked open, and as yes or no."""
    result = []
    for one, other in permutations(scene.things, 2):
        nouns = (name(one), name(other))
        for sides, a, b in (
            (("left", "right"), one.column, other.column),
            (("above", "below"), one.row, other.row),
        ):
            if a == b:
                continue
            side = sides[a > b]
            result.append(Query("relation", f"which {sides[0]}", nouns, ("side", side), sides))
            asked = rng.choice(sides)
            result.append(_yes_or_no("relation", f"is {asked}", nouns, asked == side))
    return result


def existence_queries(scene: Scene, rng: random.Random, pairs: frozenset[tuple[str, str]]) -> list[Query]:
    """Whether there is a thing of a colour and a shape; what is not there is like something that is."""
    shown = {thing.pair for thing in scene.things}
    result = []
    for thing in scene.things:
        near = [
            p for p in sorted(pairs) if p not in shown and (p[0] == thing.colour) != (p[1] == thing.shape)
        ]
        for pair, truth in ((thing.pair, True), (rng.choice(near), False)):
            noun = (("colour", pair[0]), ("shape", pair[1]))
            result.append(_yes_or_no("existence", "existence", (noun,), truth))
    return result


def comparison_queries(scene: Scene, rng: random.Random) -> list[Query]:
    """Which of two is larger, whether two share a colour or a shape, whether one kind outnumbers another."""
    result = []
    for one, other in permutations(scene.things, 2):
        nouns = (name(one), name(other))
        if one.size != other.size:
            asked = rng.choice(SIZES)
            winner = name(one if one.size == asked else other)
            result.append(Query("comparison", f"which {asked}", nouns, ("noun", winner), nouns))
        for attribute in ("colour", "shape"):
            truth = getattr(one, attribute) == getattr(other, attribute)
            # The nouns leave out what is asked for, so each must still fit one thing only.
            clue = "shape" if attribute == "colour" else "colour"
            short = tuple(((clue, getattr(thing, clue)),) for thing in (one, other))
            clear = all(sum(fits(thing, noun) for thing in scene.things) == 1 for noun in short)
            if clear:
                result.append(_yes_or_no("comparison", f"same {attribute}", short, truth))
    for attribute in ("colour", "shape"):
        counts = Counter(getattr(thing, attribute) for thing in scene.things)
        for one, other in permutations(sorted(counts), 2):
            if counts[one] != counts[other]:
                nouns = (((attribute, one),), ((attribute, other),))
                result.append(_yes_or_no("comparison", "more", nouns, counts[one] > counts[other]))
    return result


def queries(
    scene: Scene, rng: random.Random, pairs: frozenset[tuple[str, str]], kinds: tuple[str, ...] = KINDS
) -> dict[str, list[Query]]:
    """Return all queries about a scene by kind, in random order, yes and no balanced where a kind asks that.

    Questions may speak of the colour and shape `pairs` beyond those shown. A kind that the scene does not
    allow has an empty list.
    """
    every = attribute_queries(scene) + count_queries(scene, rng) + relation_queries(scene, rng)
    every += existence_queries(scene, rng, pairs) + comparison_queries(scene, rng)
    rng.shuffle(every)
    return {kind: _balanced([q for q in every if q.kind == kind]) for kind in kinds}


def _balanced(result: list[Query]) -> list[Query]:
    """Drop queries so that no form is answered yes more often than no, or the other way around."""
    kept = []
    for form in dict.fromkeys(q.form.split()[0] for q in result):
        group = [q for q in result if q.form.split()[0] == form]
        yes = [q for q in group if q.answer == ("truth", "yes")]
        no = [q for q in group if q.answer == ("truth", "no")]
        rest = [q for q in group if q.answer[0] != "truth"]
        most = max(min(len(yes), len(no)), 1)
        kept += rest + yes[:most] + no[:most]
    return kept
