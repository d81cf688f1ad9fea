"""From resolved settings to a finished run folder: what both stages do in the same way."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
import transformers.integrations
from rich.console import Console
from torch import nn
from transformers import PrinterCallback, TrainingArguments, set_seed

from basic_lite import checkpoint, optimizers, preflight, published, zoo
from basic_lite.callbacks import AtStart
from basic_lite.capture import layer_weights, parts_of, supervised_layers
from basic_lite.console import StepProgress
from basic_lite.conversation import Template
from basic_lite.data.batches import Batches, Collator, SupervisedRows
from basic_lite.data.checks import check_budget, check_rows
from basic_lite.data.findings import Finding
from basic_lite.data.readers import Rows, open_rows
from basic_lite.data.report import read_bad_rows, write_bad_rows
from basic_lite.data.workers import shared_heap
from basic_lite.demo import world
from basic_lite.finite import DUMP
from basic_lite.memory import check_whole_decoder_fits
from basic_lite.modeling import Assembled, Sources, read_config
from basic_lite.processes import rank_and_count
from basic_lite.settings import Settings
from basic_lite.tower import vision_config
from basic_lite.trainer import BasicTrainer

BAD_ROWS: str = "bad.jsonl"
"""Rows that were replaced while training, one JSON object each, in the run folder."""


def quiet_console() -> Console:
    """Return the console of a command, and silence the progress bars of the libraries beside its own."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return Console(quiet=rank_and_count()[0] > 0)


def choose_device() -> str:
    """Return `"cuda"` where there is one, else `"cpu"`."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # "cuda" is then this process's own
    return "cuda"


def choose_dtype(precision: str, device: str) -> torch.dtype:
    """Return the dtype of activations: bf16 on a GPU, fp32 on a CPU, unless `precision` says otherwise.

    Raises:
        ValueError: If the precision is unknown or the GPU has no bf16 (fp16 would overflow on LLaMA's
            massive activations).
    """
    known = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    if precision not in known:
        raise ValueError(f"--precision must be auto, bf16 or fp32, got {precision!r}")
    if device == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise ValueError("this GPU has no bf16; add --precision fp32")
    return known[precision]


def check_sources(sources: Sources, settings: Settings) -> None:
    """Look at the parts' configurations, which are small, before any weight is read.

    Raises:
        ValueError: If a part is missing or not supported, k is out of range, or a whole decoder cannot fit.
    """
    config = read_config(sources.llm, "language model")
    zoo.family_of(config.model_type, sources.llm)
    supervised_layers(config, settings.layers)
    layer_weights(1, settings.weighting)
    tower = vision_config(read_config(sources.tower, "vision tower"))
    zoo.tower_family_of(tower.model_type, sources.tower)
    known = transformers.integrations.get_available_reporting_integrations()
    if settings.report_to != "none" and settings.report_to not in known:
        raise ValueError(
            f"--report-to {settings.report_to} is not installed here; "
            f"known here: {', '.join(known) or 'none'}"
        )
    if settings.stage == 2 and not settings.lora:
        check_whole_decoder_fits(config, choose_device())


def check_folder(out: Path, resume: bool, overwrite: bool) -> Path | None:
    """Look whether a run may use its folder, and return the checkpoint to go on from; changes nothing.

    Raises:
        ValueError: If the folder is in use and neither flag is given, or there is nothing to resume.
    """
    found = checkpoint.checkpoints(out)
    if resume:
        if (out / checkpoint.MANIFEST).is_file() and checkpoint.read_manifest(out)["finished"]:
            raise ValueError(f"{out} is finished; nothing is left to resume")
        if not found:
            raise ValueError(f"{out} holds no complete checkpoint to resume from; start without --resume")
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
        checkpoint.MANIFEST,
        checkpoint.PROJECTOR,
        checkpoint.DECODER,
        "log.jsonl",
        BAD_ROWS,
        DUMP,
        "adapter_*",
    )
    return [*checkpoint.checkpoints(out), *(path for name in names for path in out.glob(name))]


def _clear(out: Path) -> None:
    for path in _leftovers(out):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
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
    rows.faults = check_rows(rows)
    check_budget(rows, settings.bad_budget)
    return rows


def check_same_run(manifest: dict, folder: Path) -> None:
    """Compare a resumed run's settings with the ones that it was started with.

    Raises:
        ValueError: Names what differs.
    """
    then = checkpoint.read_manifest(folder)
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


def train(
    assembled: Assembled,
    settings: Settings,
    rows: Rows,
    template: Template,
    console: Console,
    resume: Path | None = None,
    origin: dict | None = None,
    plan: dict | None = None,
) -> bool:
    """Train one stage and leave a complete run folder.

    Args:
        assembled: the model with its trainable set attached.
        settings: of the run.
        rows: the training data.
        template: `plain` in stage 1, the LLM's own in stage 2.
        console: where progress goes.
        resume: checkpoint to go on from.
        origin: the run that this one starts from, for the manifest.
        plan: the memory that was predicted, for the manifest.

    Returns:
        Whether the run finished; `False` if a signal stopped it (with a checkpoint).
    """
    bad_log = settings.out / BAD_ROWS
    if resume is not None:  # the same rows in the same order, whatever a check would find today
        lines = read_bad_rows(bad_log)
        rows.faults = [Finding(**line) for line in lines if "replaced_by" not in line]
    manifest = _manifest(assembled, settings, rows) | {"from": origin, "memory": plan}
    rank, ranks = rank_and_count()
    if resume is not None:
        check_same_run(manifest, resume)
    else:
        if rank == 0:
            _clear(settings.out)
            if rows.faults:
                write_bad_rows(bad_log, rows.faults)
    usable = rows.usable
    transform = assembled.transform(settings.aspect)
    dataset = SupervisedRows(
        rows,
        template=template,
        tokenizer=assembled.tokenizer,
        transform=transform,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
        max_length=settings.max_length,
        bad_budget=settings.bad_budget,
        bad_log=bad_log,
        usable=usable,
    )
    accumulation = settings.global_batch // (settings.micro_batch * ranks)
    batches = Batches(
        rows.batch_lengths(assembled.tokens_per_image, settings.max_length),
        rows.has_image,
        batch_size=settings.micro_batch,
        seed=settings.seed,
        group=settings.group,
        accumulation=accumulation,
        usable=usable,
        rank=rank,
        ranks=ranks,
    )
    decoder = parts_of(assembled.model).decoder
    recompute_layers(decoder, settings.recompute)
    set_seed(settings.seed)
    device = next(decoder.parameters()).device
    half = assembled.sources.dtype == torch.bfloat16
    args = TrainingArguments(
        output_dir=str(settings.out),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=half,
        use_cpu=device.type == "cpu",
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=settings.keep,
        dataloader_num_workers=settings.workers,
        report_to=settings.report_to,
        disable_tqdm=True,
        seed=settings.seed,
    )
    progress = StepProgress(console, f"stage {settings.stage}")
    trainer = BasicTrainer(
        assembled.model,
        args,
        objective=settings.objective,
        layers=settings.layers,
        weighting=settings.weighting,
        importance=settings.importance,
        transform=transform,
        batches=batches,
        projector_learning_rate=settings.projector_learning_rate,
        optimizer_name=settings.optimizer,
        fused_kernels=settings.fused_kernels,
        manifest=manifest,
        train_dataset=dataset,
        data_collator=Collator(pad_token_id=assembled.pad_token_id, image_token_id=assembled.image_token_id),
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    preflight.check_disk(settings.out, assembled.model, settings.keep)
    if resume is not None:
        done = int(resume.name.split("-")[1])
        trainer.add_callback(AtStart(partial(_cut_log, settings.out / "log.jsonl", done)))
    elif args.should_save:
        preflight.rehearse(trainer, settings.out)
    try:
        with trainer.stop_on_signals(), shared_heap():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        progress.close()
    finished = trainer.state.global_step >= trainer.state.max_steps
    counts = dataset.tally()
    if finished:
        trainer.manifest = manifest | {"finished": True, "rows": counts}
        trainer.save_model()
    if counts["replaced"] or counts["truncated"] or counts["left_out"]:
        console.print(
            f"{counts['truncated']:,} rows were cut to {settings.max_length} tokens, {counts['left_out']:,} "
            f"bad ones left out, {counts['replaced']:,} more replaced (see {bad_log})",
            highlight=False,
        )
    return finished


def _manifest(assembled: Assembled, settings: Settings, rows: Rows) -> dict:
    objective = settings.objective
    method: dict[str, object] = {"basic": objective.active}
    if objective.active:
        decoder = parts_of(assembled.model).decoder
        method |= {
            "layers": supervised_layers(decoder.config, settings.layers),
            "weighting": settings.weighting,
            "importance": settings.importance,
            "das_weight": objective.das_weight,
            "sds_weight": objective.sds_weight,
        }
    data = {"path": str(settings.data), "sha256": rows.sha256, "rows": len(rows)}
    data["left_out"] = int((~rows.usable).sum())
    return checkpoint.manifest_of(assembled, settings.stage, method, data, _training(settings))


def _training(settings: Settings) -> dict:
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
        preflight.check_unchanged(sources, _training(settings), data, settings.stage, resume)


def check_optimizer(name: str, lora: bool) -> None:
    """Look at an optimizer's name before anything is loaded.

    Raises:
        ValueError: If there is none of that name, or it has nothing to work on.
    """
    optimizers.check_name(name)
    if name != "adamw" and not lora:
        raise ValueError(f"--optimizer {name} is for adapters; add --lora, or leave it out")


def layers_to_recompute(every: bool | None, count: int | None, device: str) -> int | None:
    """Resolve `--recompute` and `--recompute-layers`.

    Args:
        every: all layers or none; `None` means all on a GPU.
        count: a number of layers, which goes before `every`.
        device: `"cuda"` or `"cpu"`.

    Returns:
        How many layers; `None` for all.
    """
    if count is not None:
        return count
    return None if (device == "cuda" if every is None else every) else 0


def recompute_layers(decoder: nn.Module, count: int | None = None) -> None:
    """Run the first `count` decoder layers again in backward instead of keeping what they computed.

    The first, not the last: backward reaches them when the activations of all later layers are gone, so
    what one layer keeps while it is run again is not added to theirs. BASIC does not mind: it watches the
    forward pass alone, where each layer computes the same either way. The frozen tower keeps nothing.

    Args:
        decoder: the language model.
        count: how many layers; `None` for all.

    Raises:
        ValueError: If `count` is not between 0 and the number of layers.
    """
    depth = len(decoder.layers)
    if count is not None and not 0 <= count <= depth:
        raise ValueError(f"this decoder has {depth} layers; between 0 and {depth} can recompute, not {count}")
    if count == 0:
        return
    enable = getattr(decoder, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
    (enable or decoder.gradient_checkpointing_enable)({"use_reentrant": False})
    for layer in decoder.layers[depth if count is None else count :]:
        layer.gradient_checkpointing = False
    decoder.config.use_cache = False


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines behind the checkpoint that a run goes on from: those steps are done again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        with checkpoint.complete(path) as draft:
            draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
