"""The data of `--model tiny`: the embedded world, written once beside the runs and used by every command."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from basic_lite import files
from basic_lite.data.world import parts
from basic_lite.data.world.dataset import World, world_in, write_world
from basic_lite.data.world.lexicon import Language, is_meaningful
from basic_lite.data.world.render import Picture
from basic_lite.data.world.scenes import Scene, sample_scene

FOLDER = "tiny-world"
SCALE: dict[str, int] = {"captions": 1200, "conversations": 1200, "questions": 140}
"""Rows of stage 1, of stage 2, and MMBench questions per language before rotations."""

_STAMP = "world.json"


def is_embedded(llm: str) -> bool:
    """Return whether a decoder is the one that ships with the package."""
    return llm in parts.EMBEDDED


def world_beside(run: Path, say: Callable[[str], None] | None) -> World:
    """Return the world in the folder that a run's folder is in, and draw it first where it is missing.

    `say` is called with a line for the user; with `None` nothing is drawn.
    """
    folder = run.parent / FOLDER
    if say is None:
        return world_in(folder)
    try:
        return world_at(folder, say)
    except OSError as error:
        raise ValueError(
            f"the embedded world cannot be drawn in {folder} ({error.strerror or error}); "
            "choose another --out"
        ) from error


def questions_beside(run: Path, benchmark: str, say: Callable[[str], None]) -> Path:
    """Return a run's file of the embedded world in a benchmark's format; raises ValueError if it has none."""
    languages: dict[str, Language] = {"mmbench": "en", "mmbench-cn": "zh"}
    language = languages.get(benchmark)
    if language is None:
        raise ValueError(
            f"the embedded world asks mmbench and mmbench-cn, not {benchmark}; to ask it of the tiny model "
            "give --data"
        )
    return world_beside(run, say).mmbench[language]


def world_at(folder: Path, say: Callable[[str], None] = lambda line: None, seed: int = 0) -> World:
    """Return the world in a folder; a missing one, or one of another scale or seed, is drawn first.

    Of several processes that start together the first one draws, and the others wait for it.
    """
    stamp = {"seed": seed, **SCALE}
    path = folder / _STAMP

    def there() -> bool:
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == stamp

    if there():
        return world_in(folder)
    with files.locked(folder, wait=True):
        if not there():
            say(
                f"Drawing the embedded world: {SCALE['captions']:,} captioned scenes, "
                f"{SCALE['conversations']:,} conversations, {SCALE['questions']:,} questions in two "
                f"languages, in {folder}"
            )
            with files.complete(folder) as draft:
                write_world(draft, seed, **SCALE)
                (draft / _STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    return world_in(folder)


SHOWN = 0.2


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Return scenes that each have a thing of a pair never seen in training."""
    rng = random.Random(f"inspection {seed}")
    return [sample_scene(rng, held_out=True) for _ in range(count)]


def meaningful(scene: Scene, picture: Picture, tokens: list[str]) -> list[bool | None]:
    """Return for each patch whether its token names something true there; `None` where no thing is."""
    return [
        is_meaningful(token, scene.things[thing]) if share >= SHOWN else None
        for token, thing, share in zip(tokens, picture.thing, picture.share, strict=True)
    ]
