"""What is looked at between a command and its first step, the cheap things first."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import transformers.integrations
from rich.console import Console

from basic_lite import interventions, loggers, optimizers, preflight, published, run_folder, teacher, zoo
from basic_lite.capture import layer_weights, supervised_layers
from basic_lite.console import rank_and_count
from basic_lite.data.checks import check_budget, check_rows
from basic_lite.data.readers import Rows, open_rows
from basic_lite.demo import world
from basic_lite.devices import choose_device
from basic_lite.finite import DUMP
from basic_lite.memory import check_whole_decoder_fits
from basic_lite.modeling import Sources, read_config
from basic_lite.settings import Settings
from basic_lite.targets import check_kind
from basic_lite.tower import vision_config

BAD_ROWS: str = "bad.jsonl"
"""Rows that were replaced while training, one JSON object each, in the run folder."""

SHARDED: str = "ACCELERATE_USE_FSDP"
"""What `accelerate launch` says in the environment when it was asked for FSDP (see `sharding`)."""

REFUSED: dict[str, str] = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What it says when it was asked to cut the model in another way."""


def shards_asked_for(whole_decoder: bool = False) -> int:
    """Return over how many processes the decoder's layers are to be cut, before anything is fetched.

    accelerate would wrap the whole model, and transformers load it without weights, where they find the
    variable: from here on it is not there.

    Args:
        whole_decoder: the stage trains all of the decoder.

    Raises:
        ValueError: If `accelerate launch`, by its options or its stored configuration, asks for another cut,
            or for one of a decoder that is trained whole.
    """
    plain = (
        "start with `accelerate launch --multi_gpu --num_processes N`, whatever `accelerate config` stored"
    )
    for variable, name in REFUSED.items():
        if _is_on(variable):
            raise ValueError(
                f"accelerate launch asks for {name}, which cuts the whole model; here it is whole on each "
                f"card, or the decoder's layers alone are cut (--use_fsdp): {plain}"
            )
    if not _is_on(SHARDED):
        return 1
    if whole_decoder:
        raise ValueError(
            "accelerate launch asks for FSDP, which cuts a frozen decoder's layers with their adapters, and "
            f"not a decoder that is trained whole: add --lora, or {plain}"
        )
    if _is_on("FSDP_OFFLOAD_PARAMS"):
        raise ValueError(
            "accelerate launch asks for FSDP with weights on the host, which is not done here: leave "
            "--fsdp_offload_params out, whatever `accelerate config` stored"
        )
    del os.environ[SHARDED]
    return rank_and_count()[1]


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def check_sources(sources: Sources, settings: Settings) -> None:
    """Look at the parts' configurations, which are small, before any weight is read.

    Raises:
        ValueError: If a part is missing or not supported, k is out of range, or a whole decoder cannot fit.
    """
    config = read_config(sources.llm, "language model")
    zoo.family_of(config.model_type, sources.llm)
    supervised_layers(config, settings.layers)
    layer_weights(1, settings.weighting)
    check_kind(settings.target)
    interventions.check(settings.intervention, config, settings.micro_batch)
    tower = vision_config(read_config(sources.tower, "vision tower"))
    zoo.tower_family_of(tower.model_type, sources.tower)
    known = transformers.integrations.get_available_reporting_integrations()
    if settings.report_to != "none" and settings.report_to not in known:
        raise ValueError(
            f"--report-to {settings.report_to} is not installed here; "
            f"known here: {', '.join(known) or 'none'}"
        )
    if settings.shards > 1 and sources.bits == 8:
        raise ValueError("bitsandbytes' 8-bit layers cannot be cut (--use_fsdp); take --bits 4 or --bits 16")
    if settings.stage == 2 and not settings.lora:
        check_whole_decoder_fits(config, choose_device())


def check_folder(out: Path, resume: bool, overwrite: bool) -> Path | None:
    """Look whether a run may use its folder, and return the checkpoint to go on from; changes nothing.

    Raises:
        ValueError: If the folder is in use and neither flag is given, or there is nothing to resume.
    """
    found = run_folder.checkpoints(out)
    if resume:
        if run_folder.is_finished(out):
            raise ValueError(f"{out} is finished; nothing is left to resume")
        if not found:
            raise ValueError(f"{out} holds no complete checkpoint to resume from; start without --resume")
        run_folder.check_archives(found[-1])
        return found[-1]
    if rank_and_count()[0] > 0:
        return None  # the first process may have begun to write already
    if not overwrite and _leftovers(out):
        raise ValueError(
            f"{out} already holds a run; go on with --resume, start again with --overwrite, or choose "
            "another --out"
        )
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{out} cannot be written to ({existing} is in the way); choose another --out")
    return None


def _leftovers(out: Path) -> list[Path]:
    """Return what an earlier run left in its folder (evaluations stay)."""
    names = (
        run_folder.MANIFEST,
        run_folder.PROJECTOR,
        run_folder.DECODER,
        "log.jsonl",
        BAD_ROWS,
        teacher.FILE,
        DUMP,
        "adapter_*",
    )
    return [*run_folder.checkpoints(out), *(path for name in names for path in out.glob(name))]


def clear(out: Path) -> None:
    """Remove what an earlier run left, and make the folder."""
    for path in _leftovers(out):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / loggers.FILE).unlink(missing_ok=True)  # alone it is no run: it may be all that a failed start left
    out.mkdir(parents=True, exist_ok=True)


def training_files(
    stage: int, llm: str, data: Path | None, images: Path | None, out: Path, console: Console, draw: bool
) -> tuple[Path, Path | None]:
    """Return a stage's annotation file and image root: the user's, the embedded world's, or the hub's.

    Args:
        stage: 1 or 2.
        llm: the decoder; the embedded one has data of its own.
        data: what the user gave, or `None`.
        images: what the user gave, or `None`.
        out: run folder; the embedded world lies beside it.
        console: where it is said that the world is drawn.
        draw: draw a world that is missing; otherwise only say where it would be.

    Raises:
        ValueError: In one line, if a given file does not exist or the hub does not answer.
    """
    if data is not None or not world.is_embedded(llm):
        return published.fetch(stage, data, images)
    found = world.world_beside(out, console.print if draw else None)
    console.print(
        f"Offline, in the embedded world ({found.images}): drawn scenes, a decoder of 1.4 M parameters."
    )
    return found.stage1 if stage == 1 else found.stage2, found.images


def open_training_rows(settings: Settings) -> Rows:
    """Open the annotation file and look through its texts and a sample of its pictures.

    Returns:
        The rows, with their `faults`: those rows are left out.

    Raises:
        ValueError: If more rows are bad than the budget allows; names the first, and what is wrong with them.
    """
    rows = open_rows(
        settings.data, settings.images, follow_links=settings.follow_links, min_rating=settings.min_rating
    )
    rows.faults = check_rows(rows, settings.stage)
    check_budget(rows, settings.bad_budget, settings.stage)
    return rows


def check_same_run(manifest: dict, folder: Path) -> None:
    """Compare a resumed run's settings with the ones that it was started with.

    Raises:
        ValueError: Names what differs.
    """
    then = run_folder.read_manifest(folder)
    for key in ("stage", "sources", "llm", "tower", "template", "image_size", "method", "data", "training"):
        if manifest[key] != then[key]:
            old, new = then[key], manifest[key]
            if isinstance(old, dict):
                names = [k for k in old | new if old.get(k) != new.get(k)]
                old, new = ({k: side.get(k) for k in names} for side in (old, new))
            raise ValueError(
                f"the run in {folder.parent} was started with another {key}: {old}, now {new}; "
                "resume with the same settings, or start again with --overwrite"
            )


def hyperparameters(settings: Settings) -> dict:
    """Return the settings that a resumed run must share."""
    keys = (
        *("aspect", "learning_rate", "projector_learning_rate", "global_batch", "micro_batch", "epochs"),
        *("max_steps", "max_length", "group", "lora", "optimizer", "bad_budget", "min_rating", "seed"),
    )
    return {key: getattr(settings, key) for key in keys}


def check_unchanged(sources: Sources, settings: Settings, rows: Rows, resume: Path | None) -> None:
    """Refuse to resume a run with other inputs, before its model is loaded.

    Raises:
        ValueError: Names what differs.
    """
    if resume is not None:
        data = {"path": str(settings.data), "sha256": rows.sha256, "rows": len(rows)}
        preflight.check_unchanged(sources, hyperparameters(settings), data, settings.stage, resume)


def check_optimizer(name: str, lora: bool, shards: int = 1) -> None:
    """Look at an optimizer's name before anything is loaded.

    Raises:
        ValueError: If there is none of that name, or it has nothing to work on.
    """
    optimizers.check_name(name)
    if name != "adamw" and not lora:
        raise ValueError(f"--optimizer {name} is for adapters; add --lora, or leave it out")
    if name != "adamw" and shards > 1:
        raise ValueError(
            f"--optimizer {name} works on whole adapters, and --use_fsdp cuts them and Adam's moments over "
            f"{shards} processes; leave it out"
        )
