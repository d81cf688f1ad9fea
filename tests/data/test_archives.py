import gzip
import io
import os
import shutil
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from data.made_rows import row, write_tar
from PIL import Image

from basic_lite.data import archives
from basic_lite.data.archives import MAX_BYTES, Archive, archives_in, open_archive, unpacked
from basic_lite.data.checks import check_pictures
from basic_lite.data.pictures import load_image
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import ImageRef, RowFault


@pytest.fixture(autouse=True)
def _forget() -> None:
    open_archive.cache_clear()
    archives_in.cache_clear()


def png(image: Image.Image) -> bytes:
    whole = io.BytesIO()
    image.save(whole, "PNG")
    return whole.getvalue()


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        write_tar(path, files)
    return path


@pytest.mark.parametrize("name", ["images.zip", "images.tar"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_rows_read_pictures_in_place(
    write_rows: Callable, tmp_path: Path, picture: Callable, name: str, method: int
) -> None:
    files = {f"00{i}/{i}.jpg": png(picture(10 + i, 8)) for i in range(5)}
    (tmp_path / "elsewhere").mkdir()
    path = pack(tmp_path / "elsewhere" / name, files, method)
    rows = open_rows(
        write_rows([row(str(i), "<image>", "x", image=f"00{i}/{i}.jpg") for i in range(5)]), path
    )
    assert [load_image(sample.images[0]).size for sample in rows] == [(10 + i, 8) for i in range(5)]
    with pytest.raises(RowFault, match="is not under") as caught:
        load_image(ImageRef("000/1.jpg", str(path)))
    assert caught.value.code == "missing_image"
    assert [(f.row, f.code) for f in check_pictures(rows)] == [(i, "wrong_suffix") for i in range(5)]


def test_archives_along_the_path(tmp_path: Path, picture: Callable) -> None:
    for folder in ("coco", "vg"):
        (tmp_path / folder).mkdir()
    pack(tmp_path / "coco" / "train2017.zip", {"train2017/1.png": png(picture(11, 8))})
    pack(tmp_path / "vg" / "images.zip", {"VG_100K/2.png": png(picture(12, 8))})
    pack(tmp_path / "vg" / "images2.tar", {"./VG_100K_2/3.png": png(picture(13, 8))})
    pack(tmp_path / "shard.tar", {"coco/train2017/4.png": png(picture(14, 8))})
    root = str(tmp_path)
    for name, width in (
        ("coco/train2017/1.png", 11),
        ("vg/VG_100K/2.png", 12),
        ("vg/VG_100K_2/3.png", 13),
        ("coco/train2017/4.png", 14),
    ):
        assert load_image(ImageRef(name, root)).size == (width, 8)
    with pytest.raises(RowFault, match="is not under"):
        load_image(ImageRef("vg/VG_100K/3.png", root))


def test_index_is_kept_and_renewed(
    tmp_path: Path, picture: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "a.zip", {"a.png": png(picture(8, 8))})
    assert len(Archive(path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_entries", None)
        assert Archive(path).find("a.png") == 0
        assert Archive(path).find("./x/../a.png") == 0
    pack(path, {"a.png": png(picture(8, 8)), "b.png": b""})
    assert len(Archive(path)) == 2


def test_the_later_of_two_entries_counts(tmp_path: Path, picture: Callable) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(picture(8, 8)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png(picture(9, 8)))
    assert load_image(ImageRef("a.png", str(path))).size == (9, 8)


def code_of(name: str, path: Path) -> str:
    with pytest.raises(RowFault) as caught:
        load_image(ImageRef(name, str(path)))
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_entries_that_would_leave_the_folder(tmp_path: Path, picture: Callable, suffix: str) -> None:
    good = png(picture(8, 8))
    names = ["/etc/a.png", "../a.png", "x/../../a.png", "ok.png"]
    path = pack(tmp_path / f"a{suffix}", dict.fromkeys(names, good))
    assert len(Archive(path)) == 1
    for name in names[:3]:
        assert code_of(name, path) == "path_outside_root"
    assert code_of("etc/a.png", path) == code_of("a.png", path) == "missing_image"
    assert load_image(ImageRef("ok.png", str(path))).size == (8, 8)


def test_links_and_folders_in_a_tar_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("d.png", tarfile.DIRTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("empty.png"))
    for name in ("link.png", "hard.png", "d.png"):
        assert code_of(name, path) == "missing_image"
    assert code_of("empty.png", path) == "undecodable_image"


def test_an_archive_behind_a_link_out_of_the_root(tmp_path: Path, picture: Callable) -> None:
    (tmp_path / "in").mkdir()
    outside = pack(tmp_path / "out.zip", {"a.png": png(picture(8, 8))})
    os.symlink(outside, tmp_path / "in" / "out.zip")
    assert code_of("a.png", tmp_path / "in") == "missing_image"
    ref = ImageRef("a.png", str(tmp_path / "in"), follow_links=True)
    assert load_image(ref).size == (8, 8)


def test_damaged_entries(tmp_path: Path, picture: Callable) -> None:
    data = png(picture(64, 64))
    path = pack(tmp_path / "a.zip", {"a.png": data}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[200] ^= 1
    path.write_bytes(raw)
    with pytest.raises(RowFault, match="checksum"):
        load_image(ImageRef("a.png", str(path)))
    path = pack(tmp_path / "b.zip", {"a.png": data}, zipfile.ZIP_BZIP2)
    assert code_of("a.png", path) == "undecodable_image"
    path = pack(tmp_path / "c.tar", {"a.png": data})
    os.truncate(path, 1500)
    assert code_of("a.png", path) in ("undecodable_image", "missing_image")
    path = pack(tmp_path / "d.zip", {"a.png": data})
    raw = path.read_bytes()
    at = raw.index(b"PK\1\2")
    path.write_bytes(raw[: at + 8] + b"\1" + raw[at + 9 :])  # "encrypted"
    assert code_of("a.png", path) == "undecodable_image"


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as entry:
        for _ in range(MAX_BYTES // (1 << 20) + 1):
            entry.write(bytes(1 << 20))
    assert code_of("a.png", path) == "oversized_image"
    raw = path.read_bytes()
    at = raw.index(b"PK\1\2") + 24
    path.write_bytes(raw[:at] + (1000).to_bytes(4, "little") + raw[at + 4 :])  # it lies about its size
    open_archive.cache_clear()
    tracemalloc.start()
    assert code_of("a.png", path) == "undecodable_image"
    assert tracemalloc.get_traced_memory()[1] < 20 << 20  # not the 257 MiB that it would unpack to
    tracemalloc.stop()


def test_two_processes_unpack_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of one run do; a second one must not take the first one's unfinished file for its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = bytes(range(256)) * 40
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(data))

    def in_halves(packed: IO[bytes], file: IO[bytes], length: int) -> None:
        whole = packed.read()
        file.write(whole[: length // 4096])
        file.flush()
        time.sleep(0.2)
        file.write(whole[length // 4096 :])

    monkeypatch.setattr(shutil, "copyfileobj", in_halves)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(unpacked, [tmp_path / "a.json.gz"] * 2))
    assert [path.read_bytes() == data for path in paths] == [True, True]


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_broken_archives(write_rows: Callable, tmp_path: Path, name: str) -> None:
    annotations = write_rows([row("a", "<image>", "x", image="a.png")])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"PK\5\6 nothing" * 30)
    with pytest.raises(ValueError, match=r"neither a zip nor|damaged zip") as caught:
        open_rows(annotations, tmp_path / "in" / name)
    assert "\n" not in str(caught.value)
    assert [f.code for f in check_pictures(open_rows(annotations, tmp_path / "in"))] == ["missing_image"]


def test_a_compressed_tar_is_refused(write_rows: Callable, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match="uncompressed tar"):
        open_rows(write_rows([row("a", "Hi", "x")]), path)
    with pytest.raises(ValueError, match="holds no images"):
        open_rows(write_rows([row("a", "Hi", "x")]), write_rows([], "b.json"))
