import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from basic_lite.recipes.data import app
from data.made_rows import FIXTURES
from typer.testing import CliRunner

from basic_lite.data.checks import check_budget, check_pictures, check_rows
from basic_lite.data.pictures import load_image
from basic_lite.data.readers import open_rows
from basic_lite.data.stream import Stream


def published(name: str, picture: Callable) -> list[dict]:
    """The rows of a fixture, with pictures where it says `<Image>`."""
    rows = json.loads((FIXTURES / name).read_text())
    for row in rows:
        if row.get("image"):
            row["image"] = picture(30, 20)
        if "images" in row:
            row["images"] = [picture(30 + i, 20) for i in range(len(row["images"]))]
    return rows


FEATURES = {
    "llava_next_rows.json": {"image": datasets.Image()},
    "cauldron_rows.json": {"images": datasets.List(datasets.Image())},
    "finevision_rows.json": {"images": datasets.List(datasets.Image())},
}
EXPECTED = {
    "llava_next_rows.json": [
        ("n1", 1, "fixture", [("user", "<image>\nWhat?"), ("assistant", "Cup.")]),
        ("n2", 0, "text", [("user", "Hi"), ("assistant", "Hello")]),
    ],
    "cauldron_rows.json": [
        (
            "",
            1,
            "fixture",
            [
                ("user", "<image>\nWhat is shown?"),
                ("assistant", "A cup."),
                ("user", "Color?"),
                ("assistant", "Red."),
            ],
        )
    ],
    "finevision_rows.json": [
        ("", 2, "fixture", [("user", "<image>\n<image>\nCompare."), ("assistant", "Same.")]),
    ],
}


@pytest.fixture(params=sorted(EXPECTED))
def made(request: pytest.FixtureRequest, picture: Callable) -> tuple[str, datasets.Dataset]:
    dataset = datasets.Dataset.from_list(published(request.param, picture))
    for column, feature in FEATURES[request.param].items():
        dataset = dataset.cast_column(column, feature)
    return request.param, dataset


@pytest.mark.parametrize("kind", ["disk", "parquet", "parquet folder", "arrow"])
def test_published_layouts(made: tuple, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, dataset = made
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    place = tmp_path / "set"
    if kind == "disk":
        dataset.save_to_disk(place)
    elif kind == "arrow":
        dataset.save_to_disk(tmp_path / "whole")
        place = next((tmp_path / "whole").glob("*.arrow"))
    else:
        place.mkdir()
        dataset.to_parquet(place / "train-00000-of-00001.parquet")
        if kind == "parquet":
            place = place / "train-00000-of-00001.parquet"
    rows = open_rows(place)
    found = [(sample.id, len(sample.images), sample.source, sample.turns) for sample in rows]
    assert found == EXPECTED[name]
    sizes = [load_image(image).size for sample in rows for image in sample.images]
    assert sizes == [(30 + i, 20) for sample in rows for i in range(len(sample.images))]
    assert rows.index.images.tolist() == [images for _, images, _, _ in EXPECTED[name]]
    assert check_rows(rows) == check_pictures(rows) == []
    again = open_rows(place)
    assert again.sha256 == rows.sha256
    assert pickle.loads(pickle.dumps(again))[0].turns == EXPECTED[name][0][3]


@pytest.fixture
def parquet(picture: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write rows as a Parquet file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def write(rows: list[dict], **features: object) -> Path:
        dataset = datasets.Dataset.from_list(rows)
        for column, feature in features.items():
            dataset = dataset.cast_column(column, feature)
        dataset.to_parquet(tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"

    return write


def rated(picture: Callable, rating: int) -> dict:
    turn = {"user": f"Rated {rating}?", "assistant": "Yes."}
    return {
        "images": [picture(8, 8)],
        "texts": [turn],
        "source": "s",
        "relevance_min": rating,
        "formatting_min": 4,
    }


def test_min_rating(parquet: Callable, picture: Callable) -> None:
    path = parquet([rated(picture, rating) for rating in (5, 2, 3)], images=datasets.List(datasets.Image()))
    assert len(open_rows(path)) == 3
    kept = [sample.turns[0][1] for sample in open_rows(path, min_rating=3)]
    assert kept == ["<image>\nRated 5?", "<image>\nRated 3?"]
    with pytest.raises(ValueError, match="holds no rows"):
        open_rows(path, min_rating=5)  # formatting is rated 4


def test_a_row_counts_by_the_ratings_that_it_has(parquet: Callable, picture: Callable) -> None:
    """Rows of text have none of how a picture fits, in FineVision."""
    data = [rated(picture, rating) | {"visual_dependency_min": None} for rating in (5, 2)]
    data.append(rated(picture, 4) | {"visual_dependency_min": 1})
    path = parquet(data, images=datasets.List(datasets.Image()))
    assert [sample.turns[0][1] for sample in open_rows(path, min_rating=3)] == ["<image>\nRated 5?"]
    streamed = Stream(path, min_rating=3).beginning(3)
    assert [None if sample is None else sample.turns[0][1] for sample in streamed] == [
        "<image>\nRated 5?",
        None,
        None,
    ]


def test_a_row_without_any_rating_is_named(parquet: Callable, picture: Callable) -> None:
    data = [rated(picture, 5), rated(picture, 5) | {"relevance_min": None, "formatting_min": None}]
    path = parquet(data, images=datasets.List(datasets.Image()))
    with pytest.raises(ValueError, match="row 1 of this data set has no ratings"):
        open_rows(path, min_rating=3)


def test_faulty_rows_of_a_data_set(parquet: Callable, picture: Callable) -> None:
    whole = io.BytesIO()
    picture(40, 40).save(whole, "PNG")
    stored = [{"bytes": whole.getvalue(), "path": "a.png"}, {"bytes": whole.getvalue()[:99], "path": "b.jpg"}]
    turns = [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Ho"}]
    rows = [
        {"id": "ok", "image": stored[0], "conversations": turns},
        {"id": "cut", "image": stored[1], "conversations": turns},
        {"id": "none", "image": None, "conversations": turns},
        {"id": "mute", "image": stored[0], "conversations": turns[:1]},
    ]
    path = parquet(rows, image=datasets.Image())
    expected = [
        (1, "cut", "undecodable_image"),
        (2, "none", "placeholder_mismatch"),
        (3, "mute", "no_supervision"),
    ]
    opened = open_rows(path)
    assert [(f.row, f.id, f.code) for f in check_rows(opened)] == expected
    opened.faults = check_rows(opened)
    check_budget(opened, 0.8)
    assert opened.usable.tolist() == [True, False, False, False]


def test_rows_with_paths_into_a_folder(parquet: Callable, picture: Callable, tmp_path: Path) -> None:
    picture(9, 7).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Ho"}]
    path = parquet([{"id": "1", "image": "a.png", "conversations": turns}])
    assert [load_image(sample.images[0]).size for sample in open_rows(path, tmp_path)] == [(9, 7)]


def test_check_command(parquet: Callable, picture: Callable, tmp_path: Path) -> None:
    whole = io.BytesIO()
    picture(40, 40).save(whole, "PNG")
    turns = [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Ho"}]
    images = [{"bytes": whole.getvalue()[:size], "path": "a.png"} for size in (None, 99, 0)]
    path = parquet(
        [{"id": "x", "image": image, "conversations": turns} for image in images], image=datasets.Image()
    )
    result = CliRunner().invoke(
        app, ["check", str(path), "--report", str(tmp_path / "r.json"), "--workers", "1"]
    )
    assert result.exit_code == 1, result.output
    found = json.loads((tmp_path / "r.json").read_text())["findings"]
    assert [(f["row"], f["code"]) for f in found] == [
        (1, "duplicate_id"),
        (1, "undecodable_image"),
        (2, "duplicate_id"),
        (2, "undecodable_image"),
    ]


def test_from_the_hub(
    parquet: Callable, picture: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(published("llava_next_rows.json", picture), image=datasets.Image())
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_parquet(str(path))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    rows = open_rows("lmms-lab/LLaVA-NeXT-Data:some-config@validation")
    assert asked == [("lmms-lab/LLaVA-NeXT-Data", "some-config", "validation")]
    assert [sample.id for sample in rows] == ["n1", "n2"]
    assert check_pictures(rows) == []
    assert not (tmp_path / "lmms-lab").exists()  # what is known of it goes to the cache


@pytest.mark.parametrize("source", ["nobody/nothing", "nobody/nothing:config@train"])
def test_a_hub_that_does_not_answer(source: str) -> None:
    with pytest.raises(ValueError, match=f"no data set at {source}") as caught:
        open_rows(source)
    assert "\n" not in str(caught.value)


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.parquet and no \.arrow"):
        open_rows(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="no data set at"):
        open_rows(tmp_path / "a.parquet")
