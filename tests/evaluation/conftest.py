"""Small benchmarks on disk: pictures, folders in the original layout, and Parquet as the hub has it."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

EVAL = Path(__file__).parents[1] / "fixtures" / "eval"


@pytest.fixture
def fixtures():
    return EVAL


@pytest.fixture
def png():
    """Return a function colour -> an encoded picture."""

    def encode(colour="red", size=(4, 4)):
        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def folder(tmp_path, png):
    """Return a function that copies fixtures under new names and puts pictures beside them."""

    def make(files, pictures=()):
        for source, name in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(EVAL / source, tmp_path / name)
        for name in pictures:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(png())
        return tmp_path

    return make


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """Return a function that writes rows as a hub's Parquet file, and gives its folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(rows, path="data/test-00000-of-00001.parquet", image="image", several=False):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        data = datasets.Dataset.from_dict(columns)
        if image in columns:
            feature = datasets.List(datasets.Image()) if several else datasets.Image()
            data = data.cast_column(image, feature)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(tmp_path / path)
        return tmp_path

    return make


@pytest.fixture(scope="module")
def trained(trained_run, tmp_path_factory):
    """A folder with a copy of the trained run at `runs/stage1`, whose answers a module's tests share."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(trained_run, folder / "runs/stage1")
    return folder
