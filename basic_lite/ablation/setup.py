"""What all runs in an ablation's folder share, written beside them and compared before any is added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from basic_lite import zoo
from basic_lite.modeling import Sources, read_config
from basic_lite.run_folder import file_hash, identity
from basic_lite.run_lock import contents
from basic_lite.tower import vision_config
from basic_lite.writing import write_json

SETUP: str = "ablation.json"


def fingerprints(sources: Sources) -> dict[str, object]:
    """Say which weights a set-up stands for; of the parts that ship with the package, to the last bit."""
    configs = {
        "llm": read_config(sources.llm, "language model"),
        "tower": vision_config(read_config(sources.tower, "vision tower")),
    }
    found: dict[str, object] = {}
    for what, config in configs.items():
        source = getattr(sources, what)
        found[what] = identity(source, config)
        if source in zoo.EMBEDDED:
            found[what]["sha256"] = file_hash(zoo.EMBEDDED[source] / "model.safetensors")
    return found


def claim(out: Path, setup: Mapping[str, object]) -> None:
    """Write a folder's set-up, or compare it with the one that is there, as far as both speak of a thing.

    Args:
        out: the ablation's folder.
        setup: plain JSON: what all runs in it share.

    Raises:
        ValueError: If the folder holds something else, or runs of another set-up; names what differs.
    """
    path, now = out / SETUP, json.loads(json.dumps(setup))
    if not path.is_file():
        if out.exists() and (not out.is_dir() or contents(out)):
            raise ValueError(f"{out} is in use and holds no ablation (no {SETUP}); choose another --out")
        write_json(path, now)
        return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); choose another --out") from error
    for name in sorted(set(now) & set(then)):
        if now[name] != then[name]:
            raise ValueError(
                f"the runs in {out} were made with another {name}: {_shown(then[name])}, now "
                f"{_shown(now[name])}; choose another --out, or replace them with --overwrite"
            )
    if set(now) - set(then):  # a second stage or a benchmark, say: nothing of what is there speaks against it
        write_json(path, then | now)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
