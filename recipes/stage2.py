"""Stage 2: instruction tuning, of adapters and the projector or of the whole decoder."""

from __future__ import annotations

from pathlib import Path

from basic_lite.training import settings as o


@o.command
def main(
    *,
    lora: o.LoraOption = False,
    start: o.StartOption = Path("runs/stage1"),
    adapters: o.Adapters,
    tower: o.Tower,
    parts: o.PartsOfStage1,
    data: o.Data,
    method: o.Method,
    memory: o.Memory,
    optimizer: o.OptimizerOption = None,
    out: o.OutOption = Path("runs/stage2"),
    schedule: o.Schedule,
    projector_learning_rate: o.ProjectorRateOption = None,
    validation: o.Validation,
    run: o.Run,
) -> None:
    """Tune on instructions: adapters and projector (--lora), or the whole decoder and projector.

    The vision tower stays frozen unless --train-tower or --tower-lora is given.

    Starts from what stage 1 left, with its models; from a finished stage 2; or from a LLaVA of transformers.
    Defaults are LLaVA-1.5's and the paper's.

    Examples:

      basic-lite stage2 --lora

      basic-lite stage2 --lora --data instruct.json --images pictures --start runs/stage1

      basic-lite stage2 --lora --data instruct.json --start llava-hf/llava-1.5-7b-hf

      basic-lite stage2 --bits 16 --data instruct.json    (the paper's own stage 2: the whole decoder)
    """
    from dataclasses import replace
    from functools import partial

    from basic_lite.console import quiet_console
    from basic_lite.experiments import interventions
    from basic_lite.models import checkpoint, devices, trainable
    from basic_lite.training import checks, plan
    from basic_lite.training import run as training
    from basic_lite.training import start as starts
    from basic_lite.training.callbacks import Clock

    clock, console = Clock(), quiet_console()
    clock.mark("imports")

    # 1. Resolve the parts from what it starts with, the files, and every option that was left out.
    shards, device = checks.shards_asked_for(whole_decoder=not lora), devices.choose_device()
    begin = starts.find(start, lora, device, partial(console.print, highlight=False, soft_wrap=True))
    first = begin.manifest
    sources = plan.sources_of_stage2(first, parts, lora)
    checkpoint.check_parts(sources, first)
    data = checks.training_files(2, sources.llm, data, out, console, draw=not run.dry_run)
    method = replace(method, target=method.target or first["method"].get("target"))
    lora_adapters = None
    if lora:
        lora_adapters = begin.adapters(adapters, plan.adapters_of(adapters, sources.llm, tower.tower_lora))
    given = (data, method, memory, schedule, run)
    own = {"lora": lora, "projector_learning_rate": projector_learning_rate, "tower": tower}
    own |= {"optimizer": optimizer}
    settings = plan.resolve(
        2, sources.llm, device, *given, validation=validation, out=out, shards=shards, **own
    )

    # 2. Check what can be checked before any weight is read.
    begin.check_tower(tower)
    config = checks.check_sources(sources, settings)
    interventions.check(method.intervention, config, settings.micro_batch)

    # 3. Plan: the rows decide the global batch, the card the micro-batch (and --fit the optimizer).
    decided = plan.decide(
        settings, sources, device, memory, schedule, console, adapters=lora_adapters, optimizer=optimizer
    )
    checks.check_optimizer(decided.settings.optimizer, lora, shards)
    decided.print(console, sources, device, start=start, rank=lora_adapters and lora_adapters.rank)
    if run.dry_run:
        return
    with checks.claimed(decided) as resume:
        # 4. Look through the rows, and at the run to start from or to go on with.
        if resume is None:  # a run that goes on takes nothing from its start any more
            begin.check()
        checks.check_before_loading(sources, decided, resume, console)
        clock.mark("settings and data")

        # 5. Assemble with what the start has learnt; train adapters or the whole decoder, and the projector.
        assembled = training.assemble(sources, decided.settings, device, parts.quantised_copy, console)
        checkpoint.check_identity(assembled, first)
        begin.load(assembled)
        if lora_adapters is not None:
            trainable.train_adapters(assembled, lora_adapters, run.seed)
        else:
            trainable.train_everything(assembled)
        if tower.train_tower:
            trainable.train_tower(assembled)
        begin.load_trained(assembled)
        if decided.settings.projector_learning_rate == 0:
            training.freeze_projector(assembled, decided.settings, console)
        clock.mark("models")

        # 6. Take over the start's target, or fit it, and train.
        make = partial(interventions.make, method.intervention)
        finished = training.run_stage(
            assembled, decided, assembled.template, console, clock, resume=resume, start=begin, intervene=make
        )
    if finished and lora:
        line = f"Adapters for PEFT's own loader: basic-lite export {out} FOLDER --to peft"
        console.print(line, highlight=False, soft_wrap=True)
    if finished:
        console.print(f"The tuned model is in {out}. Next: basic-lite eval mmbench --run {out}")
