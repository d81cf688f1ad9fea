"""The models of an analysis, loaded one after the other: before training, the run, and another run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from basic_lite.capture import Weighting
from basic_lite.checkpoint import check_identity, load_run, sources_of
from basic_lite.modeling import Assembled, assemble
from basic_lite.run_folder import PROJECTOR, check_files, file_hash, read_manifest

BEFORE = "before training"


@dataclass(frozen=True)
class Subject:
    """One model to look at.

    Attributes:
        label: as tables and plots call it.
        folder: of the run; of `BEFORE` the one whose beginning it is.
        manifest: of that run.
        seed: of the fresh projector; `None` for a trained run.
        seed_from: how that seed is known.
    """

    label: str
    folder: Path
    manifest: dict
    seed: int | None = None
    seed_from: str = ""

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
    """Return the models to look at, in the order of tables and plots; nothing is loaded yet.

    Args:
        run: folder of stage 1 or 2.
        against: another run of the same LLM and tower, usually the plain twin.
        before: look at the run's own beginning too: fresh projector of the same seed, LLM as it came.

    Raises:
        ValueError: In one line, if a folder is no run, its files have changed, or two are not comparable.
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
    for folder, _ in trained:  # the second is loaded when the first has been looked at for minutes
        check_files(folder, "weights")
    labels = [f"{_kind(found)}, stage {found['stage']}" for _, found in trained]
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
    origin = manifest.get("from") or {}
    if "stage1" not in origin:
        return int(manifest["training"].get("seed", 0)), "the run's own"
    folder = Path(origin["stage1"])
    with suppress(ValueError, OSError, KeyError):
        first = read_manifest(folder)
        if file_hash(folder / PROJECTOR) == origin["projector"]:
            return int(first["training"].get("seed", 0)), "its stage 1's"
    return int(manifest["training"].get("seed", 0)), f"the stage 2's own, for {folder} is no longer there"


def _named(manifest: dict, what: str) -> object:
    return manifest["sources"][what] if what in ("llm", "tower") else manifest[what]


def each(chosen: list[Subject], device: str) -> Iterator[tuple[Subject, Assembled]]:
    """Load one model after the other; each is let go before the next is loaded."""
    for subject in chosen:
        assembled = subject.load(device)
        yield subject, assembled
        del assembled
