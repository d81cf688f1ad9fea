"""From an assembled model to a finished run folder: what both stages do in the same way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from basic_lite import files
from basic_lite.console import quiet_console, rank_and_count, write_into
from basic_lite.data import findings
from basic_lite.data.batches import Batches
from basic_lite.data.dataset import RowEncoder, SupervisedRows
from basic_lite.data.lengths import token_lengths
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.readers import Rows
from basic_lite.data.stream import Stream, StreamBatches, StreamedRows, read_position
from basic_lite.data.templates import Template
from basic_lite.data.workers import shared_heap
from basic_lite.method.targets import TargetSpace, supervised_layers
from basic_lite.method.types import Intervention, Unmoved
from basic_lite.models import checkpoint, devices, llava, trainable
from basic_lite.models.llava import Assembled, Sources
from basic_lite.models.parts import parts_of
from basic_lite.training import checks, distributed, guards, plan, teacher
from basic_lite.training.callbacks import Clock, FirstStep, Measurements, StepProgress
from basic_lite.training.settings import Settings
from basic_lite.training.start import Start
from basic_lite.training.trainer import BasicTrainer, ShardedArguments
from basic_lite.training.validation import HeldOut, History, Validator

WARMUP: float = 0.03  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class Prepared:
    assembled: Assembled  # the model with its trainable set attached
    decided: plan.Plan  # settings, training data, and rows to measure
    template: Template  # `plain` in stage 1, the LLM's own in stage 2
    manifest: dict  # of the run so far
    transform: ImageTransform  # from a picture to pixels
    dataset: SupervisedRows | StreamedRows  # the rows as the model takes them
    batches: Batches | StreamBatches  # which rows go together, in order
    passes: checks.Passes  # how an optimizer step's rows are put through the model
    args: TrainingArguments
    steps: int  # optimizer steps of the whole run


def begin(whole_decoder: bool = False) -> tuple[Console, Clock, str, int]:
    """Return where a stage prints, its clock, `"cuda"` or `"cpu"`, and over how many processes it is cut."""
    clock = Clock()
    clock.mark("imports")
    return quiet_console(), clock, devices.choose_device(), checks.shards_asked_for(whole_decoder)


def assemble(
    sources: Sources, settings: Settings, device: str, keep_copy: bool, console: Console
) -> Assembled:
    """Put the model together where it is quantised or, if its layers are to be cut, on the host.

    `keep_copy` writes or reads the decoder's quantised weights, for a fast start.
    """
    place = devices.loading_place(device, sources.bits, settings.shards)
    copies = "keep" if keep_copy else "off"
    return llava.assemble(sources, place, settings.run.seed, copies=copies, say=console.print)


def run_stage(
    assembled: Assembled,
    decided: plan.Plan,
    template: Template,
    console: Console,
    clock: Clock,
    *,
    resume: Path | None,
    start: Start | None = None,
    intervene: Callable[..., Intervention | None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> bool:
    """Fit the target, check whether the LLM can teach, and train; arguments as of `prepare` and `train`.

    Returns `False` if a signal stopped the run, which is printed.
    """
    settings = decided.settings
    if settings.projector_learning_rate == 0:
        trainable.freeze_projector(assembled)
        measured = settings.objective.active and not settings.tower.on
        idle = "; BASIC's terms reach nothing else, and are measured only" if measured else ""
        console.print(f"The projector stays as stage 1 left it (--projector-learning-rate 0){idle}.")
    console.print(trainable.trainable_table(assembled.model))
    prepared = prepare(assembled, decided, template, console, resume, start)
    with prepared.args.main_process_first(local=False):  # the first fits and writes, the others read
        assert decided.rows is not None, "a dry run trains nothing"
        inputs = (assembled, settings, decided.rows)
        space = teacher.target_space(*inputs, console, resume=resume, start=start and start.run)
        prepared.manifest.update(teacher.manifest_entries(*inputs, space, console, resume))
    clock.mark("teacher")
    finished = train(prepared, space, console, clock, resume, intervene, callbacks)
    if not finished:
        console.print(
            f"Stopped, with a checkpoint in {settings.out}. The same command with --resume goes on."
        )
    return finished


def prepare(
    assembled: Assembled,
    decided: plan.Plan,
    template: Template,
    console: Console,
    resume: Path | None = None,
    start: Start | None = None,
) -> Prepared:
    """Make all that training needs but the target, and begin the run's folder.

    What a resumed run does otherwise is printed. Raises ValueError if it would be another run.
    """
    settings, rows = decided.settings, decided.rows
    assert rows is not None, "a dry run trains nothing"

    bad_log, longest = settings.out / checks.BAD_ROWS, assembled.longest(settings.data.max_length)

    # The manifest of this run, compared with that of the run that it goes on with.
    then = None if resume is None else files.read_manifest(resume)
    passes = checks.Passes.of(settings, then)
    longer = resume is not None and checks.lengthened(decided, resume)
    manifest = _manifest(assembled, settings, rows, decided.held_out)
    manifest |= {"from": start and start.origin, "memory": asdict(decided.memory), "passes": asdict(passes)}
    if resume is not None and then is not None:
        checks.check_same_run(manifest, then, resume, longer)
        manifest["resumed"] = list(then.get("resumed", []))
        if changes := passes.changes(then):
            manifest["resumed"] += [{"step": then["steps"]} | changes]
            line = checks.changes_line(changes, _dropout_of(assembled), assembled.sources.bits)
            console.print(line)

    # An empty folder, but for the rows that are left out.
    rank, ranks = rank_and_count()
    if resume is None and rank == 0:
        checks.clear(settings.out)
        if isinstance(rows, Rows) and rows.faults:
            findings.write_bad_rows(bad_log, rows.faults)
    write_into(settings.out)

    # The rows as the model takes them, and which of them go together.
    transform = assembled.transform(settings.aspect)
    accumulation = settings.global_batch // passes.loaded
    if isinstance(rows, Stream):
        text = assembled.text_encoder(template, longest)
        encoder = RowEncoder(text, transform, _lettering(assembled, settings))
        dataset, batches = _from_stream(settings, rows, encoder, passes, resume)
    else:
        dataset, batches = _by_number(assembled, settings, rows, template, transform, passes, console)

    # Which layers compute twice, the seed, and the arguments of transformers' Trainer.
    devices.recompute_layers(parts_of(assembled.model).decoder, settings.recompute)
    set_seed(settings.run.seed)
    steps = plan.optimizer_steps(replace(settings, micro_batch=passes.loaded // ranks), len(batches))
    args = (ShardedArguments if settings.shards > 1 else TrainingArguments)(
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
        bf16=assembled.sources.dtype == torch.bfloat16,
        use_cpu=devices.choose_device() == "cpu",
        logging_steps=settings.run.logging_steps,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=settings.run.save_steps,
        save_total_limit=settings.run.newest,
        eval_on_start=decided.held_out is not None and resume is None,
        dataloader_num_workers=settings.data.processes,
        report_to=settings.run.report_to,
        disable_tqdm=True,
        seed=settings.run.seed,
    )
    if longer and then is not None:
        console.print(_longer_line(args, then["steps"], steps))
        manifest["resumed"] += [{"step": then["steps"], "steps": [then["steps"], steps]}]
    return Prepared(assembled, decided, template, manifest, transform, dataset, batches, passes, args, steps)


def _by_number(
    assembled: Assembled,
    settings: Settings,
    rows: Rows,
    template: Template,
    transform: ImageTransform,
    passes: checks.Passes,
    console: Console,
) -> tuple[SupervisedRows, Batches]:
    """Return rows as the model takes them, and which of them go together."""
    rank, ranks = rank_and_count()
    longest = assembled.longest(settings.data.max_length)
    dataset = assembled.supervised(
        rows,
        template,
        transform,
        max_length=longest,
        bad_budget=settings.data.bad_budget,
        bad_log=settings.out / checks.BAD_ROWS,
        usable=rows.usable,
        lettering=_lettering(assembled, settings),
    )
    text = dataset.encoder.text
    lengths = rows.batch_lengths(text.image_tokens(rows), longest)
    if settings.group and assembled.tiling is None:
        # Counted once for these data and this tokenizer, a minute or two for 665k rows.
        with findings.progress_bars(console) as shown:
            workers, progress = max(settings.data.processes, 1), partial(shown, "words")
            lengths = token_lengths(rows, text, workers=workers, progress=progress)
    batches = Batches(
        lengths,
        rows.has_image,
        batch_size=passes.loaded // ranks,
        order_rows=passes.order_rows,
        seed=settings.run.seed,
        group=settings.group,
        accumulation=settings.global_batch // passes.loaded,
        usable=rows.trained,
        rank=rank,
        ranks=ranks,
        sets=rows.sets,
    )
    return dataset, batches


def _from_stream(
    settings: Settings, stream: Stream, encoder: RowEncoder, passes: checks.Passes, resume: Path | None
) -> tuple[StreamedRows, StreamBatches]:
    bad_log = settings.out / checks.BAD_ROWS
    dataset = StreamedRows(encoder, settings.data.bad_budget, bad_log, settings.data.processes)
    batches = StreamBatches(
        stream,
        dataset,
        step_rows=settings.global_batch,
        batch_size=passes.loaded,
        steps=settings.max_steps,
        seed=settings.run.seed,
        begin=None if resume is None else read_position(resume),
    )
    return dataset, batches


def _longer_line(args: TrainingArguments, before: int, steps: int) -> str:
    """Describe what it does to the learning rate that a finished run goes on."""
    nothing = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    schedule = get_cosine_schedule_with_warmup(nothing, args.get_warmup_steps(steps), steps)
    rate = args.learning_rate * schedule.lr_lambdas[0](before)
    return (
        f"lengthened from {before:,} to {steps:,} steps: the cosine is now that of the longer run, so the "
        f"learning rate, which had come down to about 0, is back at {rate:.2g} in step {before + 1:,}"
    )


def train(
    prepared: Prepared,
    space: TargetSpace,
    console: Console,
    clock: Clock,
    resume: Path | None = None,
    intervene: Callable[..., Intervention | None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> bool:
    """Train one stage and leave a complete run folder; `False` if a signal stopped it, at a checkpoint.

    `intervene` makes what an experiment does to the teacher, once the model's parts are known; `callbacks`
    are called before a step is saved. Raises Unmoved if all steps are done and no weight is another one.
    """
    settings, model, held_out = prepared.decided.settings, prepared.assembled.model, prepared.decided.held_out
    validation = settings.validation

    # The trainer.
    validator, measuring = None, []
    if held_out is not None:
        parts = (prepared.assembled, settings, prepared.template, prepared.transform, space)
        validator = Validator(held_out, *parts)
        measuring = [Measurements(validation.val_steps or 1)]
    progress = StepProgress(console, f"stage {settings.stage}")
    trainer = BasicTrainer(
        model,
        prepared.args,
        objective=settings.objective,
        layers=settings.method.layers,
        weighting=settings.method.weighting,
        importance=settings.method.importance,
        target=space,
        transform=prepared.transform,
        batches=prepared.batches,
        projector_learning_rate=settings.projector_learning_rate,
        tower_learning_rate=settings.tower.tower_learning_rate,
        optimizer_name=settings.optimizer,
        fused_kernels=settings.fused_kernels,
        dequantised=settings.dequantised,
        sharded=settings.shards > 1,
        manifest=prepared.manifest,
        validator=validator,
        stop_after=validation.stop_after,
        keeps_best=settings.run.keeps_best,
        train_dataset=prepared.dataset,
        data_collator=prepared.assembled.collator(),
        callbacks=[progress, FirstStep(clock, console), *measuring, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.splitter.bound = checks.bound_to_passes(settings.method)
    if prepared.passes.order_rows != settings.micro_batch * rank_and_count()[1]:
        trainer.splitter.limit = settings.micro_batch

    # What an experiment does to the teacher.
    if intervene is not None:
        changed = intervene(
            parts_of(model), settings.method.layers, settings.method.weighting, seed=settings.run.seed
        )
        if changed is not None:
            trainer.supervision.intervene(changed)

    # What would end the run late: a full disk, or a save that fails.
    checks.check_disk(settings.out, model, settings.run.newest + settings.run.keeps_best)
    ended = None
    if resume is not None:
        then = TrainerState.load_from_json(str(resume / "trainer_state.json"))
        over = History.of(then.log_history).is_over(validation.stop_after)
        ended = then if over or then.global_step >= prepared.steps else None
    elif prepared.args.should_save:
        checks.rehearse(trainer, settings.out)

    # All steps, or those before a signal.
    begun, since = trainable.Beginning(model), time.monotonic()
    try:
        if resume is not None and ended is not None:  # killed after its last checkpoint: no step is left
            trainer.load_weights(resume)
            trainer.state = ended
        else:
            with trainer.stop_on_signals(), shared_heap():
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        progress.close()
    seconds = time.monotonic() - since
    stopped_early = trainer.history.is_over(validation.stop_after)
    finished = trainer.state.global_step >= trainer.state.max_steps or stopped_early
    distributed.join_flags(prepared.dataset.state, trainer.accelerator)
    if finished and not distributed.from_first(begun.has_moved(model), trainer.accelerator):
        raise Unmoved(_why_unmoved(trainer, settings))

    # The folder's last word, and what became of the rows.
    counts = prepared.dataset.tally()
    if finished:
        kept = settings.out / f"checkpoint-{trainer.best}"
        if trainer.best == trainer.state.global_step or not kept.is_dir():
            kept = None
        trainer.manifest = prepared.manifest | {"finished": True, "rows": counts}
        if validator is not None:
            trainer.manifest["validation"] = _validation(trainer, kept)
            share, lowered = trainer.measuring_seconds / seconds, trainer.history.is_below_the_beginning
            console.print(_validation_line(trainer.manifest["validation"], share, lowered))
        if stopped_early:
            step, steps = trainer.state.global_step, prepared.steps
            why = f"{validation.stop_after} measurements in a row without a lower loss"
            console.print(f"ended at step {step} of {steps}: {why} (--stop-after)")
        if kept is None:
            trainer.save_model()
        else:
            trainer.take_weights(kept)
    if line := _rows_line(counts, settings, prepared.assembled.longest(settings.data.max_length)):
        console.print(line)
    return finished


def _lettering(assembled: Assembled, settings: Settings) -> int | None:
    """Return the side of the patches that are searched for text; `None` where `L_sds` counts on all."""
    return assembled.patch_side if settings.method.sds_text == "skip" else None


def _validation(trainer: BasicTrainer, kept: Path | None) -> dict[str, Any]:
    """Return what the manifest says of a run's measurements, and whose weights the run has."""
    losses, best = trainer.history.losses, trainer.history.best
    named: dict[str, Any] = {}
    for name, step in (("first", min(losses)), ("last", max(losses)), ("best", best)):
        named[name] = None if step is None else {"step": step, "lm": losses[step]}
    return named | {"weights_of_step": trainer.state.global_step if kept is None else best}


def _validation_line(summary: dict[str, Any], share: float, lowered: bool) -> str:
    losses = ", ".join(
        f"{name} {summary[name]['lm']:.3f} (step {summary[name]['step']})"
        for name in ("first", "last", "best")
        if summary[name]
    )
    losses += "" if lowered else ", none below the first"
    return (
        f"validation loss: {losses}; the weights are those of step {summary['weights_of_step']}; "
        f"measuring took {share:.1%} of the time"
    )


def _rows_line(counts: dict[str, int], settings: Settings, longest: int) -> str:
    if not (counts["replaced"] or counts["truncated"] or counts["left_out"]):
        return ""
    bad_log = settings.out / checks.BAD_ROWS
    return (
        f"{counts['truncated']:,} rows were cut to {longest} tokens, {counts['left_out']:,} "
        f"bad ones left out, {counts['replaced']:,} more replaced"
        + (f" (see {bad_log})" if bad_log.exists() else "")
    )


def _why_unmoved(trainer: BasicTrainer, settings: Settings) -> str:
    steps = trainer.state.max_steps
    norms = [float(row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]
    why = f"each update is too small for the weights' precision at --learning-rate {settings.learning_rate:g}"
    if norms and not any(math.isfinite(norm) for norm in norms):
        why = f"no gradient was finite ({settings.out / guards.DUMP} has the rows)"
    elif not any(norms):
        why = "every gradient was zero: nothing in these rows depends on what is trained"
    return f"no weight moved in {steps:,} steps, so {settings.out} is not finished: {why}"


def _manifest(
    assembled: Assembled, settings: Settings, rows: Rows | Stream, held_out: HeldOut | None
) -> dict:
    objective = settings.objective
    method: dict[str, object] = {"basic": objective.active}
    if objective.active:
        decoder = parts_of(assembled.model).decoder
        method |= {
            "layers": supervised_layers(decoder.config, settings.method.layers),
            "weighting": settings.method.weighting,
            "importance": settings.method.importance,
            "target": settings.method.kind,
            "das_weight": objective.das_weight,
            "sds_weight": objective.sds_weight,
        }
        if settings.method.intervention != "none":
            method["intervention"] = settings.method.intervention
        if settings.method.sds_text != "keep":
            method["sds_text"] = settings.method.sds_text
    data = checks.data_of(settings, rows, held_out)
    data |= {"left_out": int((~rows.usable).sum())} if isinstance(rows, Rows) else {}
    return checkpoint.manifest_of(assembled, settings.stage, method, data, checks.hyperparameters(settings))


def _dropout_of(assembled: Assembled) -> float:
    adapters = getattr(assembled.model, "peft_config", {}).values()
    return max((adapter.lora_dropout for adapter in adapters), default=0.0)
