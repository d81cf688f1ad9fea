"""The teacher before the first step: the space of its target, and whether it can teach."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from basic_lite import files
from basic_lite.console import rank_and_count
from basic_lite.data.readers import Rows
from basic_lite.data.stream import Stream
from basic_lite.method.fit import fit_target
from basic_lite.method.premise import PARTLY, glance
from basic_lite.method.targets import RAW, UNFITTED, TargetSpace, supervised_layers
from basic_lite.models import checkpoint
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of
from basic_lite.training.settings import Settings

FILE: str = "target.safetensors"
"""The fitted space in the run folder: a resumed run reads it, and so does a stage 2 on the same decoder."""


def target_space(
    assembled: Assembled,
    settings: Settings,
    rows: Rows | Stream,
    console: Console,
    *,
    resume: Path | None = None,
    start: Path | None = None,
) -> TargetSpace:
    """Return the space of a run's target: from its own folder, from stage 1's, or fitted on the data's text.

    It lies in the run's folder afterwards; in a resumed run it must lie there already, unchanged.
    """
    if settings.method.kind in UNFITTED:
        return TargetSpace(settings.method.kind)
    path = settings.out / FILE
    if resume is not None:
        wanted = files.read_manifest(resume).get("target", {}).get("sha256")
        if not path.is_file() or files.file_hash(path) != wanted:
            raise ValueError(
                f"{path} is missing or not the one that this run was started with; restore it, or start "
                "again with --overwrite"
            )
    if not path.is_file():  # it is there for all processes but the first, too
        space = _inherited(assembled, settings, start)
        if space is None:
            model, tokenizer, method = assembled.model, assembled.tokenizer, settings.method
            progress = console.print
            space = fit_target(
                model, tokenizer, rows.answers(), method.kind, method.layers, progress=progress
            )
        if rank_and_count()[0] > 0:
            return space
        with files.write_errors(path), files.complete(path) as draft:
            space.save(draft)
    space = TargetSpace.load(path)
    console.print(f"target {space.kind}: {quality_line(space)}")
    return space


def manifest_entries(
    assembled: Assembled,
    settings: Settings,
    rows: Rows | Stream,
    space: TargetSpace,
    console: Console,
    resume: Path | None = None,
) -> dict:
    """Return the manifest's entries on the teacher: its target, and in stage 1 whether it can teach.

    A resumed run keeps the result of its start.
    """
    target: dict[str, object] = {"kind": space.kind}
    if space.kind not in UNFITTED:  # where and how good it is
        target = {"file": FILE, "sha256": files.file_hash(settings.out / FILE), **space.report}
    entries: dict[str, object] = {"target": target}
    if resume is not None:
        entries["premise"] = files.read_manifest(resume).get("premise")
    elif settings.stage == 1 and settings.objective.active and rank_and_count()[0] == 0:
        entries["premise"] = check_premise(assembled, settings, rows, space, console)
    return entries


def check_premise(
    assembled: Assembled, settings: Settings, rows: Rows | Stream, space: TargetSpace, console: Console
) -> dict | None:
    """Check on a few hundred tokens of the data whether the LLM can teach; print it, return the figures.

    One forward pass over 254 tokens and as many products with the vocabulary as there are targets; `None`
    where there is hardly any text.
    """
    parts = parts_of(assembled.model)
    k = supervised_layers(parts.decoder.config, settings.method.layers)
    try:
        seen = glance(
            parts.decoder,
            parts.head,
            assembled.tokenizer,
            rows.answers(),
            k,
            settings.method.weighting,
            space,
        )
    except ValueError as error:  # a handful of rows decides nothing
        console.print(f"whether the LLM can teach was not checked: {error}")
        return None
    verdict, raw = seen.verdict, seen.measured.targets[RAW][k].own
    bad = verdict.case == "untrained" or (verdict.case == "fails" and raw < PARTLY)
    console.print(f"{'Warning: ' if bad else ''}{verdict.words}", style="yellow" if bad else "")
    if verdict.case == "fails" and space.kind == RAW:
        console.print(
            "--target translated may do better; basic-lite analyze premise --text DATA says whether."
        )
    return seen.json()


def quality_line(space: TargetSpace) -> str:
    """Describe in one line what a space does to held-out text, at the first and the last layer."""
    tokens, layers = space.report["held_out_tokens"], dict(enumerate(space.report["layers"], 1))
    ends = ", ".join(
        f"layer {number}: {100 * layers[number]['own']:.0f} % at cosine {layers[number]['cosine']:.2f}"
        for number in sorted({1, len(layers)})
    )
    return f"of {tokens:,} held-out tokens nearest to their own row, {ends}"


def _inherited(assembled: Assembled, settings: Settings, start: Path | None) -> TargetSpace | None:
    """Return stage 1's space if it is of this kind, has these layers, and its decoder is stored alike."""
    if start is None or not (start / FILE).is_file():
        return None
    then, now = checkpoint.sources_of(files.read_manifest(start)), assembled.sources
    if (then.llm, then.bits, then.dtype) != (now.llm, now.bits, now.dtype):
        return None
    space = TargetSpace.load(start / FILE)
    k = supervised_layers(parts_of(assembled.model).decoder.config, settings.method.layers)
    enough = space.centre is not None and len(space.centre) >= k
    return space if space.kind == settings.method.kind and enough else None
