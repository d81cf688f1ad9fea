"""The samples that models are shown: pictures of a folder, or held-out scenes of the embedded world."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from basic_lite.data.conversation import IMAGE, Turn
from basic_lite.data.pictures import SUFFIXES, load_image
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import ImageRef, RowFault
from basic_lite.data.world.grammar import DESCRIBE, caption
from basic_lite.data.world.lexicon import LANGUAGES
from basic_lite.data.world.render import Picture, enlarged, render
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.world import held_out_scenes
from basic_lite.files import PROJECTOR, check_files, file_hash, read_manifest
from basic_lite.method.types import Weighting
from basic_lite.models.checkpoint import check_identity, load_run, sources_of
from basic_lite.models.llava import Assembled, assemble

QUESTION: str = "Describe the picture in one sentence."
"""Asked of a stage-2 run where no caption's row asks anything."""

_ENDINGS = tuple(f".{suffix}" for names in SUFFIXES.values() for suffix in names)


@dataclass(frozen=True)
class Sample:
    name: str  # its path in the folder, or what a scene holds
    open: Callable[[], Image.Image]  # returns it, as RGB
    question: str = QUESTION  # what a user would ask, without the placeholder
    caption: str | None = None  # what it shows, in words; `None` where it has no caption
    # What it shows exactly, with the drawing; only in the embedded world
    scene: tuple[Scene, Picture] | None = None
    # Returns a larger drawing of it for the report; `None` where there is none
    large: Callable[[], Image.Image] | None = None

    def turns(self, answered: bool) -> list[Turn]:
        """Return the conversation about it, with the caption as its answer or up to there."""
        asked = ("user", f"{IMAGE}\n{self.question}".strip())
        return [asked, ("assistant", self.caption or "")] if answered else [asked]


@dataclass(frozen=True)
class Samples:
    """What is shown to every model of an analysis."""

    chosen: list[Sample]  # the samples, in order
    source: str  # where they are from, in words
    available: int  # how many there were to choose from
    # Chosen ones that cannot be read, each with the reason
    unreadable: list[str] = field(default_factory=list)
    seed: int = 0  # of scenes and their wording


def choose_samples(images: Path | None, captions: Path | None, limit: int, seed: int = 0) -> Samples:
    """Choose at most `limit` pictures to show, with their captions from LLaVA JSON or JSONL.

    `images` is a folder of pictures; the folder of a drawn world stands for held-out scenes of that world,
    and `None` for held-out scenes of the world of `seed`. Raises ValueError if there is no picture, none of
    them has a caption, or none can be read.
    """
    if images is None or (captions is None and (images / "world.json").is_file()):
        return _scenes(images, limit, seed)
    if not images.is_dir():
        raise ValueError(f"--images {images} is no folder; give a folder of pictures")
    names = sorted(_pictures_in(images))
    if not names:
        raise ValueError(f"--images {images} holds no pictures ({', '.join(sorted(_ENDINGS)[:8])}, ...)")
    captioned = {} if captions is None else _captions_of(captions, images, names)
    if captions is not None:
        names = [name for name in names if name in captioned]
        if not names:
            raise ValueError(
                f"no row of --captions {captions} shows a picture of --images {images}, alone and by its "
                f"path or file name; give the folder that the file's image paths start from"
            )
    samples, unreadable = [], []
    for name in _evenly(names, limit):
        ref = ImageRef(name, root=str(images), follow_links=True)
        try:
            load_image(ref)
        except RowFault as fault:
            unreadable.append(str(fault))
            continue
        question, answer = captioned.get(name, (QUESTION, None))
        samples.append(Sample(name, lambda ref=ref: load_image(ref), question, answer))
    if not samples:
        raise ValueError(
            f"none of the {len(unreadable)} pictures chosen from {images} can be read: {unreadable[0]}"
        )
    return Samples(samples, f"pictures of {images}", len(names), unreadable, seed)


def _scenes(folder: Path | None, limit: int, seed: int) -> Samples:
    """Draw held-out scenes, those that a demo of that seed inspects, each described in one language."""
    if folder is not None:
        try:
            seed = int(json.loads((folder / "world.json").read_text(encoding="utf-8"))["seed"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'world.json'} does not say which world this is: {error}") from error
    rng, samples = random.Random(f"captions {seed}"), []
    for scene in held_out_scenes(limit, seed):
        picture, language = render(scene), rng.choice(LANGUAGES)
        samples.append(
            Sample(
                ", ".join(
                    f"{thing.size} {thing.colour} {thing.shape} {thing.place}" for thing in scene.things
                ),
                lambda picture=picture: picture.image,
                DESCRIBE[language][0],
                caption(scene, language, rng),
                (scene, picture),
                lambda scene=scene: enlarged(scene),
            )
        )
    return Samples(samples, f"held-out scenes of the embedded world, seed {seed}", limit, seed=seed)


def _pictures_in(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(_ENDINGS) and not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _evenly(names: list[str], limit: int) -> list[str]:
    """Return `limit` of the names at even distances, all if there are no more."""
    count = min(limit, len(names))
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def _captions_of(path: Path, images: Path, names: list[str]) -> dict[str, tuple[str, str]]:
    """Return question and first answer of the rows that show one of the pictures and nothing else.

    A row's picture is found by its path in the folder, or by its file name where that is no other's.
    """
    if not path.is_file():
        raise ValueError(f"--captions {path} is no file; give a LLaVA JSON or JSONL file")
    known, by_file = set(names), {}
    for name in names:
        by_file.setdefault(name.rpartition("/")[2], []).append(name)
    rows, answers = open_rows(path, images), {}
    for number in range(len(rows)):
        try:
            raw = rows.raw(number)
        except RowFault:
            continue
        if len(raw.images) != 1 or not isinstance(raw.images[0], str):
            continue
        name = Path(raw.images[0]).as_posix()
        alike = by_file.get(name.rpartition("/")[2], [])
        name = name if name in known else alike[0] if len(alike) == 1 else None
        asked = next((text for role, text in raw.turns if role == "user"), "")
        answer = next((text for role, text in raw.turns if role == "assistant" and text.strip()), None)
        if name is not None and answer is not None:
            answers.setdefault(name, (asked.replace(IMAGE, "").strip(), answer))
    return answers


BEFORE = "before training"


@dataclass(frozen=True)
class Subject:
    label: str  # as tables and plots call it
    folder: Path  # of the run; of `BEFORE` the one whose beginning it is
    manifest: dict  # of that run
    seed: int | None = None  # of the fresh projector; `None` for a trained run
    seed_from: str = ""  # how that seed is known

    @property
    def kind(self) -> str:
        """`"before"`, `"plain"` or `"BASIC"`."""
        return "before" if self.seed is not None else _kind(self.manifest)

    def load(self, device: str) -> Assembled:
        """Load it: the run, or its LLM and tower as they came, with a projector that nothing has trained."""
        if self.seed is None:
            return load_run(self.folder, device)[0]
        assembled = assemble(sources_of(self.manifest), device, self.seed)
        check_identity(assembled, self.manifest)
        return assembled


def subjects(run: Path, against: Path | None = None, before: bool = True) -> list[Subject]:
    """Return the models of an analysis, in the order of tables and plots; nothing is loaded yet.

    `before` includes the run's own beginning: fresh projector of the same seed, LLM as it came. Raises
    ValueError if a folder is no run, its files have changed, or `against` is of other models.
    """
    manifest = read_manifest(run)
    chosen = [Subject(BEFORE, run, manifest, *_first_seed(manifest))] if before else []
    trained = [(run, manifest)]
    if against is not None:
        other = read_manifest(against)
        for what in ("llm", "tower", "image_size", "tokens_per_image"):
            if manifest[what] != other[what]:
                name = {"llm": "LLM", "tower": "vision tower"}.get(what, what.replace("_", " "))
                raise ValueError(
                    f"{run} and {against} are of another {name} ({_named(manifest, what)} and "
                    f"{_named(other, what)}); --against takes a run of the same models"
                )
        trained.insert(0, (against, other))
    for folder, _ in trained:  # the second is loaded when the first has been inspected for minutes
        check_files(folder, "weights")
    labels = [f"{_kind(content)}, stage {content['stage']}" for _, content in trained]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({folder})" for label, (folder, _) in zip(labels, trained, strict=True)]
    return chosen + [Subject(label, *pair) for label, pair in zip(labels, trained, strict=True)]


def method_of(chosen: list[Subject]) -> tuple[int | None, Weighting]:
    """Return k and the weighting of the target that all models are measured by: the run's, or the paper's.

    A plain run has none of its own; then the other run's count, so that one target is one thing in a table.
    """
    for subject in reversed(chosen):
        method = subject.manifest["method"]
        if "layers" in method:
            return method["layers"], method.get("weighting", "quadratic")
    return None, "quadratic"


def _kind(manifest: dict) -> str:
    return "BASIC" if manifest["method"].get("basic", True) else "plain"


def _first_seed(manifest: dict) -> tuple[int, str]:
    """Return the seed that made the run's projector, and how that is known.

    A stage-2 run's projector began in a stage 1, whose folder its manifest names with the projector's hash.
    """
    own, origin = int(manifest["training"].get("seed", 0)), manifest.get("from") or {}
    if "stage1" not in origin:
        return own, "the run's own"
    folder = Path(origin["stage1"])
    with suppress(ValueError, OSError, KeyError):
        first = read_manifest(folder)
        if file_hash(folder / PROJECTOR) == origin["projector"]:
            return int(first["training"].get("seed", 0)), "its stage 1's"
    return own, f"the stage 2's own, for {folder} is no longer there"


def _named(manifest: dict, what: str) -> object:
    return manifest["sources"][what] if what in ("llm", "tower") else manifest[what]


def each(chosen: list[Subject], device: str) -> Iterator[tuple[Subject, Assembled]]:
    """Load one model after the other; each is let go before the next is loaded."""
    for subject in chosen:
        assembled = subject.load(device)
        yield subject, assembled
        del assembled
