"""Pictures from bytes of any quality: opened by content, bounded in size, one kind of error.

Nothing else in the package opens a picture, so training, evaluation, chat and analysis see the same pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from basic_lite.data.archives import locate, read_bytes, read_file
from basic_lite.data.rows import ImageRef, RowFault, shown
from basic_lite.files import one_line

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


# Pictures: from bytes of any quality to what a vision tower takes.

Aspect = Literal["pad", "crop", "squash"]

STRIP: int = 512
"""Rows of a tall picture that are padded together."""

__all__ = ["Aspect", "ImageTransform", "load_image"]


@dataclass(frozen=True)
class ImageTransform:
    """From a picture to the square of pixels that a vision tower takes, as its own processor makes it.

        crop:    resize the shortest edge to `size`, cut `size x size` out of the middle        (LLaVA stage
            1)
        pad:     `expand2square` with the mean colour, resize to `size x size`                   (LLaVA stage
            2, evaluation)
        squash:  resize to `size x size`, whatever the aspect                                    (SigLIP's
            own way)

    Pixels stay uint8 until they are on the device: a quarter of the bytes to copy, and `normalise` is free
    there.

    Attributes:
        size: height and width of the result.
        mean: per channel, of pixels between 0 and 1.
        std: per channel.
        aspect: `"pad"`, `"crop"` or `"squash"`.
        resample: Pillow's number of the filter; 3 is bicubic.
        shortest_edge: what `crop` resizes the shortest edge to before it cuts; `None` means `size`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aspect: Aspect
    resample: int = 3
    shortest_edge: int | None = None

    def __post_init__(self) -> None:
        if self.aspect not in ("pad", "crop", "squash"):
            raise ValueError(f"aspect {self.aspect!r} is not one of 'pad', 'crop', 'squash'")
        if self.size < 1:
            raise ValueError(f"image size {self.size} is not positive")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the picture as uint8 `(3, size, size)`.

        Args:
            image: any mode and size.
        """
        image = rgb(image)
        if self.aspect == "pad":
            image = self._pad(image)
        elif self.aspect == "squash":
            image = image.resize((self.size, self.size), self.resample)
        else:
            image = self._crop(image)
        # Channel by channel: three times as fast as to permute what Pillow interleaves.
        return torch.from_numpy(np.stack([np.asarray(channel) for channel in image.split()]))

    def normalise(self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return `((pixels / 255 - mean) / std).to(dtype)`, computed in fp32 on the pixels' device.

        Args:
            pixels: `(I, 3, h, w)` uint8.
            dtype: of the result.

        Returns:
            `(I, 3, h, w)`.
        """
        scale, shift = _affine(self.mean, self.std, pixels.device)
        return (pixels.float() * scale - shift).to(dtype)

    @classmethod
    def from_processor(
        cls, processor_config: Mapping[str, Any], *, size: int | None = None, aspect: Aspect
    ) -> ImageTransform:
        """Make the transform that a `preprocessor_config.json` asks for.

        Args:
            processor_config: CLIP's, SigLIP's or DINOv2's; the nested `processor_config.json` is taken too.
            size: another height and width than the processor's, for resize and crop both.
            aspect: `"pad"` for LLaVA's square of the mean colour; `"crop"` for the processor's own way,
                which is a squash where it names height and width and cuts nothing (SigLIP); `"squash"`.

        Returns:
            The transform.

        Raises:
            ValueError: If the configuration does something that is not done here; says what.
        """
        config = processor_config.get("image_processor", processor_config)
        for switch in ("do_resize", "do_rescale"):
            if config.get(switch, True) is not True:
                raise ValueError(
                    f"the image processor has {switch}={config[switch]!r}; only true is supported"
                )
        factor = config.get("rescale_factor", 1 / 255)
        if abs(factor * 255 - 1) > 1e-6:
            raise ValueError(f"the image processor has rescale_factor={factor!r}; only 1/255 is supported")
        edge, squash = _edge(config.get("size", 224))
        crop = edge
        if config.get("do_center_crop", False):
            crop, _ = _edge(config.get("crop_size", edge))
            squash = squash and crop >= edge
        if config.get("do_normalize", True):
            try:
                mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
            except KeyError as error:
                raise ValueError(
                    f"the image processor has no {error}; give a preprocessor_config.json with it"
                ) from None
        else:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if aspect == "crop" and squash:
            aspect = "squash"
        shortest_edge = edge if size is None and aspect == "crop" and edge != crop else None
        return cls(size or crop, mean, std, aspect, int(config.get("resample", 3)), shortest_edge)

    def _pad(self, image: Image.Image) -> Image.Image:
        """Return `expand2square(image, mean).resize((size, size))` without ever making a large square.

        Pillow resizes rows first, then columns, and rounds to 8 bits in between. So a wide picture's rows are
        resized before the padding goes above and below them, which saves a third of the work, and those of a
        tall one are padded and resized strip by strip: 2,000 x 40,000 would otherwise become 4.8 GB.
        """
        # LLaVA's expand2square: the colour is cut to whole numbers, the odd row or column goes behind.
        colour = tuple(int(mean * 255) for mean in self.mean)
        width, height = image.size
        side, size = max(width, height), self.size
        rows = Image.new("RGB", (size, side), colour)
        if width >= height:
            rows.paste(image.resize((size, height), self.resample), (0, (side - height) // 2))
        else:
            left = (side - width) // 2
            for top in range(0, height, STRIP):
                bottom = min(top + STRIP, height)
                strip = Image.new("RGB", (side, bottom - top), colour)
                strip.paste(image.crop((0, top, width, bottom)), (left, 0))
                rows.paste(strip.resize((size, bottom - top), self.resample), (0, top))
        return rows.resize((size, size), self.resample)

    def _crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        edge = self.shortest_edge or self.size
        short, long = min(width, height), max(width, height)
        other = int(edge * long / short)
        width, height = (edge, other) if width <= height else (other, edge)
        image = image.resize((width, height), self.resample)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


@functools.lru_cache(maxsize=8)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `1 / (255 std)` and `mean / std`, `(3, 1, 1)`; kept, so that no step has to copy them."""
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32).view(3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32).view(3, 1, 1)
    return scale.to(device), shift.to(device)


def _edge(size: int | Mapping[str, int]) -> tuple[int, bool]:
    """Return a processor's size, and whether it names height and width rather than the shortest edge."""
    if isinstance(size, int):
        return size, False
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), False
    if size.get("height") and size.get("height") == size.get("width"):
        return int(size["height"]), True
    raise ValueError(
        f"the image processor has size={dict(size)!r}; supported: a number, shortest_edge, or a square"
    )
