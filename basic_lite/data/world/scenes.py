"""What is where: things, scenes, and which combinations of colour and shape are held out.

A scene is one to four things on a 3 x 3 grid of places. No two things of a scene share both colour and
shape, so "the red star" always means one thing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
SIZES = ("small", "large")
TEXTURES = ("grain", "stripes", "checks", "dots", "waves")

HELD_OUT = frozenset(zip(COLOURS, SHAPES, strict=True))
"""Eight of the 64 pairs, every colour and every shape once: no training picture has them."""

SEEN = frozenset((colour, shape) for colour in COLOURS for shape in SHAPES) - HELD_OUT
"""The 56 pairs that training scenes are made of."""

EVERY_PAIR = SEEN | HELD_OUT

PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""Names of the cells of the grid, row by row."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    colour: str  # one of `COLOURS`
    shape: str  # one of `SHAPES`
    size: str  # one of `SIZES`
    row: int  # of its cell, 0 at the top
    column: int  # of its cell, 0 at the left

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape, which together name the thing in its scene."""
        return self.colour, self.shape

    @property
    def place(self) -> str:
        """The name of its cell, one of `PLACES`."""
        return PLACES[3 * self.row + self.column]


@dataclass(frozen=True)
class Scene:
    """A whole scene."""

    things: tuple[Thing, ...]  # one to four, in different cells
    texture: str  # of the background, one of `TEXTURES`; no caption or question speaks of it
    seed: int  # of all that a picture shows and no sentence says: jitter, tilt, shades


def sample_scene(
    rng: random.Random,
    held_out: bool = False,
    most: int = 4,
    pairs: frozenset[tuple[str, str]] = SEEN,
) -> Scene:
    """Draw a scene of 1 to `most` (at most 4) things in random order.

    With `held_out` at least one thing is of a held-out pair; all others are drawn from `pairs`.
    """
    count = rng.choices((1, 2, 3, 4)[:most], weights=(1, 3, 4, 4)[:most])[0]
    drawn = rng.sample(sorted(pairs), count)
    # Chance alone rarely repeats a colour or a shape, and counting or comparing needs repeats.
    for i in range(1, count):
        if rng.random() < 0.5:
            colour, shape = rng.choice(drawn[:i])
            alike = [p for p in sorted(pairs) if (p[0] == colour) != (p[1] == shape) and p not in drawn]
            drawn[i] = rng.choice(alike)
    if held_out:
        drawn[0] = rng.choice(sorted(HELD_OUT))
    cells = rng.sample(range(9), count)
    things = [
        Thing(colour, shape, rng.choice(SIZES), *divmod(cell, 3))
        for (colour, shape), cell in zip(drawn, cells, strict=True)
    ]
    rng.shuffle(things)
    return Scene(tuple(things), rng.choice(TEXTURES), rng.getrandbits(32))
