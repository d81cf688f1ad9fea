"""Rows of Hugging Face data sets: LLaVA-NeXT-Data, the_cauldron, FineVision, from disk or from the hub.

Pictures stay encoded, in the memory-mapped Arrow table, until a row is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from basic_lite.data.formats import read_row
from basic_lite.data.index import COLUMNS, FORMAT, Columns, Index, Progress, no_progress, sample_row
from basic_lite.data.rows import RowFault
from basic_lite.files import load_table, one_line, save_table, table_places

if TYPE_CHECKING:
    from datasets import Dataset

PICTURES: tuple[str, ...] = ("image", "images")
"""Columns that hold pictures."""

RATINGS: tuple[str, ...] = tuple(
    f"{name}_min" for name in ("relevance", "image_correspondence", "formatting", "visual_dependency")
)
"""FineVision's lowest rating of a row's turns, one column per question."""

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.-]+))?")
"""`owner/name`, `owner/name:config`, `owner/name:config@split`."""

OWNERS: tuple[str, ...] = ("lmms-lab/", "lmms-lab-encoder/")
"""Owners of the benchmarks' data sets on the hub, before and after they moved in 2026."""


@cache
def silence() -> str | None:
    """Ask the hub once, for five seconds at most; if it is silent, its clients read only their caches.

    Without a network they ask for each file five times, with growing pauses: half a minute per error. Returns
    why nothing is fetched; `None` if the hub answers.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # of the transport, a proxy, or TLS
        constants.HF_HUB_OFFLINE = True
        return f"{constants.ENDPOINT} does not answer: {one_line(error, 80)}"
    return None


def is_stored(source: str | Path) -> bool:
    """Return whether `source` is a data set rather than a LLaVA JSON file."""
    path = Path(source)
    if path.exists():
        return path.is_dir() or path.suffix in (".arrow", ".parquet")
    return path.suffix not in (".json", ".jsonl") and HUB_ID.fullmatch(str(source)) is not None


def open_dataset(
    source: str | Path, *, config: str | None = None, split: str | None = None, streaming: bool = False
) -> Any:
    """Open a data set, its pictures undecoded: a `Dataset`, or the `IterableDataset` of a stream.

    `source` is a folder that `save_to_disk` wrote, a folder or file of Arrow or Parquet, or a hub id
    (`HUB_ID`). The benchmarks' data sets moved from one owner to another; both are tried. A `config` is
    ignored if the data set has none of that name; `split` is by default `train`, or the only files there are.
    Raises ValueError, in one line, if there is no such data set or split.
    """
    import datasets

    path = Path(source)
    saved = path.is_dir() and any(path.glob("**/state.json"))
    kind, files = _files(path, config, split) if path.exists() and not saved else ("", [])
    try:
        if saved:
            opened = datasets.load_from_disk(str(path))
            if isinstance(opened, datasets.DatasetDict):
                split = split or "train"
                if split not in opened:
                    raise ValueError(f"it has no split {split}, only {', '.join(map(str, opened))}")
                opened = opened[split]
            opened = opened.to_iterable_dataset() if streaming else opened
        elif files:
            opened = datasets.load_dataset(kind, data_files=files, split="train", streaming=streaming)
        else:
            opened = _from_hub(str(source), config, split, streaming)
    except Exception as error:  # the hub, Arrow and the disk fail in their own ways
        wanted = f" (configuration {config}, split {split})" if split else ""
        raise ValueError(
            f"no data set at {source}{wanted}: {one_line(error, 400)}. Give a LLaVA .json or .jsonl, a "
            "folder or file of Arrow or Parquet, or a hub id such as lmms-lab/LLaVA-NeXT-Data"
        ) from None
    for column, feature in (opened.features or {}).items():
        if (plain := _undecoded(feature)) != feature:
            opened = opened.cast_column(column, plain)
    return opened


def _from_hub(source: str, config: str | None, split: str | None, streaming: bool) -> Any:
    """Load from the first owner that answers; raises ValueError with what each answered."""
    import datasets

    parts = HUB_ID.fullmatch(source)
    assert parts is not None, source
    name, config, split = parts["name"], config or parts["config"], split or parts["split"] or "train"
    owner = next((owner for owner in OWNERS if name.startswith(owner)), "")
    names = [name, *(other + name.removeprefix(owner) for other in OWNERS if owner and other != owner)]
    failures = []
    silence()
    for name in names:
        for configuration in dict.fromkeys((config, None)):  # MMBench_EN has no configuration "en"
            try:
                return datasets.load_dataset(name, configuration, split=split, streaming=streaming)
            except Exception as error:  # the hub's client raises many kinds; each means "not to be had"
                failures.append(f"{name}: {one_line(error)}")
                if "BuilderConfig" not in str(error):
                    break
    raise ValueError(" / ".join(failures))


def index_dataset(source: str | Path, dataset: Dataset, progress: Progress = no_progress) -> Index:
    """Load the index of the data set that `source` names, or build and keep it; reads every text, no picture.

    In the index `offset` and `size` are 0, and no two pictures count as the same.
    """
    places, key = table_places(Path(source), "index"), {"format": FORMAT, **_identity(Path(source), dataset)}
    kept = load_table(places, key, COLUMNS)
    if kept is not None:
        return Index(kept[0]["sha256"], (0,), **kept[1])
    import datasets

    features: Mapping[str, Any] = dataset.features or {}
    # A WebDataset shard has a column for each kind of its members.
    members = {name for name, feature in features.items() if isinstance(feature, datasets.Image)}
    pictures = [name for name in dataset.column_names if name in PICTURES or name in members]
    counts = picture_counts(dataset, pictures)
    texts = dataset.remove_columns(pictures)
    columns, digest = Columns(), hashlib.sha256()
    for number, stored in enumerate(texts):
        stand_ins = {column: [b""] * int(number_of[number]) for column, number_of in counts.items()}
        whole = {**dict(stored), **stand_ins}
        row = columns.add(lambda whole: read_row(plain_row(whole), stored=True), whole)
        seen = row.detail if isinstance(row, RowFault) else repr((row.id, len(row.images), row.turns))
        digest.update(seen.encode("utf-8", "backslashreplace"))
        if number % 1000 == 0:
            progress("reading rows", number, len(texts))
    columns.values["image_hash"] = list(range(1, sum(columns.values["images"]) + 1))
    made = columns.arrays()
    save_table(places, {**key, "sha256": digest.hexdigest()}, made)
    return Index(digest.hexdigest(), (0,), **made)


def well_rated(dataset: Dataset, at_least: int) -> Dataset:
    """Return the rows that no rating puts below `at_least`; raises ValueError if there are no ratings."""
    columns = [column for column in RATINGS if column in dataset.column_names]
    if not columns:
        raise ValueError(f"this data set has no ratings; one of the columns {', '.join(RATINGS)} is needed")
    # A text without a picture has no rating of how the two fit.
    lowest = np.fmin.reduce([np.array(dataset[column][:], dtype=np.float64) for column in columns])
    if (unrated := np.flatnonzero(np.isnan(lowest))).size:
        raise ValueError(
            f"row {unrated[0]} of this data set has no ratings; one of {', '.join(columns)} is needed"
        )
    return dataset.select(np.flatnonzero(lowest >= at_least))


def _files(path: Path, config: str | None, split: str | None) -> tuple[str, list[str]]:
    """Return builder and files of a split in the hub's folder layouts; raises ValueError if it has none."""
    for kind, suffix in (("parquet", ".parquet"), ("arrow", ".arrow"), ("webdataset", ".tar")):
        files = [path] if path.suffix == suffix else sorted(path.glob(f"**/*{suffix}"))
        if split is None:
            files = [file for file in files if file.name.startswith("train")] or files
        elif path.is_dir():
            files = [file for file in files if re.match(rf"{re.escape(split)}[-.]", file.name)]
            if config:  # without a folder of that name, the only configuration may lie at the top
                named = [file for file in files if file.parent.name == config]
                files = named or [file for file in files if file.parent in (path, path / "data")]
            # Two folders are two configurations; take the one nearest to the top.
            nearest = min(files, key=lambda file: (len(file.parts), file), default=path).parent
            files = [file for file in files if file.parent == nearest]
        if files:
            return kind, [str(file) for file in files]
    if split is None:
        raise ValueError(
            f"{path} holds no .parquet and no .arrow file; a LLaVA data set is given as its .json file"
        )
    raise ValueError(f"{path} has no Parquet files of split {split}: expected {split}-*.parquet")


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


def picture_counts(dataset: Dataset, columns: Sequence[str] = PICTURES) -> dict[str, np.ndarray]:
    """Return by column, `(rows,)` int64: how many pictures each row has, from the table's own lengths."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # which makes its functions when it is imported
    by_column: dict[str, np.ndarray] = {}
    batch: Any
    for column in columns:
        if column not in dataset.column_names:
            continue
        counts = by_column[column] = np.zeros(len(dataset), np.int64)
        values = dataset.select_columns([column]).with_format("arrow")
        at = 0
        for batch in values.iter(batch_size=1000):
            part = batch[column]
            if pa.types.is_list(part.type) or pa.types.is_large_list(part.type):
                lengths = pc.fill_null(pc.list_value_length(part), 0)
            elif pa.types.is_struct(part.type):  # a row without picture may be a struct of two nulls
                held = pc.or_(*(pc.is_valid(pc.struct_field(part, name)) for name in ("bytes", "path")))
                lengths = pc.cast(held, "int64")
            else:
                lengths = pc.cast(pc.is_valid(part), "int64")
            counts[at : at + len(part)] += lengths.to_numpy(zero_copy_only=False)
            at += len(part)
    return by_column


def plain_row(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row as its layout's reader takes it; raises RowFault `malformed_row`.

    `datasets` reads WebDataset's shards as a column for each kind of member.
    """
    key = stored.get("__key__")
    if not isinstance(key, str):
        return stored
    members = {f"{key}.{name}": value for name, value in stored.items() if value and name[:2] != "__"}
    return sample_row(members)


def _identity(path: Path, dataset: Dataset) -> dict[str, str]:
    """Return what identifies a data set on disk or on the hub."""
    if not path.exists():
        return {"fingerprint": dataset._fingerprint}
    files = sorted(
        file for file in ([path] if path.is_file() else path.glob("**/*.*")) if file.suffix != ".index"
    )
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return {"files": hashlib.sha256(repr((seen, len(dataset), dataset.column_names)).encode()).hexdigest()}


def stored_row(dataset: Dataset, row: int) -> Mapping[str, Any]:
    """Return a row, its pictures encoded."""
    return plain_row(dataset[row])


@dataclass(frozen=True)
class Published:
    """A published training set, for a stage without `--data`."""

    repository: str  # data set on the hub
    annotations: str  # file in it
    images: str | None  # archive of the pictures in it; `None` if they come from elsewhere
    remedy: str  # what a user without that file does


STAGES: dict[int, Published] = {
    1: Published(
        "liuhaotian/LLaVA-Pretrain",
        "blip_laion_cc_sbu_558k.json",
        "images.zip",
        remedy="--images DIR (27 GB of pictures, unpacked)",
    ),
    2: Published(
        "liuhaotian/LLaVA-Instruct-150K",
        "llava_v1_5_mix665k.json",
        None,
        remedy="--images DIR (with coco/ gqa/ ocr_vqa/ textvqa/ vg/)",
    ),
}


def fetch(stage: int, images: Sequence[str] | None) -> tuple[str, list[str] | None]:
    """Return annotation file and image root of a stage's published set, from the hub.

    `images` is what the user gave. Raises ValueError, in one line, if a folder does not exist or the hub does
    not answer.
    """
    given = next((folder for folder in images or [] if not Path(folder).exists()), None)
    if given is not None:
        raise ValueError(f"--images {given} does not exist; give the folder that image paths start from")
    from huggingface_hub import hf_hub_download

    published = STAGES[stage]
    remedy = f"give --data {published.annotations} {published.remedy}, or any LLaVA JSON"
    if published.images is None and not images:
        raise ValueError(f"stage {stage} needs pictures that no single download holds: {remedy}")
    quiet = silence()
    try:
        annotations = hf_hub_download(published.repository, published.annotations, repo_type="dataset")
        if not images and published.images is not None:
            images = [hf_hub_download(published.repository, published.images, repo_type="dataset")]
    except Exception as error:  # the hub's client raises many types, none of them common
        reason = quiet or one_line(error)
        raise ValueError(f"{published.repository} cannot be fetched ({reason}): {remedy}") from error
    return annotations, list(images) if images else None
