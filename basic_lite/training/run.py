"""From resolved settings to a finished run folder: what both stages do in the same way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from transformers import PrinterCallback, TrainingArguments, set_seed

from basic_lite import files
from basic_lite.console import rank_and_count
from basic_lite.data.batches import ORDER, Batches
from basic_lite.data.checks import check_budget, unfit_findings
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.findings import note_lines, read_bad_rows, write_bad_rows
from basic_lite.data.readers import Rows
from basic_lite.data.rows import Finding
from basic_lite.data.templates import Template
from basic_lite.data.workers import shared_heap
from basic_lite.method.capture import supervised_layers
from basic_lite.method.types import Intervention, Unmoved
from basic_lite.models import checkpoint, devices, trainable
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of
from basic_lite.training import checks, distributed, guards, teacher
from basic_lite.training.callbacks import AtStart, Clock, FirstStep, StepProgress
from basic_lite.training.settings import Settings
from basic_lite.training.trainer import BasicTrainer

WARMUP: float = 0.03
"""Share of the steps over which the learning rate rises."""


def train(
    assembled: Assembled,
    settings: Settings,
    rows: Rows,
    template: Template,
    console: Console,
    resume: Path | None = None,
    origin: dict | None = None,
    plan: dict | None = None,
    clock: Clock | None = None,
    intervene: Callable[..., Intervention | None] | None = None,
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
        clock: counts the seconds since the command; says them after the first step.
        intervene: makes what an experiment does to the teacher, once the model's parts are known.

    Returns:
        Whether the run finished; `False` if a signal stopped it (with a checkpoint).

    Raises:
        Unmoved: If all its steps are done and no weight is another one; it is not finished then.
    """
    bad_log = settings.out / checks.BAD_ROWS
    if resume is not None:  # the same rows in the same order, whatever a check would find today
        lines = read_bad_rows(bad_log)
        rows.faults = [Finding(**line) for line in lines if "replaced_by" not in line]
    else:
        text = TextEncoder(
            template,
            assembled.tokenizer,
            assembled.image_token_id,
            assembled.tokens_per_image,
            settings.max_length,
        )
        rows.faults = [*rows.faults, *unfit_findings(rows, text)]
        check_budget(rows, settings.bad_budget, settings.stage)
        for line in note_lines(rows):
            console.print(line, highlight=False, soft_wrap=True)
    manifest = _manifest(assembled, settings, rows) | {"from": origin, "memory": plan}
    rank, ranks = rank_and_count()
    then = None if resume is None else files.read_manifest(resume)
    passes = checks.Passes.of(settings, then)
    manifest["passes"] = asdict(passes)
    if resume is not None:
        checks.check_same_run(manifest, resume)
        manifest["resumed"] = then.get("resumed", [])
        if changes := checks.changes_of(passes, then):
            manifest["resumed"] = [*manifest["resumed"], {"step": then["steps"]} | changes]
            said = checks.changes_line(changes, _dropout_of(assembled), assembled.sources.bits)
            console.print(said, highlight=False, soft_wrap=True)
    else:
        if rank == 0:
            checks.clear(settings.out)
            if rows.faults:
                write_bad_rows(bad_log, rows.faults)
    usable = rows.usable
    transform = assembled.transform(settings.aspect)
    dataset = assembled.supervised(
        rows,
        template,
        transform,
        max_length=settings.max_length,
        bad_budget=settings.bad_budget,
        bad_log=bad_log,
        usable=usable,
    )
    accumulation = settings.global_batch // passes.loaded
    batches = Batches(
        rows.batch_lengths(assembled.tokens_per_image, settings.max_length),
        rows.has_image,
        batch_size=passes.loaded // ranks,
        order_rows=passes.order_rows,
        seed=settings.seed,
        group=settings.group,
        accumulation=accumulation,
        usable=usable,
        rank=rank,
        ranks=ranks,
    )
    steps = checks.optimizer_steps(settings, len(batches))
    decoder = parts_of(assembled.model).decoder
    devices.recompute_layers(decoder, settings.recompute)
    set_seed(settings.seed)
    half = assembled.sources.dtype == torch.bfloat16
    args = TrainingArguments(
        output_dir=str(settings.out),
        per_device_train_batch_size=passes.loaded // ranks,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        lr_scheduler_type="cosine",
        # LLaVA's 3 %, rounded up; of fewer than 34 steps the one at rate 0 would be more.
        warmup_steps=WARMUP if WARMUP * steps >= 1 else 0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=half,
        use_cpu=devices.choose_device() == "cpu",
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
    with args.main_process_first(local=False):  # the first fits and writes, the others read
        start = origin and Path(origin["stage1"])
        space = teacher.target_space(assembled, settings, rows, console, resume=resume, start=start)
        manifest |= teacher.findings(assembled, settings, rows, space, console, resume)
    if clock is not None:
        clock.mark("teacher")
    progress = StepProgress(console, f"stage {settings.stage}")
    trainer = BasicTrainer(
        assembled.model,
        args,
        objective=settings.objective,
        layers=settings.layers,
        weighting=settings.weighting,
        importance=settings.importance,
        target=space,
        transform=transform,
        batches=batches,
        projector_learning_rate=settings.projector_learning_rate,
        optimizer_name=settings.optimizer,
        fused_kernels=settings.fused_kernels,
        sharded=settings.shards > 1,
        manifest=manifest,
        train_dataset=dataset,
        data_collator=assembled.collator(),
        callbacks=[progress] if clock is None else [progress, FirstStep(clock, console)],
    )
    if passes.order_rows != settings.micro_batch * ranks:
        trainer.splitter.limit = settings.micro_batch
    trainer.remove_callback(PrinterCallback)
    if intervene is not None:
        changed = intervene(
            parts_of(assembled.model),
            settings.layers,
            settings.weighting,
            id_of=lambda row: rows.raw(row).id,
            seed=settings.seed,
        )
        if changed is not None:
            trainer.supervision.intervene(changed)
    checks.check_disk(settings.out, assembled.model, settings.keep)
    if resume is not None:
        done = int(resume.name.split("-")[1])
        trainer.add_callback(AtStart(partial(_cut_log, settings.out / "log.jsonl", done)))
    elif args.should_save:
        checks.rehearse(trainer, settings.out)
    begun = trainable.Beginning(assembled.model)
    try:
        with trainer.stop_on_signals(), shared_heap():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        progress.close()
    finished = trainer.state.global_step >= trainer.state.max_steps
    distributed.join_flags(dataset.state, trainer.accelerator)
    counts = dataset.tally()
    if finished and not distributed.first_says(begun.has_moved(assembled.model), trainer.accelerator):
        raise Unmoved(_why_unmoved(trainer, settings))
    if finished:
        trainer.manifest = manifest | {"finished": True, "rows": counts}
        trainer.save_model()
    if counts["replaced"] or counts["truncated"] or counts["left_out"]:
        console.print(
            f"{counts['truncated']:,} rows were cut to {settings.max_length} tokens, {counts['left_out']:,} "
            f"bad ones left out, {counts['replaced']:,} more replaced"
            + (f" (see {bad_log})" if bad_log.exists() else ""),
            highlight=False,
        )
    return finished


def _why_unmoved(trainer: BasicTrainer, settings: Settings) -> str:
    steps = trainer.state.max_steps
    norms = [float(row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]
    why = f"each update is too small for the weights' precision at --learning-rate {settings.learning_rate:g}"
    if norms and not any(math.isfinite(norm) for norm in norms):
        why = f"no gradient was finite ({settings.out / guards.DUMP} has the rows)"
    elif not any(norms):
        why = "every gradient was zero: nothing in these rows depends on what is trained"
    return f"no weight moved in {steps:,} steps, so {settings.out} is not finished: {why}"


def _manifest(assembled: Assembled, settings: Settings, rows: Rows) -> dict:
    objective = settings.objective
    method: dict[str, object] = {"basic": objective.active}
    if objective.active:
        decoder = parts_of(assembled.model).decoder
        method |= {
            "layers": supervised_layers(decoder.config, settings.layers),
            "weighting": settings.weighting,
            "importance": settings.importance,
            "target": settings.target,
            "das_weight": objective.das_weight,
            "sds_weight": objective.sds_weight,
        }
        if settings.intervention != "none":
            method["intervention"] = settings.intervention
    data = {"path": str(settings.data), "sha256": rows.sha256, "rows": len(rows), "order": ORDER}
    data["left_out"] = int((~rows.usable).sum())
    return checkpoint.manifest_of(assembled, settings.stage, method, data, checks.hyperparameters(settings))


def _dropout_of(assembled: Assembled) -> float:
    adapters = getattr(assembled.model, "peft_config", {}).values()
    return max((adapter.lora_dropout for adapter in adapters), default=0.0)


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines behind the checkpoint that a run goes on from: those steps are done again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        with files.complete(path) as draft:
            draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
