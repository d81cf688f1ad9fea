"""Reading and writing the files of benchmarks, with one-line errors for what can be wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.data.hub import _SAVED, _parquet, _present, table
from basic_lite.evaluation.question import ImageSource, StoredImage


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


AGAIN = "the file is cut off or damaged, get it again"


@dataclass(frozen=True)
class Source:
    """Where a benchmark's files are.

    Attributes:
        data: A folder or file with the original files, a folder with Parquet files, or a hub id.
        split: Name of the split, as the table of benchmarks has it.
        images: Folder of the pictures; `None` looks beside the data.
        with_images: False reads no pictures, which is enough for scoring.
    """

    data: str | Path
    split: str
    images: Path | None = None
    with_images: bool = True

    @property
    def folder(self) -> Path:
        """Return the folder that holds the data."""
        path = Path(self.data)
        return path if path.is_dir() else path.parent


def read_text(path: Path) -> str:
    """Return a text file.

    Raises:
        ValueError: If it is missing or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: check the path.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text: {AGAIN}, or unpack it.") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: If it is missing or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON (line {error.lineno}, {error.msg}): {AGAIN}.") from None


def read_json_lines(path: Path, drop_cut_end: bool = False) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file.

    Args:
        path: The file.
        drop_cut_end: Leave out a last line without newline that does not parse, as a killed writer leaves it.

    Raises:
        ValueError: If it is missing, or a line is no JSON object.
    """
    text = read_text(path)
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if drop_cut_end and number == len(lines):
                break
            raise ValueError(f"{path} line {number} is no JSON: {AGAIN}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is no JSON object: it is no file of this kind.")
        rows.append(row)
    return rows


def require(row: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Check that a row has what its reader needs.

    Raises:
        ValueError: If the row is no mapping or lacks a name.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no object with named fields: it is no file of this kind.")
    missing = [name for name in names if name not in row]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(map(str, row))[:200]}.")


def read_keyed(path: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of a JSON object of id to row.

    Raises:
        ValueError: If it is no such file, or a row lacks a name.
    """
    content = read_json(path)
    for identity, row in content.items() if isinstance(content, dict) else [("", content)]:
        require(row, names, f"{path} question {identity}")
    return content


def unique(ids: Iterable[int | str], where: str) -> None:
    """Check that no id comes twice.

    Raises:
        ValueError: Naming the first that does.
    """
    seen: set[int | str] = set()
    for one in ids:
        if one in seen:
            raise ValueError(f"{where}: id {one} comes twice: remove the duplicate.")
        seen.add(one)


def find(source: Source, what: str, *patterns: str) -> Path:
    """Return the file that matches the first matching pattern, in the folder or one folder below.

    Raises:
        ValueError: If there is none, or several match the same pattern.
    """
    path = find_optional(source, *patterns)
    if path is None:
        raise ValueError(f"{source.data} has no {what}: looked for {', '.join(patterns)}.")
    return path


def main_file(source: Source, what: str, *patterns: str) -> Path:
    """Return the file that holds the questions: the one given, whatever its name, or what `find` returns."""
    path = Path(source.data)
    return path if path.is_file() else find(source, what, *patterns)


def find_optional(source: Source, *patterns: str) -> Path | None:
    """Return what `find` returns, or `None` where nothing matches."""
    data = Path(source.data)
    for pattern in patterns:
        if data.is_file() and data.match(pattern):
            return data
        for place in (pattern, f"*/{pattern}"):
            found = sorted(path for path in source.folder.glob(place) if path.is_file())
            if len(found) > 1:
                raise ValueError(
                    f"{source.folder} has {len(found)} files for {pattern} ({found[0].name}, "
                    f"{found[1].name}, ...): give the file itself."
                )
            if found:
                return found[0]
    return None


def locate_images(
    source: Source, names: Mapping[int | str, str | None], folders: Iterable[str]
) -> dict[int | str, ImageSource]:
    """Return question id -> picture file, all checked to exist.

    Args:
        source: Where the data is; its `images` decides, else the first of `folders` beside the data.
        names: Question id -> file name below the image folder; `None` for a text-only question.
        folders: Folder names in the original layout, tried in order.

    Raises:
        ValueError: If there is no folder, or files are missing from it (how many, and the first).
    """
    if not source.with_images or not any(names.values()):
        return dict.fromkeys(names)
    places = [source.images] if source.images else [source.folder / name for name in folders]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        looked = ", ".join(map(str, places))
        raise ValueError(f"No folder of pictures: looked for {looked}; give the folder with --images.")
    here = set(os.listdir(root))  # one listing instead of one look per picture
    paths: dict[int | str, ImageSource] = {}
    missing = []
    for question, name in names.items():
        paths[question] = root / name if name else None
        if name and name not in here and not ("/" in name and (root / name).is_file()):
            missing.append(name)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} pictures are missing from {root} (first: {missing[0]}): unpack "
            "them there, or give the folder with --images."
        )
    return paths


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path
