"""Text about scenes, as token ids: what the demo decoder reads in its pretraining.

A row has a context that describes a scene and then either a caption of it (the `plain` form of stage 1) or
turns of questions and answers in ChatML. The context comes in two forms. As *sentences* it is ordinary text.
As *blurred words* every position holds several words of one thing at once, as a weighted sum of their
embeddings with noise, between positions that hold noise alone: it reads as a projector's output may read,
and no tower or picture is involved.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from basic_lite.demo.dialogues import dialogue
from basic_lite.demo.grammar import DESCRIBE, caption
from basic_lite.demo.lexicon import COLOUR_ZH, LANGUAGES, SHAPE_ZH, SIZE_EN, SIZE_ZH, Language
from basic_lite.demo.scenes import Scene, Thing, sample_scene

_ROWS = {"en": ("top", "middle", "bottom"), "zh": ("上", "中", "下")}
_DESCRIBE = {request for requests in DESCRIBE.values() for request in requests}
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
    """

    ids: list[int] = field(default_factory=list)
    part: list[int] = field(default_factory=list)
    context: tuple[int, int] = (0, 0)
    bags: list[list[int]] = field(default_factory=list)

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
        repeated: Share of the captions that repeat the context word for word, where it is sentences.
    """

    most: int = 4
    blurred: float = 0.5
    plain: float = 0.2
    repeated: float = 0.1


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
        """Draw a scene of seen pairs and make a row about it."""
        rng = self.rng
        scene = sample_scene(rng, most=self.mixture.most)
        row = Row()
        row.add([self.tokenizer.bos_token_id])
        chat = rng.random() >= self.mixture.plain
        if chat:
            row.add(self.encode("<|im_start|>user\n"))
        said = self._context(row, scene)
        if chat:
            self._turns(row, scene)
        else:
            if not said or rng.random() >= self.mixture.repeated:
                # Most captions keep the order of things, so that more of them can be told from the context.
                full, shuffle = rng.random() < 0.7, rng.random() < 0.3
                said = caption(scene, rng.choice(LANGUAGES), rng, full, shuffle)
            row.add(self.encode(said + "\n"), CAPTION)
        return row

    def _turns(self, row: Row, scene: Scene) -> None:
        """Append two to six turns, each in its own language, about a third of them multiple choice."""
        rng = self.rng
        for turn, (question, answer) in enumerate(dialogue(scene, rng.randint(2, 6), rng)):
            row.add(self.encode(("\n" if turn == 0 else "\n<|im_start|>user\n") + question))
            row.add(self.encode("<|im_end|>\n<|im_start|>assistant\n"))
            part = CAPTION if question in _DESCRIBE else ANSWER
            row.add(self.encode(answer + "<|im_end|>"), part)

    def _context(self, row: Row, scene: Scene) -> str:
        """Append a description; return its sentences, or nothing for blurred words."""
        rng = self.rng
        start = len(row.ids)
        if rng.random() >= self.mixture.blurred:
            said = caption(scene, rng.choice(LANGUAGES), rng, shuffle=False)
            row.add(self.encode(said))
        else:
            said = ""
            row.bags = self._blurred(scene)
            filler = self.tokenizer.pad_token_id
            row.add([rng.choice(bag) if bag else filler for bag in row.bags])
        row.context = (start, len(row.ids))
        return said

    def _blurred(self, scene: Scene) -> list[list[int]]:
        """Return bags of words in random order: one to six per thing, and up to twenty without words."""
        rng = self.rng
        bags: list[list[int]] = []
        for thing in scene.things:
            names = words_of(thing, rng.choice(LANGUAGES), rng)
            tokens = list(dict.fromkeys(self.encode(name)[0] for name in names))  # "middle" may come twice
            bags.append(tokens)
            for _ in range(rng.randint(0, 5)):
                bags.append(rng.sample(tokens, rng.randint(2, len(tokens))))
        bags += [[] for _ in range(rng.randint(0, 20))]
        rng.shuffle(bags)
        return bags


def words_of(thing: Thing, language: Language, rng: random.Random) -> list[str]:
    """Return the words of a thing's size, colour, shape, row and column, each one token of the vocabulary."""
    rows, columns = _ROWS[language][thing.row], _COLUMNS[language][thing.column]
    if language == "en":
        return [f" {w}" for w in (rng.choice(SIZE_EN[thing.size]), thing.colour, thing.shape, rows, columns)]
    return [SIZE_ZH[thing.size], COLOUR_ZH[thing.colour][0], SHAPE_ZH[thing.shape][0], rows, columns]
