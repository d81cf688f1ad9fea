"""Rows of any layout, written as LLaVA's."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from pathlib import Path

from basic_lite.data.archives import locate
from basic_lite.data.index import no_progress
from basic_lite.data.pictures import SUFFIXES, open_header
from basic_lite.data.readers import Rows
from basic_lite.data.rows import Finding, ImageRef, RowFault
from basic_lite.files import complete


def convert(rows: Rows, out: Path, progress: Callable[[int, int], None] = no_progress) -> list[Finding]:
    """Write rows as `OUT/rows.jsonl` in LLaVA's layout, and pictures that they carry under `OUT/images/`.

    A picture that is a file stays in its place; its row has the name under which it was read. An answer
    without loss has `"train": false`. Rows that cannot be trained on are not written but returned as
    findings. Raises ValueError if `out` is not an empty or new folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; choose another")
    left_out = []
    with complete(out / "rows.jsonl") as draft, draft.open("w", encoding="utf-8") as file:
        for number in range(len(rows)):
            try:
                file.write(json.dumps(_row(rows, number, out), ensure_ascii=False) + "\n")
            except RowFault as fault:
                left_out.append(Finding(number, "", fault.code, fault.detail))
            progress(number + 1, len(rows))
    return left_out


def _row(rows: Rows, number: int, out: Path) -> dict[str, object]:
    sample = rows[number]
    images = [_picture(ref, f"{number:08d}-{place}", out) for place, ref in enumerate(sample.images)]
    turns = []
    for place, (role, text) in enumerate(sample.turns):
        turn: dict[str, object] = {"from": "gpt" if role == "assistant" else "human", "value": text}
        turns.append(turn | ({"train": False} if place in sample.silent else {}))
    pictures = {} if not images else {"image": images[0] if len(images) == 1 else images}
    source = {"data_source": sample.source} if sample.source else {}
    return {"id": sample.id, **pictures, **source, "conversations": turns}


def _picture(ref: ImageRef, name: str, out: Path) -> str:
    """Return a picture's path, after writing it where the row carries its bytes."""
    if ref.data is None:
        return ref.name if ref.root is None else locate(ref).name or ref.name
    content = str(open_header(ref.data, ref.name).format)
    suffix = SUFFIXES["JPEG" if content == "MPO" else content][0]
    path = posixpath.join("images", name[:4], f"{name}.{suffix}")
    with complete(out / path) as draft:
        draft.write_bytes(ref.data)
    return path
