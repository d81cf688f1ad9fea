"""Small annotation files, pictures and a tokenizer, made in the test's own folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from basic_lite.bench.data import byte_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a JSON array, or as lines where the name ends in `.jsonl`."""

    def write(rows: list[object], name: str = "rows.json", **options: object) -> Path:
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows), encoding="utf-8")
        else:
            path.write_text(json.dumps(rows, **options), encoding="utf-8")
        return path

    return write


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Make a picture with smooth parts and noise, the same for the same size."""

    def make(width: int, height: int) -> Image.Image:
        rng = np.random.default_rng(width * 10_007 + height)
        y, x = np.mgrid[:height, :width]
        smooth = np.stack(
            [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) % 256], axis=2
        )
        return Image.fromarray(((smooth + rng.integers(0, 128, smooth.shape)) % 256).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with ChatML's special tokens, one id per byte; nothing to download."""
    return byte_tokenizer()
