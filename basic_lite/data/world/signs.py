"""Scenes with a sign in them that has a word on it: a world for questions about reading.

A sign stands in a free cell of the grid, and its word is the caption. The word says nothing about the things
around it, so it can only be read. A sign covers whole patches, or a reader would need several times as many
samples. Nothing here touches the world that the other commands use.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from basic_lite.data.world.render import PATCH, SCALE, SIDE, render
from basic_lite.data.world.scenes import Scene, sample_scene

WORDS: tuple[str, ...] = ("red", "blue", "green", "black", "star", "ring", "heart", "cross")
"""Words on signs: the decoder knows them, each a token of its own at the start of a text."""

HELD_OUT: str = "held_out.json"
"""Rows to measure on, in a world's folder."""


class Plates(NamedTuple):
    """Where signs of one size can be, in patches."""

    width: int  # of a sign
    height: int  # of a sign
    columns: tuple[int, int, int]  # where it begins in each column of the grid
    rows: tuple[int, int, int]  # where it begins in each row


PLATES: dict[str, Plates] = {
    "large": Plates(3, 2, (0, 3, 5), (0, 3, 6)),
    # In one quarter of the picture, as tiles cut it, and in one patch where the picture is brought to half
    # the size. It may cover the edge of a thing.
    "small": Plates(2, 2, (0, 4, 6), (0, 4, 6)),
}


@dataclass(frozen=True)
class Sign:
    """A plate with a word."""

    word: str  # one of `WORDS`
    row: int  # of its cell
    column: int  # of its cell
    plates: Plates = PLATES["large"]  # its size, and where it stands in its cell

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels of the picture; right and bottom are outside."""
        plates = self.plates
        left, top = plates.columns[self.column] * PATCH, plates.rows[self.row] * PATCH
        return left, top, left + plates.width * PATCH, top + plates.height * PATCH

    @property
    def patches(self) -> list[int]:
        """The patches that it covers, row by row."""
        left, top, right, bottom = (edge // PATCH for edge in self.box)
        return [row * (SIDE // PATCH) + column for row in range(top, bottom) for column in range(left, right)]


def put_sign(scene: Scene, rng: random.Random, size: str = "large") -> Sign:
    """Return a sign of a size of `PLATES` for a free cell of a scene."""
    taken = {(thing.row, thing.column) for thing in scene.things}
    free = [(row, column) for row in range(3) for column in range(3) if (row, column) not in taken]
    return Sign(rng.choice(WORDS), *rng.choice(free), PLATES[size])


def render_with(scene: Scene, sign: Sign) -> Image.Image:
    image = render(scene).image.copy()
    left, top, right, bottom = sign.box
    plate = Image.new("RGB", ((right - left) * SCALE, (bottom - top) * SCALE), (246, 244, 236))
    pen = ImageDraw.Draw(plate)
    pen.rectangle((0, 0, plate.width - 1, plate.height - 1), outline=(60, 56, 50), width=SCALE)
    size = plate.height
    while pen.textlength(sign.word, font=(font := ImageFont.load_default(size))) > 0.9 * plate.width:
        size -= 1
    pen.text((plate.width / 2, plate.height / 2), sign.word, fill=(24, 22, 20), font=font, anchor="mm")
    image.paste(plate.resize((right - left, bottom - top), Image.Resampling.BOX), (left, top))
    return image


def write_signs(folder: Path, seed: int, captions: int, held_out: int, size: str = "large") -> None:
    """Write `stage1.json`, `held_out.json` and their pictures into a folder, created when missing.

    `captions` are rows to train on, `held_out` rows to measure on, each with a pair of colour and shape that
    training never shows. `size` of the signs is one of `PLATES`.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, count, new in (("stage1.json", captions, False), (HELD_OUT, held_out, True)):
        rng, rows = random.Random(f"signs {seed} {name}"), []
        for number in range(count):
            scene = sample_scene(rng, held_out=new)
            sign = put_sign(scene, rng, size)
            row = f"{'new' if new else 'sign'}_{number:05d}"
            render_with(scene, sign).save(folder / "images" / f"{row}.png")
            turns = [{"from": "human", "value": "<image>\nRead the sign."}]
            turns.append({"from": "gpt", "value": f"{sign.word}."})
            rows.append({"id": row, "image": f"images/{row}.png", "conversations": turns})
        (folder / name).write_text(json.dumps(rows, indent=1), encoding="utf-8")
