"""The embedded world's files for an ablation: one world for each seed, no more of it than is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from basic_lite.demo import signs, world
from basic_lite.demo.dataset import World, world_in, write_world
from basic_lite.writing import complete, write_json

SCENES: int = 200
"""Held-out scenes that a run is measured on."""

_STAMP = "world.json"


def scale_of(stages: int, quick: bool) -> dict[str, int]:
    """Return rows of stage 1 and 2 and questions; a third of the world where it is to be quick."""
    full = {name: count // 3 if quick else count for name, count in world.SCALE.items()}
    return full if stages == 2 else {**full, "conversations": 0, "questions": 0}


def draw(folder: Path, seed: int, scale: dict[str, int], say: Callable[[str], None]) -> World:
    """Return the world in a folder; it is drawn where it is missing or has less than is needed.

    Args:
        folder: of this seed's world.
        seed: of every scene and sentence.
        scale: as `scale_of`.
        say: takes one line for the user.
    """
    path = folder / _STAMP
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # The captions come first and are the same with and without what follows them.
    same = there.get("seed") == seed and there.get("captions") == scale["captions"]
    if not (same and all(there[name] >= count for name, count in scale.items())):
        say(f"Drawing the embedded world of seed {seed}: {scale['captions']:,} captioned scenes, in {folder}")
        with complete(folder) as draft:
            write_world(draft, seed, **scale)
            write_json(draft / _STAMP, {"seed": seed, **scale})
    return world_in(folder)


def draw_signs(
    folder: Path, seed: int, scale: dict[str, int], scenes: int, say: Callable[[str], None]
) -> None:
    """Draw the world of scenes with signs where it is missing; `scenes` of them are to be measured on."""
    stamp = {"seed": seed, "captions": scale["captions"], "held out": scenes}
    path = folder / _STAMP
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == stamp:
        return
    say(f"Drawing scenes with signs, seed {seed}: {scale['captions']:,} to learn from, in {folder}")
    with complete(folder) as draft:
        signs.write_signs(draft, seed, scale["captions"], scenes)
        write_json(draft / _STAMP, stamp)
