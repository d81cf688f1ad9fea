"""Text about scenes, as token ids: what the demo decoder reads in its pretraining.

A row has a context that describes a scene and then either a caption of it (the `plain` form of stage 1) or
turns of questions and answers in ChatML. The context comes in two forms. As *sentences* it is ordinary text.
As *blurred words* every position holds several words of one thing at once, as a weighted sum of their
embeddings with noise, between positions that hold noise alone: it reads as a projector's output may read,
and no tower or picture is involved.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from basic_lite.data.world.dialogues import Turn, turns_about
from basic_lite.data.world.grammar import caption_pieces
from basic_lite.data.world.lexicon import COLOUR_ZH, LANGUAGES, SHAPE_ZH, SIZE_EN, SIZE_ZH, Language
from basic_lite.data.world.questions import KINDS, Noun
from basic_lite.data.world.scenes import (
    COLOURS,
    EVERY_PAIR,
    PLACES,
    SHAPES,
    Scene,
    Thing,
    sample_scene,
)


def is_reserved(scene: Scene) -> bool:
    """Say whether the decoder reads no description of a scene with these things: of one scene in eight."""
    things = sorted((*thing.pair, thing.size, thing.row, thing.column) for thing in scene.things)
    return zlib.crc32(repr(things).encode()) % 8 == 0


_ROWS = {"en": ("top", "middle", "bottom"), "zh": ("上", "中", "下")}
_COLUMNS = {"en": ("left", "middle", "right"), "zh": ("左", "中", "右")}

READING, ANSWER, CAPTION = range(3)


@dataclass
class Row:
    """One training row.

    Attributes:
        ids: Token ids; at blurred positions the id of one of the words.
        part: For every token what it is of: `READING`, `ANSWER` or `CAPTION`.
        context: Positions of the context, first and one past the last.
        bags: For each blurred position its words; a position of noise alone has none. Empty for sentences.
        told: For each thing the positions of the context that show it: of blurred words all that hold
            some, of sentences the last one.
        gathered: Positions at which a thing has just been told, with the words for it in both languages.
        asked: Positions that an answer follows, with the words of the question's one noun.
        referred: Positions that an answer follows, with the words for the one thing that was asked about.
        looks: Positions that an answer follows, with the context's positions that each noun speaks of.
    """

    ids: list[int] = field(default_factory=list)
    part: list[int] = field(default_factory=list)
    context: tuple[int, int] = (0, 0)
    bags: list[list[int]] = field(default_factory=list)
    told: dict[Thing, list[int]] = field(default_factory=dict)
    gathered: list[tuple[int, list[int]]] = field(default_factory=list)
    asked: list[tuple[int, list[int]]] = field(default_factory=list)
    referred: list[tuple[int, list[int]]] = field(default_factory=list)
    looks: list[tuple[int, list[list[int]]]] = field(default_factory=list)

    def add(self, ids: list[int], part: int = READING) -> None:
        """Append tokens."""
        self.ids += ids
        self.part += [part] * len(ids)


@dataclass(frozen=True)
class Mixture:
    """What rows are drawn.

    Attributes:
        most: The largest number of things in a scene.
        blurred: Share of rows whose context is blurred words.
        plain: Share of rows that end in a caption instead of questions.
        shuffled: Share of the captions that tell things in another order than the context.
        repeated: Share of the captions that repeat the context word for word, where it is sentences.
        kinds: Kinds of questions.
        choice: Share of the questions that are multiple choice.
    """

    most: int = 4
    blurred: float = 0.4
    plain: float = 0.25
    shuffled: float = 0.5
    repeated: float = 0.05
    kinds: tuple[str, ...] = KINDS
    choice: float = 0.4


class Corpus:
    """Makes rows without end.

    Args:
        tokenizer: The world's tokenizer.
        seed: Seed of everything drawn.

    Attributes:
        mixture: What rows are drawn; may be changed between rows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.mixture = Mixture()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, its special tokens included, without a BOS."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def row(self) -> Row:
        """Draw a scene and make a row about it."""
        rng = self.rng
        # Of the pairs that no picture shows, too, as a language model has read of nearly everything: about
        # pairs that it never read of, a model this small answers 12 points worse, however long it learns.
        # What it is asked about in its probe it has not read: those scenes are reserved.
        scene = sample_scene(rng, most=self.mixture.most, pairs=EVERY_PAIR)
        while is_reserved(scene):
            scene = sample_scene(rng, most=self.mixture.most, pairs=EVERY_PAIR)
        row = Row()
        row.add([self.tokenizer.bos_token_id])
        chat = rng.random() >= self.mixture.plain
        if chat:
            row.add(self.encode("<|im_start|>user\n"))
        said = self._context(row, scene)
        if chat:
            self._turns(row, scene)
        else:
            if said is None or rng.random() >= self.mixture.repeated:
                # In another order, whatever comes first of a thing is chance, and all the rest must be looked
                # up by it: nothing teaches binding as densely.
                full, shuffle = rng.random() < 0.8, rng.random() < self.mixture.shuffled
                said = caption_pieces(scene, rng.choice(LANGUAGES), rng, full, shuffle)
            self._tell(row, [*said, ("\n", None)], CAPTION)
        return row

    def _turns(self, row: Row, scene: Scene) -> None:
        """Append three to seven turns, each in its own language."""
        rng, mixture = self.rng, self.mixture
        turns = turns_about(scene, rng.randint(3, 7), rng, mixture.kinds, mixture.choice, EVERY_PAIR)
        for number, turn in enumerate(turns):
            row.add(self.encode(("\n" if number == 0 else "\n<|im_start|>user\n") + turn.question))
            row.add(self.encode("<|im_end|>\n<|im_start|>assistant\n"))
            self._hint(row, turn)
            row.add(self.encode(turn.answer + "<|im_end|>"), CAPTION if turn.describes else ANSWER)

    def _hint(self, row: Row, turn: Turn) -> None:
        """Note what the answer that comes next depends on."""
        here = len(row.ids) - 1
        if turn.about and all(turn.about):
            row.looks.append((here, [[p for t in things for p in row.told[t]] for things in turn.about]))
        if len(turn.about) == 1 and turn.nouns[0]:
            row.asked.append((here, self._noun_words(turn.nouns[0])))
            if len(turn.about[0]) == 1:
                row.referred.append((here, self._words(turn.about[0][0])))

    def _noun_words(self, noun: Noun) -> list[int]:
        """Return the tokens of a noun's words in both languages."""
        facts = dict(noun)
        row, column = divmod(PLACES.index(facts["place"]), 3) if "place" in facts else (1, 1)
        names = {"colour": COLOURS[0], "shape": SHAPES[0], "size": "small"} | facts
        thing = Thing(names["colour"], names["shape"], names["size"], row, column)
        keys = [key for key in ("size", "colour", "shape") if key in facts]
        keys += ["row", "column"] if "place" in facts else []
        order = ("size", "colour", "shape", "row", "column")
        words = [words_of(thing, language, self.rng) for language in LANGUAGES]
        names = [side[order.index(key)] for side in words for key in keys]
        return list(dict.fromkeys(self.encode(name)[0] for name in names))

    def _tell(self, row: Row, pieces: list[tuple[str, Thing | None]], part: int = READING) -> None:
        """Append sentences, and note where each thing has been told."""
        text = "".join(piece for piece, _ in pieces)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        start, told = len(row.ids), 0
        for piece, thing in pieces:
            told += len(piece)
            if thing is not None:
                last = max(i for i, end in enumerate(ends) if end <= told)
                row.gathered.append((start + last, self._words(thing)))
                row.told.setdefault(thing, [start + last])
        row.add(encoded["input_ids"], part)

    def _words(self, thing: Thing) -> list[int]:
        """Return the tokens of the words for a thing in both languages."""
        names = [name for language in LANGUAGES for name in words_of(thing, language, self.rng)]
        return list(dict.fromkeys(self.encode(name)[0] for name in names))

    def _context(self, row: Row, scene: Scene) -> list[tuple[str, Thing | None]] | None:
        """Append a description; return its sentences in pieces, or `None` for blurred words."""
        rng = self.rng
        start = len(row.ids)
        if rng.random() >= self.mixture.blurred:
            said = caption_pieces(scene, rng.choice(LANGUAGES), rng, shuffle=False)
            self._tell(row, said)
        else:
            said = None
            bags = self._blurred(scene)
            row.bags = [bag for _, bag in bags]
            for i, (thing, _) in enumerate(bags):
                if thing is not None:
                    row.told.setdefault(thing, []).append(start + i)
            filler = self.tokenizer.pad_token_id
            row.add([rng.choice(bag) if bag else filler for bag in row.bags])
        row.context = (start, len(row.ids))
        return said

    def _blurred(self, scene: Scene) -> list[tuple[Thing | None, list[int]]]:
        """Return bags of words in random order: one to six per thing, and up to twenty without words."""
        rng = self.rng
        bags: list[tuple[Thing | None, list[int]]] = []
        for thing in scene.things:
            names = words_of(thing, rng.choice(LANGUAGES), rng)
            tokens = list(dict.fromkeys(self.encode(name)[0] for name in names))  # "middle" may come twice
            bags.append((thing, tokens))
            for _ in range(rng.randint(0, 5)):
                bags.append((thing, rng.sample(tokens, rng.randint(2, len(tokens)))))
        bags += [(None, []) for _ in range(rng.randint(0, 20))]
        rng.shuffle(bags)
        return bags


def words_of(thing: Thing, language: Language, rng: random.Random) -> list[str]:
    """Return the words of a thing's size, colour, shape, row and column, each one token of the vocabulary."""
    rows, columns = _ROWS[language][thing.row], _COLUMNS[language][thing.column]
    if language == "en":
        return [f" {w}" for w in (rng.choice(SIZE_EN[thing.size]), thing.colour, thing.shape, rows, columns)]
    return [SIZE_ZH[thing.size], COLOUR_ZH[thing.colour][0], SHAPE_ZH[thing.shape][0], rows, columns]
