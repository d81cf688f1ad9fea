import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from basic_lite.data import archives, pictures
from basic_lite.data.pictures import ImageTransform, load_image
from basic_lite.data.rows import ImageRef, RowFault

SIZES = [
    (1, 1),
    (333, 500),
    (500, 333),
    (336, 336),
    (7, 900),
    (1200, 800),
    (335, 337),
    (20, 11),
    (427, 640),
    (300, 1100),
]
CLIP = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}
SIGLIP = {
    "do_rescale": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
DINO = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"shortest_edge": 256},
}


def reference(processor_class: type, config: dict, image: Image.Image, **options: object) -> tuple:
    """The processor's uint8 pixels and its normalised ones."""
    processor = processor_class(**{**config, **options})
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    return raw, processor(image, return_tensors="pt")["pixel_values"][0]


def assert_same(
    transform: ImageTransform, image: Image.Image, raw: torch.Tensor, normal: torch.Tensor
) -> None:
    pixels = transform(image)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert torch.equal(pixels, raw.to(torch.uint8))
    assert (transform.normalise(pixels[None])[0] - normal).abs().max() < 1e-5  # asked for: 1/255


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_clips_processor(size: tuple[int, int], picture: Callable) -> None:
    image = picture(*size)
    transform = ImageTransform.from_processor(CLIP, size=None, aspect="crop")
    assert_same(transform, image, *reference(CLIPImageProcessorPil, CLIP, image))


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_llavas_expand2square(size: tuple[int, int], picture: Callable) -> None:
    image = picture(*size)
    transform = ImageTransform.from_processor(CLIP, size=None, aspect="pad")
    assert_same(transform, image, *reference(LlavaImageProcessorPil, CLIP, image, do_pad=True))
    width, height = image.size  # LLaVA's own function, written out
    square = Image.new("RGB", (max(size), max(size)), (122, 116, 104))
    square.paste(image, ((max(size) - width) // 2, (max(size) - height) // 2))
    assert_same(transform, image, *reference(CLIPImageProcessorPil, CLIP, square))


@pytest.mark.parametrize("size", SIZES)
def test_siglip_squashes_and_dino_crops_out_of_256(size: tuple[int, int], picture: Callable) -> None:
    image = picture(*size)
    transform = ImageTransform.from_processor(SIGLIP, size=None, aspect="crop")
    assert transform.aspect == "squash"
    assert_same(transform, image, *reference(SiglipImageProcessorPil, SIGLIP, image))
    transform = ImageTransform.from_processor(DINO, size=None, aspect="crop")
    assert (transform.size, transform.shortest_edge) == (224, 256)
    assert_same(transform, image, *reference(BitImageProcessorPil, DINO, image))


def test_size_changes_resize_and_crop_together(picture: Callable) -> None:
    image = picture(333, 500)
    for config in (CLIP, DINO):
        transform = ImageTransform.from_processor(config, size=112, aspect="crop")
        small = {**config, "size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
        assert_same(transform, image, *reference(CLIPImageProcessorPil, small, image))
    assert ImageTransform.from_processor(SIGLIP, size=112, aspect="crop").aspect == "squash"
    nested = ImageTransform.from_processor({"image_processor": CLIP}, size=112, aspect="pad")
    assert nested == ImageTransform.from_processor(CLIP, size=112, aspect="pad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize=False"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"size": {"longest_edge": 900}}, "longest_edge"),
        ({"size": {"height": 3, "width": 4}}, "size="),
    ],
)
def test_processors_that_do_something_else(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTransform.from_processor({**CLIP, **change}, aspect="pad")
    with pytest.raises(ValueError, match="image_mean"):
        ImageTransform.from_processor({"size": 224}, aspect="pad")
    with pytest.raises(ValueError, match="'pad', 'crop', 'squash'"):
        ImageTransform.from_processor(CLIP, aspect="stretch")


def test_normalise_in_low_precision(picture: Callable) -> None:
    transform = ImageTransform.from_processor(CLIP, aspect="pad")
    pixels = torch.stack([transform(picture(40, 30)), transform(picture(30, 40))])
    assert transform.normalise(pixels, torch.bfloat16).dtype == torch.bfloat16
    mean, std = (torch.tensor(CLIP[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    exact = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(transform.normalise(pixels).double(), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        transform.normalise(pixels, torch.bfloat16), exact.to(torch.bfloat16), atol=0.02, rtol=0
    )


def save(path: Path, image: Image.Image, format: str, **options: object) -> ImageRef:
    image.save(path, format, **options)
    return ImageRef(path.name, root=str(path.parent))


def test_content_decides_not_the_name(tmp_path: Path, picture: Callable) -> None:
    image = picture(30, 20)
    loaded = load_image(save(tmp_path / "a.jpg", image, "PNG"))
    assert (loaded.mode, loaded.size) == ("RGB", (30, 20))
    assert np.array_equal(np.array(loaded), np.array(image))
    frames = [picture(8, 8).quantize(), picture(8, 9).crop((0, 0, 8, 8)).quantize()]
    loaded = load_image(save(tmp_path / "b.jpg", frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.array_equal(np.array(loaded), np.array(frames[0].convert("RGB")))  # the first frame


def test_modes(tmp_path: Path, picture: Callable) -> None:
    image = picture(16, 12)
    for mode, format in (
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("1", "PNG"),
        ("LA", "PNG"),
    ):
        loaded = load_image(save(tmp_path / "a", image.convert(mode), format))
        assert (loaded.mode, loaded.size) == ("RGB", (16, 12))
    deep = np.arange(192, dtype=np.uint16).reshape(12, 16) * 340
    loaded = load_image(save(tmp_path / "b.png", Image.fromarray(deep), "PNG"))
    assert (
        np.abs(np.array(loaded)[..., 0].astype(int) - deep / 257).max() <= 1
    )  # Pillow would clip it to white


def test_two_pictures_in_one_jpeg(tmp_path: Path, picture: Callable) -> None:
    second = picture(30, 20).rotate(180)  # MPO, as stereo cameras and telephones write it
    loaded = load_image(
        save(tmp_path / "a.jpg", picture(30, 20), "MPO", save_all=True, append_images=[second])
    )
    assert np.abs(np.array(loaded).astype(int) - np.array(picture(30, 20))).mean() < 40


def test_exif_rotation_is_left_alone_as_llava_does(tmp_path: Path, picture: Callable) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(save(tmp_path / "a.jpg", picture(30, 20), "JPEG", exif=exif)).size == (30, 20)


def code_of(ref: ImageRef) -> str:
    with pytest.raises(RowFault) as caught:
        load_image(ref)
    assert "\n" not in str(caught.value)
    assert repr(ref.name)[:20] in str(caught.value)
    return caught.value.code


def test_what_is_no_picture(tmp_path: Path, picture: Callable) -> None:
    root = str(tmp_path)
    whole = io.BytesIO()
    picture(64, 64).save(whole, "JPEG")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:-300])
    (tmp_path / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (
        ("empty.jpg", "0 bytes"),
        ("text.jpg", "it is a web page, not a picture"),
        ("cut.jpg", "truncated"),
        ("eps.jpg", "it is a PostScript file: save it as PNG"),  # Pillow would start Ghostscript
    ):
        assert code_of(ImageRef(name, root)) == "undecodable_image"
        with pytest.raises(RowFault, match=reason):
            load_image(ImageRef(name, root))
    for name in ("none.jpg", "folder.jpg", "pipe.jpg", "text.jpg/a.jpg", "a" * 3000):
        assert code_of(ImageRef(name, root)) == "missing_image"


def test_outside_the_root(tmp_path: Path, picture: Callable) -> None:
    (tmp_path / "in").mkdir()
    outside = tmp_path / "secret.png"
    picture(4, 4).save(outside)
    os.symlink(outside, tmp_path / "in" / "link.png")
    save(tmp_path / "in" / "ok.png", picture(4, 4), "PNG")
    root = str(tmp_path / "in")
    for name in (
        "../secret.png",
        str(outside),
        "link.png",
        "a/../../secret.png",
        "https://a/b.png",
        "a\0b",
        "C:\\x.png",
    ):
        assert code_of(ImageRef(name, root)) == "path_outside_root"
    assert load_image(ImageRef("x/../ok.png", root)).size == (4, 4)


def test_gigantic_pictures_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path)
    for name, size in (
        ("bomb.png", (14_000, 14_000)),
        ("large.png", (10_000, 9_000)),
        ("thin.png", (1, 10_000)),
    ):
        Image.new("1", size).save(tmp_path / name)
        monkeypatch.setattr(pictures, "rgb", None)  # decoding would fail
        assert code_of(ImageRef(name, root)) == "oversized_image"
        monkeypatch.undo()
    with open(tmp_path / "long.jpg", "wb") as file:
        file.truncate(archives.MAX_BYTES + 1)
    assert code_of(ImageRef("long.jpg", root)) == "oversized_image"
