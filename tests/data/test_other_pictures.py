"""Pictures of other worlds: deep grey, transparency, animations, photos too large, other formats."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basic_lite.data import pictures
from basic_lite.data.pictures import ImageTransform, check_picture, load_image, value_range
from basic_lite.data.rows import ImageRef, RowFault

RAMP = np.linspace(0, 1, 60 * 40).reshape(40, 60)


def stored(image: Image.Image, format: str, **options: object) -> ImageRef:
    whole = io.BytesIO()
    image.save(whole, format, **options)
    return ImageRef(f"a.{format.lower()}", data=whole.getvalue())


def code_of(ref: ImageRef) -> str | None:
    try:
        check_picture(ref)
    except RowFault as fault:
        return fault.code
    return None


DEEP: dict[str, tuple[np.ndarray, str, float, float, str | None]] = {
    # values, format, which of them are black and white, and what the check says
    "12 bits in 16": ((RAMP * 4095).astype(np.uint16), "PNG", 0, 4095, "scaled_range"),
    "depth in millimetres": ((RAMP * 7000 + 500).astype(np.uint16), "PNG", 500, 7500, "scaled_range"),
    "all of 16 bits": ((RAMP * 65535).astype(np.uint16), "PNG", 0, 65536, None),
    "8 bits in 16": ((RAMP * 255).astype(np.uint16), "PNG", 0, 255, None),
    "CT": ((RAMP * 4000 - 1000).astype(np.int32), "TIFF", -1000, 3000, "scaled_range"),
    "float from 0 to 1": (RAMP.astype(np.float32), "TIFF", 0, 1, None),
    "float from -3 to 5": ((RAMP * 8 - 3).astype(np.float32), "TIFF", -3, 5, "scaled_range"),
    "float as grey": ((RAMP * 255).astype(np.float32), "TIFF", 0, 255, None),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_is_grey(kind: str) -> None:
    values, format, black, white, code = DEEP[kind]
    ref = stored(Image.fromarray(values), format)
    seen = np.asarray(load_image(ref))
    assert seen.shape == (40, 60, 3)
    expected = (values.astype(np.float64) - black) / (white - black) * 255
    assert np.abs(seen[..., 0] - expected).max() <= 1
    assert 120 < seen.mean() < 135  # the ramp's middle: neither black nor white
    assert code_of(ref) == code


def test_floats_that_are_no_numbers() -> None:
    values = (RAMP * 8 - 3).astype(np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    assert value_range(values)[:2] == pytest.approx((values[0, 3], 5))
    seen = np.asarray(load_image(stored(Image.fromarray(values), "TIFF")))
    assert seen[0, :3, 0].tolist() == [0, 255, 0]
    assert code_of(stored(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")) == "one_colour"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_white(mode: str) -> None:
    logo = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    logo.paste((0, 0, 0, 255), (5, 2, 15, 8))  # black on transparent black
    options = {}
    if mode == "P":
        image, options = Image.new("P", (20, 10), 1), {"transparency": 1}
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(0, (5, 2, 15, 8))
    elif mode == "RGB":
        image, options = Image.new("RGB", (20, 10), (1, 1, 1)), {"transparency": (1, 1, 1)}
        image.paste((0, 0, 0), (5, 2, 15, 8))
    else:
        image = logo.convert(mode)
    seen = np.asarray(load_image(stored(image, "PNG", **options)))
    expected = np.full((10, 20, 3), 255)
    expected[2:8, 5:15] = 0
    assert np.array_equal(seen, expected)
    half = np.asarray(load_image(stored(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")))
    assert abs(int(half[0, 0, 0]) - 127) <= 1


def test_one_colour_is_counted_and_a_blank_first_frame_said(picture: Callable) -> None:
    assert code_of(stored(Image.new("RGB", (30, 20), (3, 4, 5)), "PNG")) == "one_colour"
    assert code_of(stored(Image.new("RGB", (300, 200)), "JPEG")) == "one_colour"
    assert code_of(stored(picture(30, 20), "PNG")) is None
    frames = [picture(30, 20).quantize() for _ in range(2)]
    black = stored(Image.new("P", (30, 20)), "GIF", save_all=True, append_images=frames)
    with pytest.raises(RowFault, match="its first frame, the one that is read, is one colour") as said:
        check_picture(black)
    assert said.value.code == "one_colour"


def test_a_photo_of_too_many_pixels_is_decoded_at_half_its_size(
    picture: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = picture(200, 100).resize((1600, 800))
    ref = stored(photo, "JPEG")
    assert load_image(ref).size == (1600, 800)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1600 * 800 - 1)
    halved = load_image(ref)
    assert halved.size == (800, 400)
    difference = np.asarray(halved).astype(int) - np.asarray(photo.resize((800, 400), Image.Resampling.BOX))
    assert np.abs(difference).mean() < 12
    with pytest.raises(RowFault, match="at most 1,279,999 pixels are decoded"):
        load_image(stored(photo, "PNG"))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 800 * 400 - 1)
    with pytest.raises(RowFault, match="800 x 400; at most"):
        load_image(ref)


def test_exif_is_ignored_or_followed_by_the_transform(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 16, 16))  # blue on the left, as it is stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: blue at the top
    ref = stored(image, "PNG", exif=exif)
    assert code_of(ref) == "exif_rotation"
    left = ImageTransform(8, (0.5,) * 3, (0.5,) * 3, "squash")(load_image(ref))
    top = ImageTransform(8, (0.5,) * 3, (0.5,) * 3, "squash", exif="rotate")(load_image(ref))
    assert left[2, 4].tolist()[0] > 200 > 50 > left[2, 4].tolist()[-1]
    assert top[2, 0].min() > 200 > 50 > top[2, -1].max()
    grey = stored(image.convert("LA"), "PNG", exif=exif)  # is converted, and still knows
    turned = ImageTransform(8, (0.5,) * 3, (0.5,) * 3, "squash", exif="rotate")(load_image(grey))
    assert (turned[0, 0].float().mean() - turned[0, -1].float().mean()).abs() > 30
    with pytest.raises(ValueError, match="'ignore', 'rotate'"):
        ImageTransform(8, (0.5,) * 3, (0.5,) * 3, "squash", exif="maybe")


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"pip install 'basic-lite\[heic\]'"),
        (b"%PDF-1.7\n", "it is a PDF"),
        (b"\0" * 128 + b"DICM", "save it as a 16-bit PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"nothing at all", "no known picture format"),
    ],
)
def test_other_formats_are_named_with_a_remedy(data: bytes, remedy: str) -> None:
    with pytest.raises(RowFault, match=remedy) as refused:
        load_image(ImageRef("a.jpg", data=data))
    assert refused.value.code == "undecodable_image"
    assert "\n" not in str(refused.value)


@pytest.mark.skipif("AVIF" not in Image.registered_extensions().values(), reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_does(picture: Callable) -> None:
    ref = stored(picture(32, 16), "AVIF")
    assert load_image(ref).size == (32, 16)
    assert code_of(ref) is None
