"""Reading and writing the files of benchmarks, with one-line errors for what can be wrong with them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.data import hub
from basic_lite.evaluation.question import Id, ImageSource, Question, StoredImage
from basic_lite.files import write_text

AGAIN = "the file is cut off or damaged, get it again"


@dataclass(frozen=True)
class Source:
    """Where a benchmark's files are."""

    data: str | Path  # a folder or file with the original files, a folder with Parquet files, or a hub id
    split: str  # name of the split, as the table of benchmarks has it
    images: Path | None = None  # folder of the pictures; `None` looks beside the data
    with_images: bool = True  # False reads no pictures, which is enough for scoring
    style: str = "llava"  # prompt style; some need more files than others

    @property
    def folder(self) -> Path:
        path = Path(self.data)
        return path if path.is_dir() else path.parent


Reader = Callable[[Source], Iterable[dict[str, Any]]]  # `source -> rows` of a benchmark


def hub_id(data: str | Path) -> str | None:
    """Return the hub id that `data` names, `None` for a path.

    Only the benchmarks' known owners go without `hf:`, so that a mistyped folder asks nobody for a data set.
    """
    text = str(data)
    if text.startswith("hf:"):
        return text.removeprefix("hf:")
    known = text.startswith(hub.OWNERS) and hub.HUB_ID.fullmatch(text) and not Path(text).exists()
    return text if known else None


def is_table(source: Source) -> bool:
    """Return whether the data is a hub id or in the layout of `datasets`; raises ValueError if nowhere."""
    path = Path(source.data)
    if hub_id(source.data):
        return True
    if path.is_file():
        return path.suffix in (".parquet", ".arrow")
    if path.is_dir():
        patterns = ("dataset_dict.json", "state.json", "*.parquet", "*/*.parquet")
        return any(any(path.glob(pattern)) for pattern in patterns)
    is_id = hub.HUB_ID.fullmatch(str(source.data)) is not None
    also = f", or hf:{source.data} for a data set of the hub" if is_id else ""
    raise ValueError(f"{source.data} does not exist: give a folder or a file{also}.")


def open_table(source: Source, config: str | None, split: str) -> Any:
    """Open a split in the layout of `datasets`, from disk or from the hub, its pictures undecoded."""
    return hub.open_dataset(hub_id(source.data) or source.data, config=config, split=split)


def table_rows(
    source: Source, config: str | None, split: str, needs: Iterable[str], image: str | None = "image"
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, with `"image"` a `StoredImage`, or `None` where the cell is null.

    `needs` are columns that must be there; a data set without pictures has no `image` column (`None`).
    """
    opened = open_table(source, config, split)
    pictured = image if source.with_images else None
    missing = [name for name in (*needs, pictured) if name and name not in opened.column_names]
    if missing:
        has = ", ".join(opened.column_names)
        raise ValueError(f"{source.data} split {split} lacks column {', '.join(missing)}; it has {has}.")
    pictures = {image, *hub.picture_columns(opened)}
    plain = opened.select_columns([name for name in opened.column_names if name not in pictures])
    counts = hub.picture_counts(opened, [pictured])[pictured] if pictured else []
    number = 0
    for batch in plain.iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            row = dict(zip(batch, cells, strict=True))
            row["image"] = StoredImage(opened, number, pictured) if pictured and counts[number] else None
            yield row
            number += 1


def table_reader(
    *needs: str,  # columns that must be there
    key: str | None = None,  # column of the id; `None` takes the row's number
    config: str | None = None,  # name of the configuration, where the data set has several
    splits: Mapping[str, str] | None = None,  # split -> its name on the hub, where that is another
    image: str = "image",
    **names: str,  # name in the rows -> column that it is a copy of
) -> Reader:
    """Return a reader of the layout of `datasets`; its rows get an `"id"`."""

    def read(source: Source) -> Iterator[dict[str, Any]]:
        split = (splits or {}).get(source.split, source.split)
        for number, row in enumerate(table_rows(source, config, split, needs, image)):
            copies = {name: row.get(column) for name, column in names.items()}
            yield {**row, "id": row[key] if key else str(number), **copies}

    return read


_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: git lfs pull gets it"),
    (b"PK\x03\x04", "a ZIP archive (or an Excel file): unpack it"),
    (b"PAR1", "a Parquet file: give it a name that ends in .parquet"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"<", "an HTML page, probably an error of the download"),
)


def shape_of(path: Path) -> str | None:
    """Return what a file is that is not what was looked for; `None` where nothing can be said."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    for beginning, what in _BEGINNINGS:
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(beginning):
            return what
    first = start.decode("utf-8", errors="replace").lstrip("\ufeff").split("\n")
    head = first[0].strip().split("\t")
    if len(head) > 2:
        return f"a table of tab-separated cells ({', '.join(head)[:80]})"
    if not start.strip():
        return "empty"
    lines = [line for line in first[:3] if line.strip()][:2]
    if len(lines) == 2 and all(_loaded(line, dict) for line in lines):
        return "JSON lines, one object each"
    if _loaded(start, list):
        return "one JSON list"
    return "one JSON object" if _loaded(start, dict) else None


def _loaded(text: str | bytes, kind: type) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except ValueError:
        return False


def _other_shape(path: Path, wanted: str, fault: str) -> ValueError:
    what = shape_of(path)
    if what is None or what.startswith(wanted):  # it is what was looked for, and broken
        return ValueError(f"{path}{fault}: {AGAIN}.")
    return ValueError(f"{path}{fault}: it is {what}; {wanted} is read here.")


def read_text(path: Path) -> str:
    """Return a text file; raises ValueError if it is missing or no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: check the path.") from None
    except UnicodeDecodeError:
        what = shape_of(path)
        advice = f"it is {what}" if what else f"{AGAIN}, or unpack it"
        raise ValueError(f"{path} is no UTF-8 text: {advice}.") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises ValueError if it is missing or no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        fault = f" is no JSON (line {error.lineno}, {error.msg})"
        raise _other_shape(path, "one JSON value", fault) from None


def read_json_lines(
    path: Path, needs: Sequence[str] = (), drop_cut_end: bool = False
) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; raises ValueError if a line is none or lacks one of `needs`.

    `drop_cut_end` leaves out a last line that does not parse, as a killed writer leaves it.
    """
    lines = read_text(path).split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if drop_cut_end and number == len(lines):
                break
            raise _other_shape(path, "JSON lines", f" line {number} is no JSON") from None
        require(row, needs, f"{path} line {number}")
        rows.append(row)
    return rows


def require(row: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no JSON object: it is no file of this kind.")
    missing = [name for name in names if name not in row]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(map(str, row))[:200]}.")


def read_list(path: Path, name: str | None, needs: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a JSON list, or of the list under `name` in an object; each has all of `needs`."""
    content = read_json(path)
    if name is not None:
        require(content, [name], str(path))
        content = content[name]
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no list of rows: it is no file of this kind.")
    for number, row in enumerate(content):
        require(row, needs, f"{path} row {number}")
    return content


def read_keyed(path: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of a JSON object of id to row; raises ValueError if a row lacks a name."""
    content = read_json(path)
    for identity, row in content.items() if isinstance(content, dict) else [("", content)]:
        require(row, names, f"{path} question {identity}")
    return content


def unique(ids: Iterable[Id], where: str) -> None:
    for identity, times in Counter(ids).items():
        if times > 1:
            raise ValueError(f"{where}: id {identity} comes twice: remove the duplicate.")


def find(source: Source, what: str, *patterns: str) -> Path:
    """Return the file of the first matching pattern, in the folder or one below; there must be one alone."""
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
            paths = sorted(path for path in source.folder.glob(place) if path.is_file())
            if len(paths) > 1:
                raise ValueError(
                    f"{source.folder} has {len(paths)} files for {pattern} ({paths[0].name}, "
                    f"{paths[1].name}, ...): give the file itself."
                )
            if paths:
                return paths[0]
    return None


def locate_images(
    source: Source, names: Mapping[Id, str | None], folders: Iterable[str]
) -> dict[Id, ImageSource]:
    """Return question id -> picture file, from file names below the image folder; all must exist.

    The folder is `source.images`, else the first of `folders` beside the data. `None` is a text-only
    question.
    """
    if not source.with_images or not any(names.values()):
        return dict.fromkeys(names)
    places = [source.images] if source.images else [source.folder / name for name in folders]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        looked = ", ".join(map(str, places))
        raise ValueError(f"No folder of pictures: looked for {looked}; give the folder with --images.")
    here = set(os.listdir(root))  # one listing instead of one look per picture
    missing = [
        name
        for name in names.values()
        if name and name not in here and not ("/" in name and (root / name).is_file())
    ]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} pictures are missing from {root} (first: {missing[0]}): unpack "
            "them there, or give the folder with --images."
        )
    return {question: root / name if name else None for question, name in names.items()}


def with_pictures(
    source: Source, rows: Iterable[dict[str, Any]], folders: Iterable[str]
) -> list[dict[str, Any]]:
    """Return rows with `"image"` the file that their `"file"` names, which tells pictures apart, too."""
    rows = list(rows)
    images = locate_images(source, {row["id"]: row["file"] for row in rows}, folders)
    return [{**row, "picture": row.get("picture", row["file"]), "image": images[row["id"]]} for row in rows]


Export = Callable[[Sequence[Question], Mapping[Id, str], Path], Path]
"""`(questions, predictions, path) -> path` of what was written, whole or not at all."""


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def submission(row: Callable[[Question, str], Mapping[str, Any]], *, lines: bool = False) -> Export:
    """Return the writer of a JSON list, or of JSON lines: a row for each question and its answer or `""`."""

    def export(questions: Sequence[Question], predictions: Mapping[Id, str], path: Path) -> Path:
        rows = [row(question, predictions.get(question.id, "")) for question in questions]
        return write_text(path, json_lines(rows) if lines else json.dumps(rows, ensure_ascii=False))

    return export
