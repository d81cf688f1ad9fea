"""A picture looks the same to training, evaluation, chat and analysis, or is refused by each in one line."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.hostile_inputs import chunk, png
from PIL import Image
from tiny import tiny_assembled

import basic_lite
from basic_lite.analysis.samples import choose_samples
from basic_lite.chat import Chat, recall
from basic_lite.data.pictures import load_image, open_picture
from basic_lite.data.rows import ImageRef
from basic_lite.evaluation import tsv
from basic_lite.evaluation.answer import Prompt, _with_pictures
from basic_lite.evaluation.question import Question, StoredImage


def in_training(path: Path) -> Image.Image:
    return load_image(ImageRef(path.name, root=str(path.parent)))


def in_a_data_set(path: Path, key: str) -> Image.Image | None:
    cell = {"bytes": None, "path": None} | {key: path.read_bytes() if key == "bytes" else str(path)}
    return Question(5, "?", StoredImage([{"image": cell}], 0), 8).open_image()


WAYS: dict[str, Callable[[Path], Image.Image | None]] = {
    "training, from a file": in_training,
    "training, from a row's bytes": lambda path: load_image(ImageRef("row 1", data=path.read_bytes())),
    "evaluation, from a file": lambda path: Question(5, "?", path, 8).open_image(),
    "evaluation, from bytes": lambda path: Question(5, "?", path.read_bytes(), 8).open_image(),
    "evaluation, from a data set's bytes": lambda path: in_a_data_set(path, "bytes"),
    "evaluation, from a data set's path": lambda path: in_a_data_set(path, "path"),
    "analysis": lambda path: choose_samples(path.parent, None, 1).chosen[0].open(),
    "an export's reader": open_picture,
}


@pytest.fixture
def deep(tmp_path) -> tuple[Path, np.ndarray]:
    """A 16-bit grey PNG whose values Pillow's own conversion would clip to white."""
    values = np.arange(300, 300 + 40 * 60 * 27, 27, dtype=np.uint16).reshape(40, 60)
    Image.fromarray(values).save(tmp_path / "deep.png")
    return tmp_path / "deep.png", values


@pytest.mark.parametrize("way", WAYS)
def test_16_bit_grey_is_grey_wherever_it_is_opened(way, deep):
    path, values = deep
    seen = WAYS[way](path)
    assert seen is not None
    assert seen.mode == "RGB"
    expected = np.repeat((values // 256)[:, :, None], 3, axis=2)
    assert np.array_equal(np.asarray(seen), expected)
    assert 50 < expected.mean() < 200  # neither black nor white: the comparison says something


def test_a_model_gets_the_same_pixels_in_training_evaluation_and_chat(deep):
    path, _ = deep
    assembled = tiny_assembled("llama")
    trained = assembled.transform("pad")(in_training(path))
    prompt = Prompt(Question(5, "?", path, 8), [1])
    evaluated = next(_with_pictures(assembled, [[prompt]]))[0].shown
    chat = Chat(assembled)
    chat.show(path)
    page = Chat(assembled, 8)
    recall(page, [{"role": "user", "content": [{"path": str(path)}, "what"]}])
    assert evaluated is not None
    for pixels in (evaluated[0], chat.waiting[0].pixels, page.waiting[0].pixels):
        assert torch.equal(pixels, trained)


@pytest.fixture
def huge(tmp_path) -> Path:
    """200 megapixels by its header, a few bytes on disk: Pillow raises for it before anything is decoded."""
    path = tmp_path / "huge.png"
    path.write_bytes(png(20_000, 10_000, chunk(b"IDAT", b"\0" * 40)))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(path.read_bytes()))
    return path


@pytest.mark.parametrize("way", WAYS)
def test_200_megapixels_are_one_line_wherever_they_are_opened(way, huge):
    with pytest.raises(ValueError, match=r"more than 89,478,485 pixels") as refused:
        WAYS[way](huge)
    assert "\n" not in str(refused.value)


def test_200_megapixels_are_one_line_in_a_chat_and_in_an_mmbench_file(huge):
    with pytest.raises(ValueError, match=r"image 'huge.png' has more than 89,478,485 pixels"):
        Chat(tiny_assembled("llama")).show(huge)
    with pytest.raises(ValueError, match=r"MMBench row 7: image '7' has more than 89,478,485 pixels"):
        tsv.picture_of(base64.b64encode(huge.read_bytes()).decode(), "MMBench row 7")


def test_a_missing_file_does_not_search_the_archives_beside_it(tmp_path):
    (tmp_path / "pictures.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"^image '.*' does not exist$"):
        open_picture(tmp_path / "none.png")


def test_nothing_else_in_the_package_opens_a_picture():
    opens = re.compile(
        r"\bImage\.open\b|from PIL\.Image import .*\bopen\b|\bimread\b|\b(read|decode)_image\("
    )
    modules = Path(basic_lite.__file__).parent.rglob("*.py")
    opening = {path.name for path in modules if opens.search(path.read_text(encoding="utf-8"))}
    assert opening == {"pictures.py"}
