"""Questions on scenes put together: conversations to train on, and queries on held-out scenes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from basic_lite.data.world.grammar import DESCRIBE, ask, caption, choose, letter, with_options
from basic_lite.data.world.lexicon import LANGUAGES
from basic_lite.data.world.questions import KINDS, Noun, Query, fits, queries
from basic_lite.data.world.scenes import EVERY_PAIR, HELD_OUT, SEEN, Scene, Thing, sample_scene


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str
    about: tuple[tuple[Thing, ...], ...] = ()  # for each noun of the question the things that it fits
    nouns: tuple[Noun, ...] = ()  # empty for a description
    describes: bool = False  # whether a description of everything is asked for


def turns_about(
    scene: Scene,
    turns: int,
    rng: random.Random,
    kinds: tuple[str, ...] = KINDS,
    choice: float = 0.3,
    pairs: frozenset[tuple[str, str]] = SEEN,
) -> list[Turn]:
    """Return turns about a training scene, each in either language.

    A share of `choice` are multiple choice and one in twenty asks for a description. No turn speaks of a
    pair that is not among `pairs`.
    """
    unused = queries(scene, rng, pairs, kinds)
    out = []
    for _ in range(turns):
        language = rng.choice(LANGUAGES)
        if rng.random() < 0.05:
            said = caption(scene, language, rng)
            out.append(Turn(rng.choice(DESCRIBE[language]), said, describes=True))
            continue
        kind = rng.choice([kind for kind, left in unused.items() if left])
        query = unused[kind].pop() if len(unused[kind]) > 1 else unused[kind][0]
        about = tuple(tuple(t for t in scene.things if fits(t, noun)) for noun in query.nouns)
        if rng.random() < choice:
            question = choose(query, language, rng)
            out.append(Turn(with_options(question, language), letter(question), about, query.nouns))
        else:
            question = ask(query, language, rng)
            out.append(Turn(question.text, question.answer, about, query.nouns))
    return out


def dialogue(scene: Scene, turns: int, rng: random.Random) -> list[tuple[str, str]]:
    return [(turn.question, turn.answer) for turn in turns_about(scene, turns, rng)]


def held_out_queries(
    questions: int, seed: int, wanted: Callable[[Scene], bool] = lambda scene: True
) -> list[tuple[Scene, Query]]:
    """Return queries on held-out scenes, as many of each kind, every one about a scene of its own.

    Every scene is wanted and has a thing of a held-out pair, and where the kind allows it the query speaks of
    that thing.
    """
    rng = random.Random(seed)
    out: list[tuple[Scene, Query]] = []
    while len(out) < questions:
        kind = KINDS[len(out) % len(KINDS)]
        scene = sample_scene(rng, held_out=True)
        if not wanted(scene):
            continue
        possible = queries(scene, rng, EVERY_PAIR)[kind]
        # Not so for existence: there the answers would all be yes.
        new = [q for q in possible if any(_pair(noun) in HELD_OUT for noun in q.nouns)]
        if possible:
            out.append((scene, rng.choice(new if new and kind != "existence" else possible)))
    return out


def _pair(noun: Noun) -> tuple[str, ...]:
    facts = dict(noun)
    return (facts["colour"], facts["shape"]) if {"colour", "shape"} <= facts.keys() else ()
