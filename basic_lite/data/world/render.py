"""A scene as a picture, and which thing covers which patch.

Pictures are drawn four times larger and averaged down, so edges are smooth, and the large drawing also gives
exact coverage. Whatever a picture shows beyond its scene (tilt, exact spot, shade, texture) comes from the
scene's seed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from basic_lite.data.world.scenes import SHAPES, Scene, Thing

SIDE = 96
"""Width and height of a picture in pixels."""

PATCH = 12
"""Width and height of a patch in pixels: 8 x 8 patches per picture."""

SCALE = 4
"""How many times larger a picture is drawn."""

_MARGIN = 6
_RADIUS = {"small": 8.6, "large": 14.2}
_PAINT = {
    "red": (216, 46, 52),
    "orange": (243, 139, 36),
    "yellow": (250, 214, 56),
    "green": (52, 158, 82),
    "blue": (42, 102, 212),
    "purple": (138, 68, 182),
    "white": (248, 248, 246),
    "black": (34, 34, 40),
}
# Muted and of middle brightness, so that every colour of a thing stands out, white and black among them.
_GROUND = (
    (158, 152, 140),
    (140, 152, 158),
    (152, 160, 146),
    (162, 148, 150),
    (148, 146, 164),
    (166, 158, 142),
)


@dataclass(frozen=True)
class Picture:
    """A drawn scene."""

    image: Image.Image  # RGB, `SIDE` x `SIDE`
    thing: tuple[int, ...]  # for each patch, row by row, the index of the thing that covers most of it, or -1
    share: tuple[float, ...]  # for each patch the share of its area that this thing covers, 0 to 1


def render(scene: Scene) -> Picture:
    """Draw a scene. The same scene always gives the same picture."""
    canvas, covered = _draw(scene)
    image = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    thing_of, share = _coverage(covered, len(scene.things))
    return Picture(image, thing_of, share)


def enlarged(scene: Scene) -> Image.Image:
    """Return the drawing that a scene's picture is averaged from, `SCALE` times as large, for reports."""
    return _draw(scene)[0]


def _draw(scene: Scene) -> tuple[Image.Image, np.ndarray]:
    """Return the large drawing, and for each of its pixels the index of the thing there, or -1."""
    rng = random.Random(scene.seed)
    canvas = _background(scene.texture, rng).resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.NEAREST)
    covered = np.full((SIDE * SCALE, SIDE * SCALE), -1, dtype=np.int8)
    light = rng.uniform(0, 2 * math.pi)
    for index, thing in enumerate(scene.things):
        # Only the thing's cell and a margin for its shadow are worked on: that is six times faster.
        left, top = (round((cell * SIDE / 3 - _MARGIN) * SCALE) for cell in (thing.column, thing.row))
        mask = _mask(thing, rng)
        box = (left, top, left + mask.width, top + mask.height)
        spot = canvas.crop(box)
        _paint(spot, mask, _shade(_PAINT[thing.colour], rng, 10), light)
        canvas.paste(spot, box)
        inside = Image.new("L", canvas.size, 0)
        inside.paste(mask, box)
        covered[np.asarray(inside) > 127] = index
    return canvas, covered


def outline(shape: str, radius: float) -> list[tuple[float, float]]:
    """Return a shape's corners around the origin, y downwards; `ring` is the outer edge of a ring.

    `radius` is half of the size; all shapes of one radius look about equally large.
    """
    full = 2 * math.pi
    if shape in ("circle", "ring"):
        r = radius * (0.92 if shape == "circle" else 1.0)
        return [(r * math.cos(full * i / 72), r * math.sin(full * i / 72)) for i in range(72)]
    if shape == "square":
        r = 0.82 * radius
        return [(-r, -r), (r, -r), (r, r), (-r, r)]
    if shape == "triangle":
        corners = [(math.sin(full * i / 3), -math.cos(full * i / 3)) for i in range(3)]
        return [(1.1 * radius * x, 1.1 * radius * y + 0.2 * radius) for x, y in corners]
    if shape == "diamond":
        return [(0, -1.12 * radius), (0.68 * radius, 0), (0, 1.12 * radius), (-0.68 * radius, 0)]
    if shape == "star":
        reach = [1.12 * radius * (1.0 if i % 2 == 0 else 0.45) for i in range(10)]
        return [(r * math.sin(full * i / 10), -r * math.cos(full * i / 10)) for i, r in enumerate(reach)]
    if shape == "cross":
        a, b = radius * 0.98, radius * 0.34
        quarter = [(-b, -a), (b, -a), (b, -b)]
        return [point for turn in range(4) for point in _turned(quarter, turn * full / 4)]
    assert shape == "heart", f"no outline for {shape}; shapes are {SHAPES}"
    points = []
    for i in range(72):
        t = full * i / 72
        x = 16 * math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        points.append((x * radius / 16.5, (y + 2) * radius / 16.5))
    return points


def _turned(points: list[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    c, s = math.cos(angle), math.sin(angle)
    return [(c * x - s * y, s * x + c * y) for x, y in points]


def _mask(thing: Thing, rng: random.Random) -> Image.Image:
    """Return the thing's area on its cell and a margin around that; it stays inside the cell."""
    radius = _RADIUS[thing.size] * rng.uniform(0.94, 1.04)
    cell = SIDE / 3
    room = 0.8 * max(cell / 2 - radius * 1.05, 0.0)
    x = _MARGIN + cell / 2 + rng.uniform(-room, room)
    y = _MARGIN + cell / 2 + rng.uniform(-room, room)
    tilt = math.radians(rng.uniform(-11, 11))
    side = round((cell + 2 * _MARGIN) * SCALE)
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    points = _turned(outline(thing.shape, radius), tilt)
    pen.polygon([((x + px) * SCALE, (y + py) * SCALE) for px, py in points], fill=255)
    if thing.shape == "ring":
        hole = radius * 0.52
        pen.ellipse([(v + d) * SCALE for d in (-hole, hole) for v in (x, y)], fill=0)
    return mask


def _paint(canvas: Image.Image, mask: Image.Image, colour: tuple[int, int, int], light: float) -> None:
    """Paint an area with a soft shadow, a shine from the light's side and a darker rim."""
    dx, dy = round(5 * math.cos(light)), round(5 * math.sin(light))
    shadow = ImageChops.offset(mask.filter(ImageFilter.GaussianBlur(5)), -dx, -dy).point(lambda v: v * 0.32)
    canvas.paste((20, 22, 28), mask=shadow)
    canvas.paste(tuple(int(c * 0.78) for c in colour), mask=mask)
    inner = mask.filter(ImageFilter.MinFilter(5))
    canvas.paste(colour, mask=inner)
    shine = ImageChops.subtract(inner, ImageChops.offset(inner.filter(ImageFilter.GaussianBlur(9)), -dx, -dy))
    canvas.paste((255, 255, 255), mask=shine.point(lambda v: v * 0.30))


def _shade(colour: tuple[int, int, int], rng: random.Random, spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return red, green, blue


def _background(texture: str, rng: random.Random) -> Image.Image:
    ground = _shade(rng.choice(_GROUND), rng, 8)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    step = rng.uniform(10, 16)
    turns, turns_across = 2 * np.pi * along / step, 2 * np.pi * across / step
    pattern = {
        "grain": np.zeros_like(x),
        "stripes": np.sin(turns),
        "checks": np.clip(5 * np.sin(turns / 2) * np.sin(turns_across / 2), -1, 1),
        "dots": np.clip(4 * (np.cos(turns) * np.cos(turns_across) - 0.55), -1, 1),
        "waves": np.sin(turns + 1.5 * np.sin(0.4 * turns_across)),
    }[texture]
    slope = (along - along.mean()) / SIDE
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, (SIDE, SIDE))
    level = 7 * pattern + 14 * slope + (5 if texture == "grain" else 2.5) * noise
    pixels = np.asarray(ground, dtype=np.float32) + level[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")


def _coverage(covered: np.ndarray, things: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the leading thing of every patch and the share it covers."""
    grid, step = SIDE // PATCH, PATCH * SCALE
    patches = covered.reshape(grid, step, grid, step).swapaxes(1, 2).reshape(grid * grid, -1)
    counts = np.stack([(patches == index).sum(1) for index in range(things)])
    leader, most = counts.argmax(0), counts.max(0)
    named = np.where(most > 0, leader, -1)
    return tuple(int(i) for i in named), tuple(float(m) / step**2 for m in most)
