"""Pictures in more than one square: LLaVA-NeXT's grids of tiles, and what a picture then takes in a row.

The whole picture, squashed into one square, comes first. After it come tiles: the picture enlarged to the
grid that shows most of its pixels, centred on black and cut. Of their patches those that show nothing but the
black border are left out again, and every line of patches that stays ends with one trained newline vector:

    base patch x P | line 1: patch x columns, newline | line 2: ... | line `rows`

So each picture has its own number of patches. The newlines stand at image tokens too, but are no patches:
BASIC's terms neither weigh nor supervise them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from basic_lite.data.archives import locate
from basic_lite.data.pictures import ImageTransform, picture_size
from basic_lite.data.rows import Exif, RowFault
from basic_lite.data.workers import mapped
from basic_lite.files import load_table, save_table, table_places

if TYPE_CHECKING:
    from basic_lite.data.readers import Rows

Size = tuple[int, int]
"""Height and width, in pixels or tiles."""


@dataclass(frozen=True)
class Block:
    """What one picture takes in a row: the whole picture's patches, then lines that end with a newline."""

    base: int  # patches of the whole picture
    rows: int  # lines of the tiles' patches
    columns: int  # patches of a line
    squares: int  # of pixels: the whole picture and its tiles

    @property
    def tokens(self) -> int:
        """Image tokens, newlines included."""
        return self.base + self.rows * (self.columns + 1)

    @property
    def patches(self) -> int:
        """Image tokens that are patches."""
        return self.base + self.rows * self.columns

    def is_patch(self) -> torch.Tensor:
        """Return `(tokens,)` bool: which of the image tokens are patches, in their order."""
        line = torch.ones(self.columns + 1, dtype=torch.bool)
        line[-1] = False
        return torch.cat([torch.ones(self.base, dtype=torch.bool), line.repeat(self.rows)])


@dataclass(frozen=True)
class Tiling:
    """The grids that a picture may be cut into."""

    side: int  # of the tower's square input in pixels
    across: int  # patches along that side
    # Rows and columns of tiles; the first of several that show a picture equally well is taken
    grids: tuple[Size, ...]

    @classmethod
    def up_to(cls, tiles: int, side: int, patch_size: int) -> Tiling:
        """Return the grids of 2 to `tiles` tiles; of 4 they are the five of the published LLaVA-NeXT.

        No side is longer than 3 tiles, or than one more than that of the largest square. `side` of the
        tower's input and `patch_size` are in pixels. Raises ValueError if `tiles` is below 2.
        """
        if tiles < 2:
            raise ValueError(f"a grid has at least 2 tiles, got {tiles}")
        longest = max(3, math.isqrt(tiles) + 1)
        sides = range(1, longest + 1)
        grids = [(rows, columns) for rows in sides for columns in sides if 2 <= rows * columns <= tiles]
        return cls(side, side // patch_size, tuple(sorted(grids, key=lambda grid: (max(grid), grid))))

    @classmethod
    def of_config(cls, config: Any) -> Tiling:
        side = config.vision_config.image_size
        grids = tuple((height // side, width // side) for height, width in config.image_grid_pinpoints)
        return cls(side, side // config.vision_config.patch_size, grids)

    @property
    def pinpoints(self) -> list[list[int]]:
        """The grids in pixels, as `LlavaNextConfig` and its processor name them."""
        return [[rows * self.side, columns * self.side] for rows, columns in self.grids]

    def grid(self, size: Size) -> Size:
        """Return rows and columns of the tiles that a picture of this size is cut into."""
        height, width = select_best_resolution(size, self.pinpoints)
        return height // self.side, width // self.side

    def block(self, size: Size) -> Block:
        return _block(self, size)

    def blocks(self, sizes: Sequence[Sequence[int]]) -> list[Block]:
        return [_block(self, (int(height), int(width))) for height, width in sizes]

    def in_order(self, values: torch.Tensor, size: Size) -> torch.Tensor:
        """Return one value for each patch of a picture, `(patches,)`, in the order that they have in a row.

        `values` are `(squares, across, across)`, of the patches of all squares; `size` is the picture's.
        """
        block, (down, right) = self.block(size), self.grid(size)
        tiles = values[1:].view(down, right, self.across, self.across)
        lines = tiles.transpose(1, 2).reshape(down * self.across, -1)
        top, left = (len(lines) - block.rows) // 2, (lines.shape[1] - block.columns) // 2
        shown = lines[top : top + block.rows, left : left + block.columns]
        return torch.cat([values[0].flatten(), shown.flatten()])

    def largest(self) -> Block:
        """Return the block of the most tokens: of a picture that has the shape of its grid."""
        of_grids = (
            Block(self.across**2, rows * self.across, columns * self.across, 1 + rows * columns)
            for rows, columns in self.grids
        )
        return max(of_grids, key=lambda block: block.tokens)


@lru_cache(maxsize=1 << 16)
def _block(tiling: Tiling, size: Size) -> Block:
    if 0 in size:  # a picture that could not be measured
        return Block(tiling.across**2, 0, 0, 1)
    down, right = tiling.grid(size)
    rows, columns = down * tiling.across, right * tiling.across
    height, width = size
    # The border of the enlarged picture is cut in whole patches, the same number from either side. The
    # operations are LLaVA-NeXT's, one by one: rounded in another order some sizes would take another number
    # of image tokens. A thin picture may leave lines without a patch, or no line.
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    return Block(tiling.across**2, rows, columns, 1 + down * right)


@dataclass(frozen=True)
class TiledTransform(ImageTransform):
    """From a picture to its squares of pixels: the whole one, then its tiles row by row."""

    tiling: Tiling = field(kw_only=True)

    @classmethod
    def of(cls, transform: ImageTransform, tiling: Tiling) -> TiledTransform:
        """Return a transform's preparation with tiles; the whole picture is squashed."""
        values = {f.name: getattr(transform, f.name) for f in fields(ImageTransform)}
        return cls(**values | {"aspect": "squash", "shortest_edge": None}, tiling=tiling)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the squares as uint8 `(squares, 3, size, size)`."""
        image = self.upright(image)
        down, right = self.tiling.grid((image.height, image.width))
        height, width = down * self.size, right * self.size
        down_scale, right_scale = height / image.height, width / image.width
        if right_scale < down_scale:
            inner = width, min(math.ceil(image.height * right_scale), height)
        else:
            inner = min(math.ceil(image.width * down_scale), width), height
        canvas = Image.new("RGB", (width, height))  # black, as the published models were trained
        canvas.paste(image.resize(inner, self.resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        tiles = torch.from_numpy(np.array(canvas)).view(down, self.size, right, self.size, 3)
        tiles = tiles.permute(0, 2, 4, 1, 3).reshape(-1, 3, self.size, self.size)
        return torch.cat([super().__call__(image)[None], tiles])


def packed(pictures: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the squares of several pictures in one tensor, `(squares, 3, h, w)`; `None` without a picture.

    `pictures` are `(3, h, w)` each, or with tiles `(squares, 3, h, w)`.
    """
    if not pictures:
        return None
    return torch.stack(list(pictures)) if pictures[0].dim() == 3 else torch.cat(list(pictures))


def picture_sizes(rows: Rows, workers: int = 1, exif: Exif = "ignore") -> np.ndarray:
    """Return `(sum(images), 2)` int32, height and width of every picture in the rows' order.

    Every picture is opened once, only those that `exif` turns are decoded, and the table is kept beside the
    index. A picture that cannot be read is 0 x 0 in it; training meets it as a bad row.
    """
    if rows.parts[0] is not rows:  # each keeps its own
        return np.concatenate([picture_sizes(part, workers, exif) for part in rows.parts])
    root = hashlib.sha256(str(rows.images).encode("utf-8", "surrogateescape")).hexdigest()
    key = {"format": "1", "rows": rows.sha256, "images": root}
    key |= {} if exif == "ignore" else {"exif": exif}
    places = table_places(Path(rows.path), "sizes")
    loaded = load_table(places, key, {"size": np.int32})
    count = int(rows.index.images.sum())
    if loaded is not None and loaded[1]["size"].shape == (count, 2):
        return loaded[1]["size"]
    numbers = np.flatnonzero(rows.index.images)
    jobs = [part.tolist() for part in np.split(numbers, np.arange(_CHUNK, len(numbers), _CHUNK))]
    measured = mapped(partial(_sizes, rows, exif), jobs, workers)
    sizes = np.concatenate([np.zeros((0, 2), np.int32), *measured])
    save_table(places, key, {"size": sizes})
    return sizes


_CHUNK = 256
"""Rows that one worker measures at a time."""


def _sizes(rows: Rows, exif: Exif, numbers: list[int]) -> np.ndarray:
    sizes: list[Size] = []
    for row in numbers:
        try:
            images = rows[row].images
        except RowFault:
            images = ()
        for place in range(int(rows.index.images[row])):
            try:
                image = images[place]
                sizes.append(picture_size(locate(image).read(image.name), image.name, exif))
            except (RowFault, IndexError):
                sizes.append((0, 0))
    return np.array(sizes, np.int32).reshape(-1, 2)


def image_tokens(images: np.ndarray, sizes: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Return `(rows,)` int64, the image tokens of every row.

    `images` are `(rows,)` pictures of each row, `sizes` those that `picture_sizes` returns.
    """
    different, which = np.unique(sizes, axis=0, return_inverse=True)
    tokens = np.array([block.tokens for block in tiling.blocks(different.tolist())], np.int64)
    total = np.r_[0, np.cumsum(tokens[which.reshape(-1)])]
    ends = np.cumsum(images, dtype=np.int64)
    return total[ends] - total[ends - images]
