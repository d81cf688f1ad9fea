"""Where a row's picture is: in a folder, in an archive, or in the row; and never outside."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from basic_lite.data.archives import SUFFIXES, archives_in, open_archive
from basic_lite.data.samples import ImageRef, RowFault
from basic_lite.data.texts import one_line, shown

MAX_BYTES: int = 256 << 20
"""Largest picture file that is read."""


@dataclass(frozen=True)
class Stored:
    """A picture's encoded bytes, not yet read.

    Attributes:
        size: how many bytes.
        stamp: changes when the bytes do.
        read: returns them.
    """

    size: int
    stamp: int
    read: Callable[[], bytes]


def path_fault(name: object) -> RowFault | None:
    """Return what is wrong with an image path before any disk is asked, `None` if nothing is."""
    if not isinstance(name, str):
        return None
    if "\0" in name:
        return RowFault("path_outside_root", f"image {shown(name)}: a path cannot hold a zero byte")
    if name.startswith(("/", "\\", "~")) or "://" in name or name[1:3] in (":\\", ":/"):
        return RowFault(
            "path_outside_root", f"image {shown(name)}: a path must be relative to the image folder"
        )
    if posixpath.normpath(name).split("/")[0] == "..":
        return RowFault("path_outside_root", f"image {shown(name)} leaves the image folder")
    return None


def locate(ref: ImageRef) -> Stored:
    """Find a picture, without reading it.

    A path is looked for as a file; where there is none, in the zip and tar files that lie along it:
    `coco/train2017/1.jpg` is also found as `train2017/1.jpg` in `coco/train2017.zip`.

    Args:
        ref: where it should be.

    Returns:
        How to read it.

    Raises:
        RowFault: `missing_image` or `path_outside_root`.
    """
    if ref.data is not None:
        data = ref.data
        return Stored(len(data), len(data), lambda: data)
    fault = path_fault(ref.name)
    if fault is not None:
        raise fault
    if ref.root is None:
        raise RowFault("missing_image", f"image {shown(ref.name)}: no image folder was given")
    if ref.root.lower().endswith(SUFFIXES) and os.path.isfile(ref.root):
        found = _entry([ref.root], ref.name)
    else:
        found = _file(ref) or _packed(ref)
    if found is None:
        raise RowFault("missing_image", f"image {shown(ref.name)} is not under {ref.root}")
    return found


def read_bytes(ref: ImageRef) -> bytes:
    """Read a picture's encoded bytes.

    Raises:
        RowFault: `missing_image`, `path_outside_root` or `oversized_image`.
    """
    return _read(locate(ref), ref.name)


def read_file(path: Path) -> bytes:
    """Read a picture's encoded bytes from a file that is named outright; archives beside it are not searched.

    Raises:
        RowFault: `missing_image` or `oversized_image`.
    """
    found = _file(ImageRef(path.name, root=str(path.parent), follow_links=True))
    if found is None:
        raise RowFault("missing_image", f"image {shown(str(path))} does not exist")
    return _read(found, path.name)


def _read(found: Stored, name: str) -> bytes:
    if found.size > MAX_BYTES:
        raise RowFault(
            "oversized_image",
            f"image {shown(name)} has {found.size:,} bytes; at most {MAX_BYTES:,} are read",
        )
    try:
        return found.read()
    except OSError as error:
        raise RowFault("missing_image", f"image {shown(name)} cannot be read: {one_line(error)}") from None


def _file(ref: ImageRef) -> Stored | None:
    path = os.path.join(ref.root, ref.name)
    try:
        if not ref.follow_links:
            root, path = os.path.realpath(ref.root), os.path.realpath(path)
            if os.path.commonpath([root, path]) != root:
                raise RowFault(
                    "path_outside_root",
                    f"image {shown(ref.name)} leaves {ref.root} by a link; --follow-links allows it",
                )
        found = os.stat(path)
    except RowFault:
        raise
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RowFault(
            "missing_image", f"image {shown(ref.name)} cannot be read: {one_line(error)}"
        ) from None
    if not stat.S_ISREG(found.st_mode):  # a pipe would hang, a folder cannot be read
        raise RowFault("missing_image", f"image {shown(ref.name)} is no file under {ref.root}")
    return Stored(found.st_size, hash((found.st_size, found.st_mtime_ns)), Path(path).read_bytes)


def _packed(ref: ImageRef) -> Stored | None:
    folder, parts = ref.root, posixpath.normpath(ref.name).split("/")
    root = os.path.realpath(ref.root)
    for depth in range(len(parts)):
        archives = archives_in(folder)
        if not ref.follow_links:
            archives = [path for path in archives if os.path.realpath(path).startswith(root + os.sep)]
        found = _entry(archives, "/".join(parts[depth:]))
        if found is not None:
            return found
        folder = os.path.join(folder, parts[depth])
    return None


def _entry(archives: Sequence[str], name: str) -> Stored | None:
    for path in archives:
        archive = open_archive(path)
        if isinstance(archive, str):
            raise RowFault("missing_image", f"image {shown(name)}: {archive}")
        entry = archive.find(name)
        if entry is not None:
            return Stored(archive.size(entry), archive.stamp(entry), partial(archive.read, entry, name))
    return None
