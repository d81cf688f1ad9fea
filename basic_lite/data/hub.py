"""Rows of Hugging Face data sets: LLaVA-NeXT-Data, the_cauldron, FineVision, from disk or from the hub.

Pictures stay encoded, in the memory-mapped Arrow table, until a row is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from basic_lite.data.index import COLUMNS, FORMAT, Index, Progress, describe, undescribed
from basic_lite.data.rows import RowFault, one_line, read_row, text_hash
from basic_lite.files import load_table, save_table, table_places

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PICTURES: tuple[str, ...] = ("image", "images")
"""Columns that hold pictures."""

RATINGS: tuple[str, ...] = tuple(
    f"{name}_min" for name in ("relevance", "image_correspondence", "formatting", "visual_dependency")
)
"""FineVision's lowest rating of a row's turns, one column per question."""

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")
"""`owner/name`, `owner/name:config`, `owner/name:config@split`."""


def is_stored(source: str | Path) -> bool:
    """Return whether `source` is a data set rather than a LLaVA JSON file."""
    path = Path(source)
    if path.exists():
        return path.is_dir() or path.suffix in (".arrow", ".parquet")
    return path.suffix not in (".json", ".jsonl") and HUB_ID.fullmatch(str(source)) is not None


def open_dataset(source: str | Path, *, streaming: bool = False) -> Dataset | IterableDataset:
    """Open a data set, its pictures undecoded.

    Args:
        source: a folder that `save_to_disk` wrote, a folder or file of Arrow or Parquet, or a hub id
        (`HUB_ID`).
        streaming: read rows one after another, without a copy on this disk.

    Returns:
        The data set; of several splits, `train`.

    Raises:
        ValueError: If there is none.
    """
    import datasets

    path = Path(source)
    on_disk = path.is_dir() and any(path.glob("**/state.json"))
    kind, files = _files(path) if path.exists() and not on_disk else ("", [])
    try:
        if not path.exists():
            found = HUB_ID.fullmatch(str(source))
            assert found is not None, source
            split = found["split"] or "train"
            opened = datasets.load_dataset(found["name"], found["config"], split=split, streaming=streaming)
        elif on_disk:
            opened = datasets.load_from_disk(str(path))
            opened = opened["train"] if isinstance(opened, dict) else opened
            opened = opened.to_iterable_dataset() if streaming else opened
        else:
            opened = datasets.load_dataset(kind, data_files=files, split="train", streaming=streaming)
    except Exception as error:  # the hub, Arrow and the disk fail in their own ways
        raise ValueError(
            f"no data set at {source}: {one_line(error)}. Give a LLaVA .json or .jsonl, a folder or file "
            "of Arrow or Parquet, or a hub id such as lmms-lab/LLaVA-NeXT-Data"
        ) from None
    if opened.features is not None:
        for column in PICTURES:
            if column in opened.features:
                opened = opened.cast_column(column, _undecoded(opened.features[column]))
    return opened


def index_dataset(
    dataset: Dataset, places: list[Path], key: Mapping[str, str], progress: Progress | None = None
) -> Index:
    """Load the index of a data set, or build and keep it; reads every text and no picture.

    Args:
        dataset: from `open_dataset`.
        places: where the index may be kept.
        key: what tells this data set from another.
        progress: told how far a new index is.

    Returns:
        The index; `offset` and `size` are 0, and no two pictures count as the same.
    """
    key = {"format": FORMAT, **key}
    found = load_table(places, key, COLUMNS)
    if found is not None:
        return Index(found[0]["sha256"], (0,), **found[1])
    counts = _picture_counts(dataset)
    texts = dataset.remove_columns([column for column in PICTURES if column in dataset.column_names])
    columns: dict[str, list[int]] = {
        name: [] for name in ("tokens", "turns", "notes", "fault", "id_hash", "images")
    }
    digest = hashlib.sha256()
    for number, row in enumerate(texts):
        images, name = 0, ""
        try:
            raw = read_row({**dict(row), **_stand_ins(counts, number)}, stored=True)
            images, name, described = len(raw.images), raw.id, describe(raw)
            digest.update(repr((name, images, raw.turns)).encode("utf-8", "backslashreplace"))
        except RowFault as error:
            described = undescribed(error)
            digest.update(error.detail.encode("utf-8", "backslashreplace"))
        for column, value in (described | {"images": images, "id_hash": text_hash(name)}).items():
            columns[column].append(value)
        if progress is not None and number % 1000 == 0:
            progress("reading rows", number, len(texts))
    nothing, pictures = np.zeros(len(texts), np.int64), np.arange(1, sum(columns["images"]) + 1)
    arrays = {"offset": nothing, "size": nothing, "image_hash": pictures, **columns}
    made = {name: np.array(arrays[name], kind) for name, kind in COLUMNS.items()}
    save_table(places, {**key, "sha256": digest.hexdigest()}, made)
    return Index(digest.hexdigest(), (0,), **made)


def well_rated(dataset: Dataset, at_least: int) -> Dataset:
    """Return the rows of a FineVision data set that no rating puts below `at_least`.

    Raises:
        ValueError: If the data set has no ratings.
    """
    columns = [column for column in RATINGS if column in dataset.column_names]
    if not columns:
        raise ValueError(f"this data set has no ratings; one of the columns {', '.join(RATINGS)} is needed")
    lowest = np.min([np.array(dataset[column][:], dtype=np.int64) for column in columns], axis=0)
    return dataset.select(np.flatnonzero(lowest >= at_least))


def _files(path: Path) -> tuple[str, list[str]]:
    """Return the builder and the files of a data set, of its train split if one is named."""
    for kind in ("parquet", "arrow"):
        found = [path] if path.suffix == f".{kind}" else sorted(path.glob(f"**/*.{kind}"))
        found = [file for file in found if file.name.startswith("train")] or found
        if found:
            return kind, [str(file) for file in found]
    raise ValueError(
        f"{path} holds no .parquet and no .arrow file; a LLaVA data set is given as its .json file"
    )


def _undecoded(feature: Any) -> Any:
    """Return a column's type with pictures as `{"bytes", "path"}`."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return type(feature)(_undecoded(feature.feature))
    if isinstance(feature, list):
        return [_undecoded(part) for part in feature]
    return feature


def _picture_counts(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return by column, `(rows,)` int64: how many pictures each row has, from the table's own lengths."""
    import pyarrow.compute

    found: dict[str, np.ndarray] = {}
    for column in PICTURES:
        if column not in dataset.column_names:
            continue
        counts = found[column] = np.zeros(len(dataset), np.int64)
        values = dataset.select_columns([column]).with_format("arrow")
        at = 0
        for batch in values.iter(batch_size=1000):
            part = batch[column]
            if str(part.type).startswith(("list", "large_list")):
                lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(part), 0)
            else:
                lengths = pyarrow.compute.cast(pyarrow.compute.is_valid(part), "int64")
            counts[at : at + len(part)] += lengths.to_numpy(zero_copy_only=False)
            at += len(part)
    return found


def _stand_ins(counts: dict[str, np.ndarray], row: int) -> dict[str, object]:
    """Return as many empty pictures as a row has, in the columns that hold them."""
    return {column: [b""] * int(number[row]) for column, number in counts.items()}


def stored_key(source: str | Path, dataset: Dataset) -> tuple[list[Path], dict[str, str]]:
    """Return where the index of a data set is kept, and what tells the data set from another."""
    path = Path(source)
    if not path.exists():
        return table_places(path, "index"), {"fingerprint": dataset._fingerprint}
    files = sorted(
        file for file in ([path] if path.is_file() else path.glob("**/*.*")) if file.suffix != ".index"
    )
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    key = hashlib.sha256(repr((seen, len(dataset), dataset.column_names)).encode()).hexdigest()
    return table_places(path, "index"), {"files": key}


class Fetch:
    """Fetches rows of a data set as plain dictionaries."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, row: int) -> Mapping[str, Any]:
        """Return row `row`, its pictures encoded."""
        return self.dataset[row]


# Rows of Hugging Face data sets, from the hub or a folder; pictures stay encoded until they are needed.

_SAVED = ("dataset_dict.json", "state.json")  # written by `save_to_disk`
_OWNERS = ("lmms-lab/", "lmms-lab-encoder/")  # the data sets moved in 2026; either may answer


def _parquet(folder: Path, config: str | None, split: str) -> list[str]:
    """Return the Parquet files of a split, in the layouts that the hub uses."""
    places = [folder / config, folder / "data" / config] if config and (folder / config).is_dir() else []
    for place in [*places, folder, folder / "data", *([] if config else sorted(folder.glob("*/")))]:
        found = sorted(map(str, place.glob(f"{split}-*.parquet" if split else "*.parquet")))
        found = found or (sorted(map(str, place.glob(f"{split}.parquet"))) if split else [])
        if found:
            return found
    return []


def table(data: str | Path, config: str | None, split: str) -> Any:
    """Open a data set without decoding its pictures.

    Raises:
        ValueError: In one line, if it cannot be had or has no such split.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    path = Path(data)
    try:
        if path.is_dir() and any((path / name).is_file() for name in _SAVED):
            opened = load_from_disk(str(path))
            if isinstance(opened, DatasetDict):
                if split not in opened:
                    raise ValueError(f"{data} has no split {split}: it has {', '.join(opened)}.")
                opened = opened[split]
            return _undecoded_table(opened)
        if path.exists():
            files = [str(path)] if path.is_file() else _parquet(path, config, split)
            if not files:
                raise ValueError(f"{data} has no Parquet files of split {split}: expected {split}-*.parquet.")
            return _undecoded_table(Dataset.from_parquet(files))
    except OSError as error:
        raise ValueError(f"{data} does not open as a data set: {_first_line(error)}") from None
    failures = []
    for name in _names(str(data)):
        for configuration in dict.fromkeys((config, None)):  # MMBench_EN has no configuration "en"
            try:
                return _undecoded_table(load_dataset(name, configuration, split=split))
            except Exception as error:  # the hub client raises many kinds; each means "not to be had"
                failures.append(f"{name}: {_first_line(error)}")
                if "BuilderConfig" not in str(error):
                    break
    raise ValueError(
        f"Data set {data} (configuration {config}, split {split}) cannot be had: {' / '.join(failures)} "
        "Download it elsewhere and give the folder."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _names(name: str) -> list[str]:
    for owner in _OWNERS:
        if name.startswith(owner):
            return [name, *(other + name.removeprefix(owner) for other in _OWNERS if other != owner)]
    return [name]


def _undecoded_table(opened: Any) -> Any:
    """Return the data set with every image column left as bytes or path."""
    from datasets import Image, List

    for column, feature in opened.features.items():
        if isinstance(feature, Image):
            opened = opened.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            opened = opened.cast_column(column, List(Image(decode=False)))
    return opened


def _present(opened: Any, column: str) -> list[bool]:
    """Return which cells hold a picture, without reading any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = opened.data.column(column)
    if pa.types.is_struct(cells.type):
        fields = [pc.struct_field(cells, name).is_valid() for name in ("bytes", "path")]
        return pc.or_(*fields).to_pylist()
    return cells.is_valid().to_pylist()


# The published training sets, for a stage that is told no data.


@dataclass(frozen=True)
class Published:
    """Where a published annotation file is, and how its pictures come.

    Attributes:
        repository: data set on the hub.
        annotations: file in it.
        images: archive in it that holds the pictures, or `None` where they come from elsewhere.
        remedy: what a user without that file does.
    """

    repository: str
    annotations: str
    images: str | None
    remedy: str


STAGES: dict[int, Published] = {
    1: Published(
        "liuhaotian/LLaVA-Pretrain",
        "blip_laion_cc_sbu_558k.json",
        "images.zip",
        "--data blip_laion_cc_sbu_558k.json --images DIR (27 GB of pictures, unpacked), or any LLaVA JSON",
    ),
    2: Published(
        "liuhaotian/LLaVA-Instruct-150K",
        "llava_v1_5_mix665k.json",
        None,
        "--data llava_v1_5_mix665k.json --images DIR (with coco/ gqa/ ocr_vqa/ textvqa/ vg/), or any "
        "LLaVA JSON",
    ),
}


def fetch(stage: int, data: Path | None, images: Path | None) -> tuple[Path, Path | None]:
    """Return annotation file and image root of a stage, from the arguments or from the hub.

    Args:
        stage: 1 or 2.
        data: what the user gave, a path or a hub id, or `None`.
        images: what the user gave, or `None`.

    Raises:
        ValueError: In one line, if a given file does not exist or the hub does not answer.
    """
    if data is not None:
        if not data.is_file() and not data.is_dir() and not is_stored(data):
            raise ValueError(
                f"--data {data} does not exist; give a LLaVA JSON or JSONL file, a folder of Arrow or "
                "Parquet, or a hub id"
            )
        if images is not None and not images.exists():
            raise ValueError(f"--images {images} does not exist; give the folder that image paths start from")
        return data, images
    from huggingface_hub import hf_hub_download

    row = STAGES[stage]
    if row.images is None and images is None:
        raise ValueError(f"stage {stage} needs pictures that no single download holds: give {row.remedy}")
    try:
        found = Path(hf_hub_download(row.repository, row.annotations, repo_type="dataset"))
        if images is None:
            images = Path(hf_hub_download(row.repository, row.images, repo_type="dataset"))
    except Exception as error:  # the hub's client raises many types, none of them common
        raise ValueError(
            f"no hub answers for {row.repository} ({type(error).__name__}): give {row.remedy}"
        ) from error
    return found, images
