"""Rows for the tests of this folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from basic_lite.data.readers import Rows
from basic_lite.data.rows import CODES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "data"


def row(name: str, *texts: str, image: str | None = None) -> dict[str, object]:
    """A LLaVA row whose turns alternate, starting with the human."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": name, **({} if image is None else {"image": image}), "conversations": turns}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar of files by name, packed if the name ends in `gz`; return its path."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def known_fault(rows: Rows, row: int) -> str | None:
    """The code of what the index says is wrong with a row's text."""
    code = int(rows.index.fault[row])
    return CODES[code - 1] if code else None
