"""Where a row's picture is (in a folder, the row, a zip or a tar, never outside), and its bytes.

558,128 entries of LLaVA-Pretrain's images.zip as Python objects take 0.4 GB in every process, so their
places are kept as columns: 34 bytes an entry, found by the hash of the name.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import os
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from basic_lite.data.rows import ImageRef, RowFault, shown, text_hash
from basic_lite.files import complete, load_table, locked, one_line, save_table, table_places

SUFFIXES: tuple[str, ...] = (".zip", ".tar", ".tar.gz", ".tgz")

PICTURE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

STORED, DEFLATED, RAW, SEALED = 0, 8, 254, 255
"""How an entry is stored: zip's own numbers 0 and 8; as it is, in a tar; encrypted."""

COLUMNS: dict[str, type[np.generic]] = {
    "name_hash": np.uint64,
    "offset": np.int64,
    "kept": np.int64,
    "size": np.int64,
    "crc": np.uint32,
    "method": np.uint8,
}


class Archive:
    """The files inside one zip or tar, by name.

    Raises ValueError if it is no archive that can be read in place.
    """

    def __init__(self, path: Path) -> None:
        self.path = unpacked(path)
        state = path.stat()
        key = {"format": "2", "bytes": str(state.st_size), "mtime_ns": str(state.st_mtime_ns)}
        places = table_places(path, "index")
        kept = load_table(places, key, COLUMNS)
        if kept is None:
            self.folder, self.columns = _entries(self.path)
            save_table(places, {**key, "folder": self.folder}, self.columns)
        else:
            self.folder, self.columns = kept[0]["folder"], kept[1]

    def __len__(self) -> int:
        return len(self.columns["name_hash"])

    def find(self, name: str) -> int | None:
        """Return the number of the entry with this name, `None` if there is none.

        A name may leave out folders that all pictures of the archive are in: `images/`, or `images/train/`.
        """
        parts, hashes = self.folder.split("/") if self.folder else [], self.columns["name_hash"]
        for depth in range(len(parts) + 1):
            wanted = np.uint64(text_hash(posixpath.normpath(posixpath.join(*parts[:depth], name))))
            place = int(np.searchsorted(hashes, wanted))
            if place < len(hashes) and hashes[place] == wanted:
                return place
        return None

    def stored(self, name: str) -> Stored | None:
        """Return the entry with this name, unread; see `find`."""
        entry = self.find(name)
        if entry is None:
            return None
        size, crc = int(self.columns["size"][entry]), int(self.columns["crc"][entry])
        return Stored(size, hash((size, crc)), partial(self._read, entry, name))

    def _read(self, entry: int, name: str) -> bytes:
        offset, kept, size, crc, method = (int(self.columns[column][entry]) for column in list(COLUMNS)[1:])
        if method not in (STORED, DEFLATED, RAW):
            packed = f"it is packed by method {method}; 0 and 8 are read"
            raise self._damage(name, "it is encrypted" if method == SEALED else packed)
        # Opened each time: workers share nothing, and a thousand shards are no thousand open files.
        with open(self.path, "rb") as file:
            file.seek(offset)
            if method == RAW:
                data = file.read(size)
            else:
                header = file.read(30)
                if header[:4] != b"PK\3\4" or len(header) < 30:
                    raise self._damage(name, "its header is broken")
                file.seek(sum(struct.unpack("<HH", header[26:30])), os.SEEK_CUR)
                data = file.read(kept)
        if method == DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, size + 1)  # never more than promised
            except zlib.error as error:
                raise self._damage(name, one_line(error)) from None
        if len(data) != size or (method != RAW and zlib.crc32(data) != crc):
            raise self._damage(name, "its bytes do not match their size or checksum")
        return data

    def _damage(self, name: str, reason: str) -> RowFault:
        return RowFault("undecodable_image", f"image {shown(name)} in {self.path.name}: {reason}")


def unpacked(path: Path) -> Path:
    """Return a gzip-compressed file unpacked, in the user's cache: rows and pictures are read by their place.

    Raises ValueError if it is damaged, or the cache has no room for it.
    """
    if path.suffix not in (".gz", ".tgz"):
        return path
    state = path.stat()
    name = path.stem if path.suffix == ".gz" else f"{path.stem}.tar"
    cache = table_places(path, "unpacked")[-1]
    target = cache / f"{state.st_size}-{state.st_mtime_ns}" / name
    if not target.exists():
        try:
            with locked(target, wait=True):  # the processes of one run ask at the same time
                if not target.exists():
                    with complete(target) as draft, gzip.open(path) as packed, draft.open("wb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be unpacked into {cache}: {one_line(error)}") from None
    return target


@functools.cache
def open_archive(path: str) -> Archive | str:
    """Return the archive at `path`, or why it cannot be read; opened once per process."""
    try:
        return Archive(Path(path))
    except (ValueError, OSError) as error:
        return one_line(error)


@functools.lru_cache(maxsize=4096)
def archives_in(folder: str) -> tuple[str, ...]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ()
    return tuple(os.path.join(folder, name) for name in names if name.lower().endswith(SUFFIXES[:2]))


def _entries(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return the folder that all pictures of an archive are in, and its entries."""
    listed, folder = [], None
    for name, *where in _zip_entries(path) if zipfile.is_zipfile(path) else _tar_entries(path):
        listed.append((text_hash(name), *where))
        if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("__MACOSX/"):
            inside = posixpath.dirname(name)
            if folder is None:
                folder = inside
            elif not f"{inside}/".startswith(f"{folder}/"):
                folder = posixpath.commonpath([folder, inside])
    columns = {
        name: np.array([entry[i] for entry in listed], kind) for i, (name, kind) in enumerate(COLUMNS.items())
    }
    # Of two entries with one name the later counts, as when unpacked.
    _, last = np.unique(columns["name_hash"][::-1], return_index=True)
    keep = len(listed) - 1 - last
    return folder or "", {name: column[keep] for name, column in columns.items()}


def _zip_entries(path: Path) -> Iterator[tuple[str, int, int, int, int, int]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = _inside(entry.filename)
                if name is not None and not entry.is_dir():
                    method = SEALED if entry.flag_bits & 1 else min(entry.compress_type, RAW - 1)
                    where = (entry.header_offset, entry.compress_size, entry.file_size)
                    yield name, *where, entry.CRC, method
    except (OSError, zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is a damaged zip: {one_line(error)}. Download it again.") from None


def _tar_entries(path: Path) -> Iterator[tuple[str, int, int, int, int, int]]:
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else all stay in memory
                name = _inside(entry.name)
                if name is not None and entry.isreg() and not entry.issparse():
                    stamp = zlib.crc32(repr((entry.mtime, entry.chksum)).encode())
                    yield name, entry.offset_data, entry.size, entry.size, stamp, RAW
    except (OSError, tarfile.TarError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is neither a zip nor an uncompressed tar: {one_line(error)}. Unpack or repack it."
        ) from None


def _inside(name: str) -> str | None:
    """Return an entry's name as rows write it, `None` for one that would leave the folder when unpacked."""
    plain = posixpath.normpath(name)
    leaves = name.startswith("/") or plain.startswith("../") or plain in (".", "..") or "\0" in name
    return None if leaves else plain


MAX_BYTES: int = 256 << 20
"""Largest picture file that is read."""


@dataclass(frozen=True)
class Stored:
    """A picture's encoded bytes, not yet read."""

    size: int  # how many bytes
    stamp: int  # changes when the bytes do
    load: Callable[[], bytes]
    name: str = ""  # its name, if that is not the one in the row

    def read(self, name: str) -> bytes:
        """Read the bytes; `name` is what messages call the picture.

        Raises RowFault `missing_image` or `oversized_image`, in an archive also `undecodable_image`.
        """
        if self.size > MAX_BYTES:
            detail = f"image {shown(name)} has {self.size:,} bytes; at most {MAX_BYTES:,} are read"
            raise RowFault("oversized_image", detail)
        try:
            return self.load()
        except OSError as error:
            detail = f"image {shown(name)} cannot be read: {one_line(error)}"
            raise RowFault("missing_image", detail) from None


def path_fault(name: object) -> RowFault | None:
    """Return what is wrong with an image path before any disk is asked, `None` if nothing is."""
    if not isinstance(name, str):
        return None
    if "\0" in name:
        reason = ": a path cannot hold a zero byte"
    elif "://" in name:
        reason = " is a web address: download it, and give its path"
    elif name.startswith(("/", "\\", "~")) or name[1:3] in (":\\", ":/"):
        reason = ": a path must be relative to the image folder"
    elif posixpath.normpath(name).split("/")[0] == "..":
        reason = " leaves the image folder"
    else:
        return None
    return RowFault("path_outside_root", f"image {shown(name)}{reason}")


def locate(ref: ImageRef) -> Stored:
    """Find a picture, without reading it; raises RowFault `missing_image` or `path_outside_root`.

    A path is tried as a file, then in the zip and tar files of the folders along it: `coco/train2017/1.jpg`
    may also be `train2017/1.jpg` in `coco/train2017.zip`. Last, the same is tried with `other_names`.
    """
    if ref.data is not None:
        data = ref.data
        return Stored(len(data), len(data), lambda: data)
    fault = path_fault(ref.name)
    if fault is not None:
        raise fault
    if ref.root is None:
        raise RowFault("missing_image", f"image {shown(ref.name)}: no image folder was given")
    stored = _find(ref, ref.root)
    if stored is not None:
        return stored
    for name in other_names(ref.name):
        if path_fault(name) is None and (stored := _find(replace(ref, name=name), ref.root)) is not None:
            return replace(stored, name=name)
    raise RowFault("missing_image", f"image {shown(ref.name)} is not under {ref.root}")


def _find(ref: ImageRef, root: str) -> Stored | None:
    if root.lower().endswith(SUFFIXES) and os.path.isfile(root):
        return _entry([root], ref.name)
    return _file(ref, root) or _packed(ref, root)


def other_names(name: str) -> list[str]:
    """Return other names that a missing picture may have, as other systems and web pages write them.

    Without blanks around it, with slashes for backslashes, with percent codes resolved; and each of these
    with its suffix in the other case, or with a suffix if it has none.
    """
    plain = name.strip()
    slashed = plain.replace("\\", "/")
    names = []
    for written in dict.fromkeys((name, plain, slashed, unquote(slashed))):
        stem, suffix = posixpath.splitext(written)
        names.append(written)
        if suffix.lower() in PICTURE_SUFFIXES:
            names += [stem + suffix.lower(), stem + suffix.upper()]
        else:
            names += [written + added for each in PICTURE_SUFFIXES[:4] for added in (each, each.upper())]
    return [other for other in dict.fromkeys(names) if other != name]


def nearest_name(ref: ImageRef) -> str:
    """Return the name in the folder that is most like that of a missing picture, empty if none is."""
    if ref.root is None:
        return ""
    folder, name = posixpath.split(ref.name.strip().replace("\\", "/"))
    try:
        names = sorted(entry.name for entry in os.scandir(os.path.join(ref.root, folder)))
    except (OSError, ValueError):
        return ""
    lower = {other.lower(): other for other in names[:MAX_COMPARED]}  # some systems do not tell A from a
    near = difflib.get_close_matches(name.lower(), lower, 1)
    return posixpath.join(folder, lower[near[0]]) if near else ""


MAX_COMPARED: int = 20_000
"""Most names that a missing one is compared with: half a second."""


def read_file(path: Path) -> bytes:
    """Read encoded bytes from this very file; archives beside it are not searched.

    Raises RowFault `missing_image` or `oversized_image`.
    """
    root = str(path.parent)
    stored = _file(ImageRef(path.name, root=root, follow_links=True), root)
    if stored is None:
        raise RowFault("missing_image", f"image {shown(str(path))} does not exist")
    return stored.read(path.name)


def _file(ref: ImageRef, root: str) -> Stored | None:
    path, image = os.path.join(root, ref.name), f"image {shown(ref.name)}"
    try:
        if not ref.follow_links:
            root, path = os.path.realpath(root), os.path.realpath(path)
            if os.path.commonpath([root, path]) != root:
                detail = f"{image} leaves {ref.root} by a link; --follow-links allows it"
                raise RowFault("path_outside_root", detail)
        state = os.stat(path)
    except RowFault:
        raise
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RowFault("missing_image", f"{image} cannot be read: {one_line(error)}") from None
    if not stat.S_ISREG(state.st_mode):  # a pipe would hang, a folder cannot be read
        raise RowFault("missing_image", f"{image} is no file under {ref.root}")
    return Stored(state.st_size, hash((state.st_size, state.st_mtime_ns)), Path(path).read_bytes)


def _packed(ref: ImageRef, root: str) -> Stored | None:
    folder, parts = root, posixpath.normpath(ref.name).split("/")
    root = os.path.realpath(root)
    for depth in range(len(parts)):
        archives = archives_in(folder)
        if not ref.follow_links:
            archives = tuple(path for path in archives if os.path.realpath(path).startswith(root + os.sep))
        stored = _entry(archives, "/".join(parts[depth:]))
        if stored is not None:
            return stored
        folder = os.path.join(folder, parts[depth])
    return None


def _entry(archives: Sequence[str], name: str) -> Stored | None:
    for path in archives:
        archive = open_archive(path)
        if isinstance(archive, str):
            raise RowFault("missing_image", f"image {shown(name)}: {archive}")
        stored = archive.stored(name)
        if stored is not None:
            return stored
    return None
