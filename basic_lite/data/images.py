"""Pictures: from bytes of any quality to what a vision tower takes."""

from __future__ import annotations

import functools
import io
import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from basic_lite.data.layouts import shown
from basic_lite.data.samples import ImageRef, RowFault

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "MPO")
"""What is decoded. Not all that Pillow opens: EPS, for one, would start another program."""

MAX_PIXELS: int = 89_478_485
"""Largest picture that is decoded, 268 MB as RGB; where Pillow begins to warn."""

MAX_BYTES: int = 256 << 20
"""Largest file that is read."""

MAX_ASPECT: int = 200
"""Longest side over shortest: the shortest-edge resize of a 1 x 89,000,000 picture would take 90 GB."""

Aspect = Literal["pad", "crop", "squash"]


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
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

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
        width, height = image.size
        if width != height:
            side = max(width, height)
            # LLaVA's expand2square: the colour is cut to whole numbers, the odd row or column goes behind.
            square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in self.mean))
            square.paste(image, ((side - width) // 2, (side - height) // 2))
            image = square
        return image.resize((self.size, self.size), self.resample)

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


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a picture's bytes to RGB; see `load_image`."""
    image = open_header(data, name)
    try:
        image.load()  # until here only the header was read
        return rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # a decoder meets hostile bytes here and may raise whatever it likes
        raise RowFault(
            "undecodable_image", f"image {shown(name)} cannot be decoded: {_one_line(error)}"
        ) from None


def open_header(data: bytes, name: str) -> Image.Image:
    """Open a picture's bytes and check its size, without decoding its pixels; see `load_image`."""
    if not data:
        raise RowFault("undecodable_image", f"image {shown(name)} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow's own warning about large pictures; the check below is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise RowFault(
            "oversized_image", f"image {shown(name)} has more than {MAX_PIXELS:,} pixels"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        detail = (
            "no known picture format" if isinstance(error, Image.UnidentifiedImageError) else _one_line(error)
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


def read_bytes(ref: ImageRef) -> bytes:
    """Read a picture's encoded bytes; see `load_image` for the faults."""
    if ref.data is not None:
        data, size = ref.data, len(ref.data)
    else:
        path = inside(ref)
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):  # a pipe would hang, a folder cannot be read
                raise RowFault("missing_image", f"image {shown(ref.name)} is no file under {ref.root}")
            size = found.st_size
            data = b"" if size > MAX_BYTES else Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise RowFault("missing_image", f"image {shown(ref.name)} is not under {ref.root}") from None
        except OSError as error:
            raise RowFault(
                "missing_image", f"image {shown(ref.name)} cannot be read: {_one_line(error)}"
            ) from None
    if size > MAX_BYTES:
        raise RowFault(
            "oversized_image", f"image {shown(ref.name)} has {size:,} bytes; at most {MAX_BYTES:,} are read"
        )
    return data


def inside(ref: ImageRef) -> str:
    """Return the real path of a picture under its root.

    Raises:
        RowFault: `path_outside_root` if the path, its links followed, leaves the root.
    """
    if ref.root is None:
        raise RowFault("missing_image", f"image {shown(ref.name)} has neither bytes nor a folder to look in")
    if "\0" in ref.name:
        raise RowFault("path_outside_root", f"image {shown(ref.name)}: a path cannot hold a zero byte")
    if os.path.isabs(ref.name) or "://" in ref.name or ref.name[1:3] == ":\\":
        raise RowFault(
            "path_outside_root", f"image {shown(ref.name)}: the path must be relative to {ref.root}"
        )
    root = os.path.realpath(ref.root)
    try:
        path = os.path.realpath(os.path.join(root, ref.name))
        left = os.path.commonpath([root, path]) != root
    except (OSError, ValueError) as error:
        raise RowFault(
            "missing_image", f"image {shown(ref.name)} cannot be read: {_one_line(error)}"
        ) from None
    if left:
        raise RowFault(
            "path_outside_root", f"image {shown(ref.name)} leaves {ref.root}; keep pictures under that folder"
        )
    return path


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}..."
