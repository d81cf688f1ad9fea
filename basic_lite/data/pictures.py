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
from PIL import Image, ImageOps

from basic_lite.data.archives import locate, read_file
from basic_lite.data.rows import WHITE, Exif, ImageRef, RowFault, shown
from basic_lite.files import one_line

OTHER_FORMATS: tuple[tuple[bytes, int, str], ...] = (
    (b"ftypheic", 4, "an HEIC picture: pip install 'basic-lite[heic]' reads it"),
    (b"ftypheix", 4, "an HEIC picture: pip install 'basic-lite[heic]' reads it"),
    (b"ftypmif1", 4, "an HEIF picture: pip install 'basic-lite[heic]' reads it"),
    (b"ftypavif", 4, "an AVIF picture: pip install 'pillow>=11.3' reads it"),
    (b"%PDF", 0, "a PDF: save its page as PNG"),
    (b"%!PS", 0, "a PostScript file: save it as PNG"),
    (b"\0\0\0\x0cjP  ", 0, "a JPEG 2000 picture: save it as JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", 0, "a JPEG XL picture: save it as JPEG or PNG"),
    (b"\xff\x0a", 0, "a JPEG XL picture: save it as JPEG or PNG"),
    (b"8BPS", 0, "a Photoshop file: save it as PNG"),
    (b"DICM", 128, "a DICOM file: save it as a 16-bit PNG"),
    (b"<svg", 0, "an SVG drawing: save it as PNG"),
    (b"<?xml", 0, "an XML file, or an SVG drawing: save it as PNG"),
    (b"<!DOCTYPE", 0, "a web page, not a picture: download it again"),
    (b"<html", 0, "a web page, not a picture: download it again"),
    (b"version https://git-lfs", 0, "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
)
"""What files begin with that are not read, at which byte, and what to do."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "AVIF": ("avif",),
    "HEIF": ("heic", "heif", "hif"),
}
"""What is decoded, and what files of each format are called.

Not all that Pillow opens: EPS, for one, would start another program.
"""

Depth = Literal["decode", "header", "present"]
"""How much of a picture is checked; each includes the next."""

MAX_PIXELS: int = 89_478_485
"""Largest picture that is decoded, 268 MB as RGB; where Pillow begins to warn.

A JPEG of up to twice as many is decoded at half its size in each direction.
"""

MAX_ASPECT: int = 200
"""Longest side over shortest: the shortest-edge resize of a 1 x 89,000,000 picture would take 90 GB."""


def rgb(image: Image.Image) -> Image.Image:
    """Return a picture as RGB: transparency on white, and deep grey as `value_range` says.

    Pillow's own conversion would show what colour transparent pixels happen to have, black for most logos,
    and clip 16-bit grey to white. What was transparent is kept in `info`, for `on_background`.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    info, layers = image.info, None
    if _is_deep(image):
        values = np.asarray(image)
        low, high = value_range(values)[:2]
        scale = 255 / (high - low) if high > low else 0.0
        if (low, high) == (0, FULL_RANGE):
            scale = 1 / 256
        grey = np.nan_to_num((values.astype(np.float32) - low) * scale, nan=0.0, posinf=255.0, neginf=0.0)
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            layers = image
            image = _composed(layers, WHITE)
    image = image.convert("RGB")
    kept = {"exif": info.get("exif"), LAYERS: layers}
    image.info = {name: value for name, value in kept.items() if value is not None}
    return image


LAYERS: str = "layers"
"""Key in the `info` of a picture that was transparent: it, as RGBA."""


def _composed(layers: Image.Image, background: str) -> Image.Image:
    canvas = Image.new("RGB", layers.size, background)
    canvas.paste(layers, mask=layers.getchannel("A"))
    return canvas


def on_background(image: Image.Image, background: str) -> Image.Image:
    """Return a picture from `rgb` with `background` in place of white where it was transparent."""
    layers = image.info.get(LAYERS)
    if background == WHITE or layers is None or layers.size != image.size:
        return image
    composed = _composed(layers, background)
    composed.info = {name: value for name, value in image.info.items() if name != LAYERS}
    return composed


FULL_RANGE: int = 65_535
"""White of a picture that uses all of 16 bits."""


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


DEEP_GREY: str = (
    "0 to 1 (floats), 0 to 255, and 0 to 65535 with some above 32767 are black to white; "
    "of any other range the picture's own least and largest value are"
)
"""What `value_range` does, for a run's manifest."""


def value_range(values: np.ndarray) -> tuple[float, float, bool]:
    """Return which values of a deep grey picture become black and white, and whether they are its own.

    What is between 0 and 1 (of floats), 0 and 255, or 0 and 65,535 with some value in the upper half, is
    taken as it is. Everything else has a range of its own, such as 12 bits in a 16-bit file, depth in
    millimetres or Hounsfield units: its least value becomes black and its largest white.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return 0.0, 1.0, False
    low, high = float(finite.min()), float(finite.max())
    if low >= 0:
        if values.dtype.kind == "f" and high <= 1:
            return 0.0, 1.0, False
        if high <= 255:
            return 0.0, 255.0, False
        if FULL_RANGE / 2 < high <= FULL_RANGE:
            return 0.0, float(FULL_RANGE), False
    return low, high, True


def load_image(ref: ImageRef) -> Image.Image:
    """Read a picture by its content, whatever its name says, as RGB.

    The first frame of an animation; not turned by EXIF (`ImageTransform` may do that); see `rgb`. Raises
    RowFault `missing_image`, `path_outside_root`, `oversized_image` or `undecodable_image`, in one line.
    """
    return decoded(open_header(locate(ref).read(ref.name), ref.name), ref.name)


def open_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """Read a picture that no row names, a file or encoded bytes, as `load_image` reads a row's.

    `name` is what messages call it. Raises RowFault `missing_image`, `oversized_image` or
    `undecodable_image`, in one line.
    """
    return decoded(*_opened(source, name))


def picture_size(source: Path | bytes, name: str = "", exif: Exif = "ignore") -> tuple[int, int]:
    """Return height and width of a picture that no row names, as a transform with `exif` receives it.

    It is decoded only where EXIF turns it on its side; see `open_picture`.
    """
    image, name = _opened(source, name)
    if exif == "rotate" and _orientation(image) > 1:
        image = upright(decoded(image, name))  # decoders of some formats turn pictures themselves
    return image.height, image.width


def _opened(source: Path | bytes, name: str) -> tuple[Image.Image, str]:
    if isinstance(source, Path):
        source, name = read_file(source), name or source.name
    return open_header(source, name), name


def decoded(image: Image.Image, name: str) -> Image.Image:
    """Decode an opened picture to RGB; see `load_image`."""
    try:
        with _silence():
            image.load()  # until here only the header was read
            return rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # on hostile bytes a decoder may raise anything
        detail = f"image {shown(name)} cannot be decoded: {one_line(error)}"
        raise RowFault("undecodable_image", detail) from None


def open_header(data: bytes, name: str) -> Image.Image:
    """Open a picture's bytes and check its size, without decoding its pixels; raises as `load_image`."""
    given = f"image {shown(name)}"
    if not data:
        raise RowFault("undecodable_image", f"{given} is empty (0 bytes)")
    try:
        with _silence():
            image = Image.open(io.BytesIO(data), formats=_readable())
    except Image.DecompressionBombError:
        raise RowFault("oversized_image", f"{given} has more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise
    except Exception as error:
        detail = _unknown(data) if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
        raise RowFault("undecodable_image", f"{given} cannot be decoded: {detail}") from None
    width, height = image.size
    if width * height > MAX_PIXELS and image.format in ("JPEG", "MPO"):
        image.draft(None, (width // 2, height // 2))
        width, height = image.size
    given += f" is {width} x {height}"
    if width * height > MAX_PIXELS:
        raise RowFault("oversized_image", f"{given}; at most {MAX_PIXELS:,} pixels are decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RowFault("oversized_image", f"{given}: sides differ by more than {MAX_ASPECT} times")
    return image


@functools.cache
def _readable() -> tuple[str, ...]:
    """Return the formats of `SUFFIXES` that this installation decodes; HEIC takes the extra `heic`."""
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

        register_heif_opener()
    return tuple(name for name in SUFFIXES if name in Image.OPEN)


def _unknown(data: bytes) -> str:
    """Return what bytes are that no picture starts with, and what to do."""
    for start, place, remedy in OTHER_FORMATS:
        if data[place : place + len(start)] == start:
            return f"it is {remedy}"
    return "no known picture format"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Pillow's warnings from the terminal: an odd picture is read, or it is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_picture(ref: ImageRef, depth: Depth = "decode", background: str = WHITE) -> None:
    """Raise RowFault for what would keep a picture from training; the faults are those of `load_image`.

    Where nothing is wrong, raises the first of `PICTURE_NOTES` that holds. `depth` is `"decode"` to the last
    byte, only the `"header"`, or whether the file is `"present"`; transparency is put on `background`.
    """
    stored, given = locate(ref), f"image {shown(ref.name)}"
    other_name = RowFault("other_name", f"{given} is read as {shown(stored.name)}") if stored.name else None
    if depth == "present":
        if stored.size == 0:
            raise RowFault("undecodable_image", f"{given} is empty (0 bytes)")
        if other_name is not None:
            raise other_name
        return
    image = open_header(stored.read(ref.name), ref.name)
    content = "JPEG" if image.format == "MPO" else str(image.format)
    if depth == "decode":
        # An eighth of the size in each direction: every byte of a JPEG is still read, half of the work
        # is saved.
        image.draft(None, (1, 1))
        pixels = on_background(decoded(image, ref.name), background)
        if _is_deep(image):
            low, high, own = value_range(np.asarray(image))
            if own:
                detail = f"{given}: its values {low:g} to {high:g} become black to white"
                raise RowFault("scaled_range", detail)
        ranges = [pixels.getchannel(channel).getextrema() for channel in range(3)]
        if all(low == high for low, high in ranges) and min(pixels.size) > 1:
            which = "its first frame, the one that is read," if getattr(image, "n_frames", 1) > 1 else "it"
            raise RowFault("one_colour", f"{given}: {which} is one colour throughout")
    suffix = (stored.name or ref.name).rpartition(".")[2].lower()
    if suffix not in SUFFIXES[content] and any(suffix in names for names in SUFFIXES.values()):
        raise RowFault("wrong_suffix", f"{given} is a {content}; it is read all the same")
    if other_name is not None:
        raise other_name
    # For that tag Pillow decodes all pixels of other formats.
    orientation = _orientation(image) if depth == "decode" or content == "JPEG" else 1
    if orientation > 1:
        detail = f"{given} is turned by EXIF (orientation {orientation}) in viewers"
        raise RowFault("exif_rotation", detail)


def _orientation(image: Image.Image) -> int:
    """Return a picture's EXIF orientation, 1 where none can be read."""
    try:
        with _silence():
            orientation = image.getexif().get(0x0112, 1)
    except Exception:  # as of the pixels: hostile bytes
        return 1
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """Return a picture rotated as its EXIF tag says, without that tag."""
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image


Aspect = Literal["pad", "crop", "squash"]

STRIP: int = 512
"""Rows of a tall picture that are padded together."""


@dataclass(frozen=True)
class ImageTransform:
    """From a picture to the square of pixels that a vision tower takes, as its own processor makes it.

        crop:    resize the shortest edge to `size`, cut `size x size` out of the middle  (LLaVA's stage 1)
        pad:     `expand2square` with the mean colour, resize to `size x size`  (LLaVA's stage 2, evaluation)
        squash:  resize to `size x size`, whatever the aspect  (SigLIP's own way)

    Pixels stay uint8 until they are on the device: a quarter of the bytes to copy, and `normalise` is free
    there.
    """

    size: int  # height and width of the result
    mean: tuple[float, float, float]  # per channel, of pixels between 0 and 1
    std: tuple[float, float, float]  # per channel
    aspect: Aspect
    resample: int = 3  # Pillow's number of the filter; 3 is bicubic
    shortest_edge: int | None = None  # what `crop` resizes it to before it cuts; `None` means `size`
    exif: Exif = "ignore"  # `"rotate"` turns a picture as its EXIF says, `"ignore"` leaves it as it is stored
    background: str = WHITE  # what transparency is put on, `#rrggbb`

    def __post_init__(self) -> None:
        if self.aspect not in ("pad", "crop", "squash"):
            raise ValueError(f"aspect {self.aspect!r} is not one of 'pad', 'crop', 'squash'")
        if self.size < 1:
            raise ValueError(f"image size {self.size} is not positive")
        if self.exif not in ("ignore", "rotate"):
            raise ValueError(f"exif {self.exif!r} is not one of 'ignore', 'rotate'")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the picture, of any mode and size, as uint8 `(3, size, size)`."""
        image = on_background(rgb(self.upright(image)), self.background)
        if self.aspect == "pad":
            image = self._pad(image)
        elif self.aspect == "squash":
            image = image.resize((self.size, self.size), self.resample)
        else:
            image = self._crop(image)
        # Channel by channel: three times as fast as to permute what Pillow interleaves.
        return torch.from_numpy(np.stack([np.asarray(channel) for channel in image.split()]))

    def upright(self, image: Image.Image) -> Image.Image:
        """Return the picture as a viewer shows it: on the background, and turned if `exif` says so."""
        image = on_background(image, self.background)
        return upright(image) if self.exif == "rotate" else image

    def normalise(self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return `((pixels / 255 - mean) / std).to(dtype)`, computed in fp32 on the pixels' device.

        `pixels` and the result are `(I, 3, h, w)`; the pixels are uint8.
        """
        scale, shift = _affine(self.mean, self.std, pixels.device)
        return (pixels.float() * scale - shift).to(dtype)

    @classmethod
    def from_processor(
        cls,
        processor_config: Mapping[str, Any],
        *,
        size: int | None = None,
        aspect: Aspect,
        exif: Exif = "ignore",
        background: str = WHITE,
    ) -> ImageTransform:
        """Make the transform that a `preprocessor_config.json` asks for: CLIP's, SigLIP's or DINOv2's.

        The nested `processor_config.json` is taken too. `size` is another height and width than the
        processor's, for resize and crop both. `"crop"` is the processor's own way, which is a squash where it
        names height and width and cuts nothing (SigLIP); `"pad"` is LLaVA's square of the mean colour. Raises
        ValueError, saying what, if the configuration does something that is not done here.
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
        resample = int(config.get("resample", 3))
        return cls(size or crop, mean, std, aspect, resample, shortest_edge, exif, background)

    def _pad(self, image: Image.Image) -> Image.Image:
        """Return `expand2square(image, mean).resize((size, size))` without ever making a large square.

        Pillow resizes rows first, then columns, and rounds to 8 bits in between. So a wide picture's rows are
        resized before the padding goes above and below them, which saves a third of the work, and those of a
        tall one are padded and resized strip by strip: 2,000 x 40,000 would otherwise become 4.8 GB.
        """
        # LLaVA's expand2square: the colour is cut to whole numbers, the odd row or column goes after it.
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
