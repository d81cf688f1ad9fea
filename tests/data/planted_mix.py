"""Write an instruction mix the size and shape of LLaVA-1.5's 665k rows, with faults planted in it.

    python tests/data/planted_mix.py OUT --rows 665298                 # mix.json, planted.json
    python tests/data/planted_mix.py OUT --rows 20000 --pictures 2000  # and 2000 files in OUT/images

The same arguments write the same bytes. Nothing is kept in memory but the list of what was planted.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from basic_lite.bench.padding import SOURCES, mix_rows, text
from basic_lite.data.rows import CODES

PICTURE_FAULTS = ("missing_image", "undecodable_image", "wrong_suffix", "oversized_image")
TEXT_FAULTS = (*CODES[CODES.index("placeholder_mismatch") : CODES.index("oversized_image")], "malformed_row")


def plant(row: dict[str, Any], code: str, rng: random.Random, earlier: str) -> bytes | None:
    """Put a fault into a row; return the row's bytes where they are no JSON."""
    turns = row["conversations"]
    if code == "placeholder_mismatch":
        human = next(turn for turn in turns if turn["from"] == "human")
        human["value"] += "<image>"
    elif code == "bad_roles":
        turns.append(rng.choice(({"from": "human", "value": "And?"}, {"from": "tool", "value": "{}"})))
    elif code == "empty_answer":
        turns[-1]["value"] = rng.choice(("", " \n"))
    elif code == "no_supervision":
        row["conversations"] = [turn for turn in turns if turn["from"] == "human"][:1]
    elif code == "too_long":
        turns[-1]["value"] = text(rng, 5000)
    elif code == "duplicate_id":
        row["id"] = earlier
    elif code == "path_outside_root":
        bad = rng.choice(("../../etc/passwd", "/etc/passwd", "coco/../../x.jpg"))
        if "image" not in row:
            turns[-2]["value"] += "<image>"
            row["conversations"] = turns[-2:]
        row["image"] = bad
    elif code == "malformed_row":
        return rng.choice(
            (b'{"id": "x", "conversations": NaN}', b'{"id": "\xff\xfe"}', b"17", b'{"id": "y"}')
        )
    return None


def write_mix(out: Path, rows: int, pictures: int = 0, each: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    """Write `mix.json` (and `images/`) with `each` faults of every kind.

    Args:
        out: the folder to write to.
        rows: how many rows.
        pictures: different picture files; 0 writes none and plants no picture faults.
        each: faults of every kind.
        seed: of everything.

    Returns:
        What was planted, `{"row", "code"}`, by row; also in `planted.json`.
    """
    rng = random.Random(seed)
    codes = TEXT_FAULTS + (PICTURE_FAULTS if pictures else ())
    places = rng.sample(range(1, rows), each * len(codes))
    planted = {place: codes[i % len(codes)] for i, place in enumerate(places)}
    out.mkdir(parents=True, exist_ok=True)
    if pictures:
        write_pictures(out / "images", pictures)
    with open(out / "mix.json", "wb") as file:
        separator = b"["
        for number, row in enumerate(mix_rows(rows, pictures or 400_000, seed)):
            code = planted.get(number)
            raw = None
            if code in PICTURE_FAULTS and "image" not in row:
                turn = next(turn for turn in row["conversations"] if turn["from"] == "human")
                turn["value"] += "<image>"
            if code in PICTURE_FAULTS:
                row["image"] = f"faults/{code}.jpg"
            elif code:
                raw = plant(row, code, rng, earlier="000000000")
            file.write(separator + (raw or json.dumps(row, ensure_ascii=number % 3 > 0).encode()))
            separator = b",\n"
        file.write(b"]\n")
    listed = [{"row": row, "code": code} for row, code in sorted(planted.items())]
    (out / "planted.json").write_text(json.dumps(listed))
    return listed


def write_pictures(root: Path, count: int) -> None:
    """Write `count` JPEG files of 500 x 375 under every folder of the mix (linked), and the faulty ones."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:375, :500]
    folders = sorted({folder for *_, folder in SOURCES if folder})
    for folder in (*folders, "faults"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        waves = [np.sin(x * rng.uniform(0.01, 0.2) + y * rng.uniform(0.01, 0.2)) for _ in range(3)]
        noise = rng.integers(-20, 20, (375, 500, 3))
        pixels = (np.stack(waves, 2) * 100 + 128 + noise).clip(0, 255).astype(np.uint8)
        first = root / folders[0] / f"{number:09d}.jpg"
        Image.fromarray(pixels).save(first, quality=85)
        for folder in folders[1:]:
            link = root / folder / first.name
            link.unlink(missing_ok=True)
            link.hardlink_to(first)
    faults = root / "faults"
    whole = (root / folders[0] / f"{0:09d}.jpg").read_bytes()
    (faults / "undecodable_image.jpg").write_bytes(whole[: len(whole) // 2])
    Image.linear_gradient("L").resize((8, 8)).save(faults / "wrong_suffix.jpg", "GIF")
    Image.new("1", (20_000, 20_000)).save(faults / "oversized_image.jpg", "PNG")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=665_298)
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--each", type=int, default=40)
    given = parser.parse_args()
    print(len(write_mix(given.out, given.rows, given.pictures, given.each)), "faults planted")
