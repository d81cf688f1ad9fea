"""Rows and pictures that mean harm, or look like it: what each of them is, and what the check must call it.

python tests/data/hostile_inputs.py OUT    # writes them and prints what the check says about each
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SECRET = "secret.png"
"""A picture outside the root; nothing may read it."""


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG file with a header that says this size, and these chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    whole = io.BytesIO()
    image.save(whole, format, **options)
    return whole.getvalue()


def pictures() -> dict[str, tuple[bytes, str | None]]:
    """Files by name, and the code that the check must give; `None` where the picture is good."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    jpeg = saved(photo, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray((np.arange(4800, dtype=np.uint16) * 13).reshape(60, 80))
    frames = {"save_all": True, "append_images": [photo.quantize(), photo.rotate(90).quantize()]}
    zeros = zlib.compress(bytes(50_000_000))
    return {
        "zero bytes.jpg": (b"", "undecodable_image"),
        "html.jpg": (b"<!DOCTYPE html><title>404 Not Found</title>", "undecodable_image"),
        "cut in the middle.jpg": (jpeg[: len(jpeg) // 2], "undecodable_image"),
        "cut header.png": (saved(photo, "PNG")[:20], "undecodable_image"),
        "bomb: 40,000 x 40,000.png": (png(40_000, 40_000, chunk(b"IDAT", zeros)), "oversized_image"),
        "gigantic: 2,000,000,000 x 1.png": (png(2_000_000_000, 1, chunk(b"IDAT", zeros)), "oversized_image"),
        "no height.png": (png(100, 0, chunk(b"IDAT", zeros)), "undecodable_image"),
        "thin: 5 x 4,000.png": (saved(Image.new("RGB", (5, 4000)), "PNG"), "oversized_image"),
        "text bomb.png": (
            png(8, 8, chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"IDAT", b"")),
            "undecodable_image",
        ),
        "pixels missing.png": (png(64, 64, chunk(b"IDAT", zlib.compress(b"\0" * 99))), "undecodable_image"),
        "wrong checksum.png": (saved(photo, "PNG").replace(b"IDAT", b"IDAU", 1), "undecodable_image"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ls) run", "undecodable_image"),
        "svg.png": (
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            "undecodable_image",
        ),
        "animated gif.jpg": (saved(photo.quantize(), "GIF", **frames), "wrong_suffix"),
        "png.jpg": (saved(photo, "PNG"), "wrong_suffix"),
        "animated.gif": (saved(photo.quantize(), "GIF", **frames), None),
        "cmyk.jpg": (saved(photo.convert("CMYK"), "JPEG"), None),
        "16 bit.png": (saved(deep, "PNG"), None),
        "float.tif": (saved(photo.convert("F"), "TIFF"), None),
        "exif rotated.jpg": (saved(photo, "JPEG", exif=exif), "exif_rotation"),
        "broken exif.jpg": (saved(photo, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), None),
        "transparent.png": (saved(photo.convert("RGBA"), "PNG"), None),
        "one pixel.png": (saved(photo.resize((1, 1)), "PNG"), None),
        "name with\nline break.png": (saved(photo, "PNG"), None),
    }


def turns(question: str = "<image>\nWhat?", answer: object = "That.") -> list[dict[str, object]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def texts(root: Path) -> dict[str, tuple[object, str | None]]:
    """Rows by what they are, and the code that the check must give; raw bytes stand for themselves."""
    giant = "x" * 10_000_000

    def row(name: str, **more: object) -> dict[str, object]:
        return {"id": name, "conversations": turns("What?"), **more}

    def shown(image: object) -> dict[str, object]:
        return {"id": f"image {str(image)[:40]}", "image": image, "conversations": turns()}

    return {
        "path: parent": (shown(f"../{SECRET}"), "path_outside_root"),
        "path: parent in the middle": (shown(f"in zip/../../{SECRET}"), "path_outside_root"),
        "path: absolute": (shown(str(root.parent / SECRET)), "path_outside_root"),
        "path: absolute, of Windows": (shown("C:\\pagefile.sys"), "path_outside_root"),
        "path: address": (shown("http://127.0.0.1/x.png"), "path_outside_root"),
        "path: zero byte": (shown("png.jpg\0.png"), "path_outside_root"),
        "path: link out of the root": (shown("link.png"), "path_outside_root"),
        "path: through a linked folder": (shown(f"linked/{SECRET}"), "path_outside_root"),
        "path: pipe": (shown("pipe.png"), "missing_image"),
        "path: folder": (shown("in zip"), "missing_image"),
        "path: endless": (shown(giant), "missing_image"),
        "path: none": (shown("none.png"), "missing_image"),
        "path: number": (shown(17), "malformed_row"),
        "path: empty": (shown(""), "malformed_row"),
        "zip: absolute entry": (shown("in zip/etc/absolute.png"), "missing_image"),
        "zip: entry above": (shown("in zip/above.png"), "missing_image"),
        "zip: bomb": (shown("in zip/bomb.png"), "oversized_image"),
        "zip: good entry": (shown("in zip/good.png"), None),
        "json: NaN": (b'{"id": "nan", "score": NaN, "conversations": []}', "malformed_row"),
        "json: Infinity": (b'{"id": "inf", "score": -Infinity, "conversations": []}', "malformed_row"),
        "json: broken UTF-8": (b'{"id": "\xc3\x28", "conversations": []}', "malformed_row"),
        "json: a number of 5,000 digits": (b'{"id": ' + b"9" * 5000 + b"}", "malformed_row"),
        "json: 100,000 brackets deep": (b"[" * 100_000 + b"]" * 100_000, "malformed_row"),
        "json: text": (b'"row"', "malformed_row"),
        "json: null": (b"null", "malformed_row"),
        "json: half a character in an id": (row("\ud800"), None),
        "json: half a character in a text": (row("h", conversations=turns("Hi", "\ud83d")), "malformed_row"),
        "type: id": (row([1]), "malformed_row"),
        "type: conversations": (row("x", conversations={"from": "human"}), "malformed_row"),
        "type: turn": (row("y", conversations=["Hi", "Ho"]), "malformed_row"),
        "type: answer": (row("z", conversations=turns("Hi", 3)), "malformed_row"),
        "long: answer of 10 MB": (row("long", conversations=turns("Hi", giant)), "too_long"),
        "long: role of 10 MB": (row("role", conversations=[{"from": giant, "value": ""}]), "bad_roles"),
        "roles: none of them an answer": (row("q", conversations=turns("Hi")[:1]), "no_supervision"),
        "roles: system": (
            row("s", conversations=[{"from": "system", "value": "a"}, *turns("Hi")]),
            None,
        ),
        "answer: blanks": (row("b", conversations=turns("Hi", " \t\n")), "empty_answer"),
        "placeholder: none": (row("p", image="one pixel.png"), "no_placeholder"),
        "placeholder: in the answer": (
            row("a", conversations=turns("Hi", "<image>")),
            None,
        ),
    }


def write(out: Path) -> list[tuple[str, str | None]]:
    """Write `rows.json` and `root/`; return what each row is and the code that the check must give it."""
    root = out / "root"
    root.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(out / SECRET)
    listed: list[tuple[str, str | None]] = []
    raw: list[bytes] = []
    for name, (data, code) in pictures().items():
        (root / name).write_bytes(data)
        row = {"id": f"picture {name}", "image": name, "conversations": turns()}
        raw.append(json.dumps(row).encode())
        listed.append((f"picture: {name!r}", code))
    (root / "in zip").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "link.png").symlink_to(out / SECRET)
    (root / "linked").symlink_to(out)
    good = saved(Image.linear_gradient("L").resize((8, 8)), "PNG")
    with zipfile.ZipFile(root / "in zip" / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("/etc/absolute.png", "../above.png", "good.png"):
            archive.writestr(name, good)
        with archive.open("bomb.png", "w") as entry:
            for _ in range(300):
                entry.write(bytes(1 << 20))
    for name, (row, code) in texts(root).items():
        raw.append(row if isinstance(row, bytes) else json.dumps(row).encode())
        listed.append((name, code))
    (out / "rows.json").write_bytes(b"[" + b",\n".join(raw) + b"]")
    return listed


if __name__ == "__main__":
    from basic_lite.data.checks import check_data
    from basic_lite.data.readers import open_rows

    where = Path(sys.argv[1])
    names = [name for name, _ in write(where)]
    opened = open_rows(where / "rows.json", where / "root")
    said = {f.row: f for f in check_data(opened)}
    for number, name in enumerate(names):
        finding = said.get(number)
        print(f"{name:40} {'good' if finding is None else f'{finding.code}: {finding.detail}'}")
