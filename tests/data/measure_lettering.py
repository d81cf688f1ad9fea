"""How well patches with text are told from others, on pictures drawn here, whose text is known.

python tests/data/measure_lettering.py             # documents, charts, screenshots
python tests/data/measure_lettering.py PICTURES    # and what is marked in a folder of pictures without text

Each picture is drawn twice, with and without its text, and both are prepared as the tower's. A patch holds
text where a tenth of its pixels differ between the two, and none where no pixel does; what lies between is
left out. The second drawing says what is marked of a picture that holds none.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

from basic_lite.data.lettering import lettering
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.tiles import TiledTransform, Tiling

SIDE, PATCH = 336, 14
COUNT = 20
"""Pictures of each kind."""

SHARE, DIFFERENCE = 0.1, 24
"""Of a patch's pixels that differ, and by how much of 255 one must."""

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an "
    "they which one you were all her she there would their we him been has when who will no more if out so "
    "up said Revenue Quarter Temperature Berlin 2024 17.5 3,481 Total Settings Download Reply Archive Invoice"
).split()


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's fonts."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", f"DejaVu{name}.ttf"), size)


def line(rng: random.Random, words: int) -> str:
    """A line of text."""
    return " ".join(rng.choices(WORDS, k=words))


def document(rng: random.Random, text: bool) -> Image.Image:
    """An A4 page at 150 dots per inch: a heading, paragraphs of 10 to 13 points, a grey box and a rule."""
    image = Image.new("RGB", (1240, 1754), rng.choice([(255, 255, 255), (250, 248, 240), (240, 240, 240)]))
    pen, name, size = ImageDraw.Draw(image), rng.choice(["Sans", "Serif", "SansMono"]), rng.randint(21, 27)
    pen.rectangle((130, 1300, 620, 1620), fill=(200, 206, 215), outline=(90, 90, 90), width=3)
    pen.line((130, 210, 1110, 210), fill=(60, 60, 60), width=3)
    ink, y = rng.choice([(0, 0, 0), (40, 40, 60)]), 260
    heading = line(rng, 3)
    for paragraph in (line(rng, rng.randint(30, 70)) for _ in range(rng.randint(3, 6))):
        words, said = paragraph.split(), ""
        while words and y < 1260:
            if pen.textlength(f"{said} {words[0]}", font=font(name, size)) < 980:
                said = f"{said} {words.pop(0)}"
                continue
            if text:
                pen.text((130, y), said, fill=ink, font=font(name, size))
            said, y = "", y + round(1.4 * size)
        y += size
    if text:
        pen.text((130, 130), heading, fill=ink, font=font(f"{name}-Bold", 2 * size))
    return image


def chart(rng: random.Random, text: bool) -> Image.Image:
    """A chart of 800 x 600 pixels: bars, lines or points with axes, ticks, a legend and a title."""
    figure = Figure((8, 6), dpi=100)
    canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0.12, 0.14, 0.8, 0.74))
    numbers = np.random.default_rng(rng.getrandbits(32))
    for name in rng.sample(WORDS, 3):
        values = numbers.normal(10, 3, 6)
        kind = rng.choice(["plot", "scatter", "bar"])
        getattr(axes, kind)(range(6), values, label=name, **({"alpha": 0.6} if kind == "bar" else {}))
    axes.set_xticks(range(6), rng.sample(WORDS, 6))
    axes.set(title=line(rng, 4), xlabel=line(rng, 2), ylabel=line(rng, 2))
    if rng.random() < 0.5:
        axes.grid(alpha=0.4)
    axes.legend(loc="upper right")
    if not text:
        for shown in figure.findobj(Text):
            shown.set_alpha(0.0)  # it keeps its place
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def screenshot(rng: random.Random, text: bool) -> Image.Image:
    """A window of 1280 x 800 pixels, dark or light: a menu, a list, a button, lines and icons."""
    dark = rng.random() < 0.5
    ground, side, ink = (
        ((32, 34, 38), (44, 47, 53), (225, 225, 225)) if dark else ((252,) * 3, (236,) * 3, (30,) * 3)
    )
    image = Image.new("RGB", (1280, 800), ground)
    pen, size = ImageDraw.Draw(image), rng.randint(13, 17)

    def put(x: int, y: int, said: str, fill: tuple[int, ...] = ink) -> None:
        if text:
            pen.text((x, y), said, fill=fill, font=font("Sans", size))

    pen.rectangle((0, 0, 1280, 40), fill=side)
    pen.rectangle((0, 40, 240, 800), fill=side)
    for place in range(6):
        put(20 + 150 * place, 10, line(rng, 1))
    for row in range(rng.randint(8, 16)):
        pen.ellipse((18, 66 + 44 * row, 38, 86 + 44 * row), fill=tuple(rng.choices(range(60, 220), k=3)))
        put(54, 66 + 44 * row, line(rng, 2))
    for row in range(rng.randint(4, 9)):
        y = 80 + 76 * row
        pen.rounded_rectangle((280, y, 334, y + 54), 8, fill=tuple(rng.choices(range(60, 220), k=3)))
        put(352, y + 6, line(rng, rng.randint(4, 9)))
        put(352, y + 30, line(rng, rng.randint(6, 12)), fill=(140, 140, 140))
    pen.rounded_rectangle((1080, 740, 1240, 780), 8, fill=(40, 110, 220))
    put(1110, 750, line(rng, 1), fill=(255, 255, 255))
    return image


KINDS: dict[str, Callable[[random.Random, bool], Image.Image]] = {
    "document": document,
    "chart": chart,
    "screenshot": screenshot,
}


def ways() -> Iterator[tuple[str, ImageTransform]]:
    """Each preparation by name: the whole picture alone, and with up to 4 tiles."""
    mean = std = (0.5, 0.5, 0.5)
    squashed = ImageTransform(SIDE, mean, std, "squash", Image.Resampling.BICUBIC)
    yield "one square", squashed
    for tiles in (4, 9):
        yield f"up to {tiles} tiles", TiledTransform.of(squashed, Tiling.up_to(tiles, SIDE, PATCH))


def squares(transform: ImageTransform, image: Image.Image) -> torch.Tensor:
    """The squares of a picture that hold its own pixels at their finest: the tiles, or the whole."""
    pixels = transform(image)
    return pixels[1:] if pixels.dim() == 4 else pixels[None]


def changed(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The share of each patch's pixels that differ, `(squares, across, across)`."""
    differs = (one.int() - other.int()).abs().amax(1).gt(DIFFERENCE).float()
    return torch.nn.functional.avg_pool2d(differs, PATCH)


def known() -> Iterator[str]:
    """A line of a table for each kind of picture and preparation."""
    heads = ("with text", "found", "of those without text, marked", "without the text, marked")
    yield f"| picture | prepared as | patches {' | '.join(heads)} |"
    yield "|---|---|---|---|---|---|"
    for kind, draw in KINDS.items():
        for way, transform in ways():
            counts = np.zeros(6)
            for seed in range(COUNT):
                written, blank = (
                    squares(transform, draw(random.Random(seed), text)) for text in (True, False)
                )
                share, marked = changed(written, blank), lettering(written, PATCH)
                is_text, is_none, of_blank = share >= SHARE, share == 0, lettering(blank, PATCH)
                pairs = ((is_text, marked & is_text), (is_none, marked & is_none), (of_blank >= 0, of_blank))
                counts += [int(values.sum()) for pair in pairs for values in pair]
            text, found, none, alarms, everything, of_blanks = counts
            yield (
                f"| {kind} | {way} | {text:,.0f} | {found / text:.1%} | {alarms / none:.2%} | "
                f"{of_blanks / everything:.2%} |"
            )


def marked(folder: Path) -> Iterator[str]:
    """A table of a folder's pictures, each in one square: what is marked of them."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    transform, counts = next(ways())[1], np.zeros(3)
    for path in files:
        shown = squares(transform, Image.open(path))
        found = lettering(shown, PATCH)
        ends = (torch.nn.functional.max_pool2d(sign * shown.float(), PATCH).amax(1) for sign in (-1, 1))
        counts += [found.numel(), int(found.sum()), int((sum(ends) > 8).sum())]
    patches, hits, busy = counts
    yield f"| {len(files)} pictures of {folder.name} | patches | of those not of one colour |"
    yield "|---|---|---|"
    yield f"| marked, of {patches:,.0f} and {busy:,.0f} | {hits / patches:.2%} | {hits / busy:.2%} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*known(), sep="\n")
    for place in sys.argv[1:]:
        print("", *marked(Path(place)), sep="\n")
