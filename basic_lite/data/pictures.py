"""Pictures from bytes of any quality: opened by content, bounded in size, one kind of error.

Nothing else in the package opens a picture, so training, evaluation, chat and analysis see the same pixels.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from basic_lite.data.roots import locate, read_bytes, read_file
from basic_lite.data.samples import ImageRef, RowFault
from basic_lite.data.texts import one_line, shown

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is decoded. Not all that Pillow opens: EPS, for one, would start another program."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
}
"""What files of each format are called."""

Depth = Literal["decode", "header", "present"]
"""How closely a check looks at a picture; each includes the next."""

MAX_PIXELS: int = 89_478_485
"""Largest picture that is decoded, 268 MB as RGB; where Pillow begins to warn."""

MAX_ASPECT: int = 200
"""Longest side over shortest: the shortest-edge resize of a 1 x 89,000,000 picture would take 90 GB."""


def rgb(image: Image.Image) -> Image.Image:
    """Return `image.convert("RGB")`, but 16-bit grey scaled to 8 bits, which Pillow would clip to white."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = (
            256 if values.max(initial=0) > 255 else 1
        )  # Pillow opens some 16-bit PNG and TIFF files as "I"
        image = Image.fromarray((values / scale).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def load_image(ref: ImageRef) -> Image.Image:
    """Read a picture by its content, whatever its name says, as RGB.

    As LLaVA reads it: the first frame of an animation, no rotation from EXIF, transparency dropped.

    Args:
        ref: where the bytes are.

    Returns:
        The decoded picture.

    Raises:
        RowFault: `missing_image`, `path_outside_root`, `oversized_image` or `undecodable_image`, in one line.
    """
    return decode(read_bytes(ref), ref.name)


def open_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """Read a picture that no row names, a file or encoded bytes, as `load_image` reads a row's.

    Args:
        source: the file, or the bytes.
        name: what messages call it; empty for the file's name.

    Returns:
        The decoded picture, RGB.

    Raises:
        RowFault: `missing_image`, `oversized_image` or `undecodable_image`, in one line.
    """
    if isinstance(source, Path):
        return decode(read_file(source), name or source.name)
    return load_image(ImageRef(name, data=source))


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a picture's bytes to RGB; see `load_image`."""
    return decoded(open_header(data, name), name)


def decoded(image: Image.Image, name: str) -> Image.Image:
    """Decode an opened picture to RGB; see `load_image`."""
    try:
        with _silence():
            image.load()  # until here only the header was read
            return rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # a decoder meets hostile bytes here and may raise whatever it likes
        raise RowFault(
            "undecodable_image", f"image {shown(name)} cannot be decoded: {one_line(error)}"
        ) from None


def open_header(data: bytes, name: str) -> Image.Image:
    """Open a picture's bytes and check its size, without decoding its pixels; see `load_image`."""
    if not data:
        raise RowFault("undecodable_image", f"image {shown(name)} is empty (0 bytes)")
    try:
        with _silence():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise RowFault(
            "oversized_image", f"image {shown(name)} has more than {MAX_PIXELS:,} pixels"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        detail = (
            "no known picture format" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
        )
        raise RowFault("undecodable_image", f"image {shown(name)} cannot be decoded: {detail}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RowFault(
            "oversized_image",
            f"image {shown(name)} is {width} x {height}; at most {MAX_PIXELS:,} pixels are decoded",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RowFault(
            "oversized_image",
            f"image {shown(name)} is {width} x {height}: sides differ by more than {MAX_ASPECT} times",
        )
    return image


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Pillow's remarks about odd pictures from the terminal: one is read, or it is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_picture(ref: ImageRef, depth: Depth = "decode") -> None:
    """Look for what would keep a picture from training.

    Args:
        ref: where it is.
        depth: `"decode"` to the last byte, only the `"header"`, or whether the file is `"present"`.

    Raises:
        RowFault: those of `load_image`, and `wrong_suffix` where nothing else is wrong.
    """
    if depth == "present":
        if locate(ref).size == 0:
            raise RowFault("undecodable_image", f"image {shown(ref.name)} is empty (0 bytes)")
        return
    image = open_header(read_bytes(ref), ref.name)
    content = "JPEG" if image.format == "MPO" else image.format
    if depth == "decode":
        # An eighth of the size in each direction: every byte of a JPEG is still read, half of the work
        # is saved.
        image.draft(None, (1, 1))
        decoded(image, ref.name)
    suffix = ref.name.rpartition(".")[2].lower()
    if suffix not in SUFFIXES[content] and any(suffix in names for names in SUFFIXES.values()):
        raise RowFault("wrong_suffix", f"image {shown(ref.name)} is a {content}; it is read all the same")
