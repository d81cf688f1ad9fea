"""Stage 2: instruction tuning, of adapters and the projector or of the whole decoder."""

from __future__ import annotations

from pathlib import Path

from basic_lite.training import settings as o
from basic_lite.training.settings import Adapters, Data, Memory, Method, PartsOfStage1, Run, Schedule


@o.command
def main(
    *,
    lora: o.LoraOption = False,
    start: o.StartOption = Path("runs/stage1"),
    adapters: Adapters,
    parts: PartsOfStage1,
    data: Data,
    method: Method,
    memory: Memory,
    optimizer: o.OptimizerOption = None,
    out: o.OutOption = Path("runs/stage2"),
    schedule: Schedule,
    projector_learning_rate: o.ProjectorRateOption = None,
    run: Run,
) -> None:
    """Tune on instructions: adapters and projector (--lora), or the whole decoder and projector.

    Starts from what stage 1 left, with its models. Defaults are LLaVA-1.5's and the paper's.

    Examples:

      basic-lite stage2 --lora

      basic-lite stage2 --lora --data instruct.json --images pictures --start runs/stage1

      basic-lite stage2 --bits 16 --data instruct.json    (the paper's own stage 2: the whole decoder)
    """
    from dataclasses import replace
    from functools import partial

    from basic_lite import files
    from basic_lite.console import quiet_console
    from basic_lite.experiments import interventions
    from basic_lite.models import checkpoint, devices, trainable
    from basic_lite.training import checks, plan
    from basic_lite.training import run as training
    from basic_lite.training.callbacks import Clock

    clock, console = Clock(), quiet_console()
    clock.mark("imports")

    # 1. Resolve the parts from stage 1, the files, and every option that was left out.
    shards, device = checks.shards_asked_for(whole_decoder=not lora), devices.choose_device()
    first = checks.finished_stage1(start)
    sources = plan.sources_of_stage2(first, parts, lora)
    checkpoint.check_parts(sources, first)
    data = checks.training_files(2, sources.llm, data, out, console, draw=not run.dry_run)
    method = replace(method, target=method.target or first["method"].get("target"))
    lora_adapters = plan.adapters_of(adapters, sources.llm) if lora else None
    settings = plan.resolve(
        *(2, sources.llm, device, data, method, memory, schedule, run),
        out=out,
        shards=shards,
        lora=lora,
        projector_learning_rate=projector_learning_rate,
        optimizer=optimizer,
    )

    # 2. Check what can be checked before any weight is read.
    config = checks.check_sources(sources, settings)
    interventions.check(method.intervention, config, settings.micro_batch)

    # 3. Plan: the rows decide the global batch, the card the micro-batch (and --fit the optimizer).
    decided = plan.decide(
        settings, sources, device, memory, schedule, console, adapters=lora_adapters, optimizer=optimizer
    )
    settings, rows = decided.settings, decided.rows
    checks.check_optimizer(settings.optimizer, lora, shards)
    shown = {"start": start, "llm": sources.llm, "tower": sources.tower, "bits": sources.bits}
    resolution = {"tiles": sources.tiles, "pool": sources.pool}
    shown |= {name: value for name, value in resolution.items() if value > 1}
    rank = None if lora_adapters is None else lora_adapters.rank
    decided.print(console, **shown, device=device, optimizer_steps=decided.steps, rank=rank)
    if run.dry_run or rows is None:
        return
    with checks.claimed(out, run.resume, run.overwrite) as resume:
        # 4. Look through the rows, and at the run to start from or to go on with.
        if resume is None:  # a run that goes on takes nothing from stage 1 any more
            files.check_files(start, "weights")
        checks.check_training_rows(rows, settings)
        checks.check_before_loading(sources, settings, rows, resume)
        clock.mark("settings and data")

        # 5. Assemble with stage 1's projector; train adapters or the whole decoder, and the projector.
        assembled = training.assemble(sources, settings, device, parts.quantised_copy, console)
        checkpoint.check_identity(assembled, first)
        checkpoint.load_projector(assembled.model, start / files.PROJECTOR)
        if lora_adapters is not None:
            trainable.train_adapters(assembled, lora_adapters, run.seed)
        else:
            trainable.train_everything(assembled)
        if settings.projector_learning_rate == 0:
            training.freeze_projector(assembled, settings, console)
        console.print(trainable.trainable_table(assembled.model))
        clock.mark("models")

        # 6. Take over stage 1's target, or fit it.
        template, predicted = assembled.template, decided.memory.json()
        prepared = training.prepare(assembled, settings, rows, template, predicted, console, resume, start)
        space = training.teach(prepared, console)
        clock.mark("teacher")

        # 7. Train.
        intervene = partial(interventions.make, method.intervention)
        finished = training.train(prepared, space, console, clock, intervene)
    if not finished:
        console.print(f"Stopped, with a checkpoint in {out}. The same command with --resume goes on.")
        return
    if lora:
        line = f"Adapters for PEFT's own loader: basic-lite export {out} FOLDER --to peft"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"The tuned model is in {out}. Next: basic-lite eval mmbench --run {out}")
