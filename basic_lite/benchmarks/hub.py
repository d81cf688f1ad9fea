"""Rows of Hugging Face data sets, from the hub or a folder; pictures stay encoded until they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from basic_lite.benchmarks.files import Source, unique
from basic_lite.benchmarks.question import StoredImage

_SAVED = ("dataset_dict.json", "state.json")  # written by `save_to_disk`
_OWNERS = ("lmms-lab/", "lmms-lab-encoder/")  # the data sets moved in 2026; either may answer


def is_table(source: Source) -> bool:
    """Return whether the data is a hub id or a folder in the layout of `datasets`.

    Raises:
        ValueError: If it is neither that nor an existing file or folder.
    """
    path = Path(source.data)
    if path.is_file():
        return path.suffix == ".parquet"
    if path.is_dir():
        return any((path / name).is_file() for name in _SAVED) or _parquet(path, None, "") != []
    if str(source.data).count("/") == 1 and not str(source.data).startswith((".", "/", "~")):
        return True
    raise ValueError(
        f"{source.data} does not exist: give a folder, a file, or a hub id such as lmms-lab/GQA."
    )


def rows_of(
    source: Source,
    from_table: Callable[[Source], Iterable[dict[str, Any]]],
    from_files: Callable[[Source], Iterable[dict[str, Any]]],
    key: str = "id",
) -> list[dict[str, Any]]:
    """Return a benchmark's rows in the layout that they are in, each with an id of its own.

    Args:
        source: Where they are.
        from_table: Reads the layout of `datasets`.
        from_files: Reads the original files.
        key: Name of the id in a row.

    Raises:
        ValueError: If an id comes twice, or as the readers.
    """
    rows = list(from_table(source) if is_table(source) else from_files(source))
    unique((row[key] for row in rows), str(source.data))
    return rows


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
            return _undecoded(opened)
        if path.exists():
            files = [str(path)] if path.is_file() else _parquet(path, config, split)
            if not files:
                raise ValueError(f"{data} has no Parquet files of split {split}: expected {split}-*.parquet.")
            return _undecoded(Dataset.from_parquet(files))
    except OSError as error:
        raise ValueError(f"{data} does not open as a data set: {_first_line(error)}") from None
    failures = []
    for name in _names(str(data)):
        for configuration in dict.fromkeys((config, None)):  # MMBench_EN has no configuration "en"
            try:
                return _undecoded(load_dataset(name, configuration, split=split))
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


def _undecoded(opened: Any) -> Any:
    """Return the data set with every image column left as bytes or path."""
    from datasets import Image, List

    for column, feature in opened.features.items():
        if isinstance(feature, Image):
            opened = opened.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            opened = opened.cast_column(column, List(Image(decode=False)))
    return opened


def rows(
    data: str | Path,
    config: str | None,
    split: str,
    needs: Iterable[str],
    image: str | None = "image",
    with_images: bool = True,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, with `"image"` a `StoredImage`, or `None` where the cell is null.

    Args:
        data: Hub id or folder.
        config: Name of the configuration, where the data set has several.
        split: Name of the split on the hub.
        needs: Columns that must be there.
        image: The image column; `None` for a data set without pictures.
        with_images: False leaves the pictures out.

    Raises:
        ValueError: If the data set cannot be had or lacks a column.
    """
    opened = table(data, config, split)
    needed = [*needs, *([image] if image and with_images else [])]
    missing = [name for name in needed if name not in opened.column_names]
    if missing:
        has = ", ".join(opened.column_names)
        raise ValueError(f"{data} split {split} lacks column {', '.join(missing)}; it has {has}.")
    plain = opened.select_columns([name for name in opened.column_names if name != image])
    there = _present(opened, image) if image and with_images else []
    number = 0
    for batch in plain.iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            row = dict(zip(batch, cells, strict=True))
            row["image"] = StoredImage(opened, number, image) if image and there and there[number] else None
            yield row
            number += 1


def _present(opened: Any, column: str) -> list[bool]:
    """Return which cells hold a picture, without reading any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = opened.data.column(column)
    if pa.types.is_struct(cells.type):
        fields = [pc.struct_field(cells, name).is_valid() for name in ("bytes", "path")]
        return pc.or_(*fields).to_pylist()
    return cells.is_valid().to_pylist()
