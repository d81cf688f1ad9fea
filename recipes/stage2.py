"""Stage 2: instruction tuning, of adapters and the projector or of the whole decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from basic_lite.memory.peak import Optimizer
from basic_lite.training import settings as o


@o.command
def main(
    *,
    lora: Annotated[
        bool, o.option("Train adapters on a 4-bit decoder. Without: the whole decoder.", "--lora")
    ] = False,
    start: Annotated[
        Path,
        o.option("Run of stage 1 or 2, or folder or hub id of a LLaVA(-NeXT) of transformers."),
    ] = Path("runs/stage1"),
    adapters: o.Adapters,
    tower: o.Tower,
    parts: o.PartsOfStage1,
    data: o.Data,
    method: o.Method,
    memory: o.Memory,
    optimizer: Annotated[
        Optimizer | None,
        o.option(
            "adamw, or paged-adamw-8bit for adapters.", default="adamw, or what --fit needs", panel=o.MEMORY
        ),
    ] = None,
    out: o.OutOption = Path("runs/stage2"),
    schedule: o.Schedule,
    projector_learning_rate: Annotated[
        float | None,
        o.option("The projector's own peak; 0 freezes it.", default="2e-5", callback=o.within(0)),
    ] = None,
    validation: o.Validation,
    run: o.Run,
    refused: o.OfStage1,
) -> None:
    """Tune on instructions: adapters and projector (--lora), or the whole decoder and projector.

    The vision tower stays frozen unless --train-tower or --tower-lora is given.

    Starts from what stage 1 left, with its models; from a finished stage 2; or from a LLaVA or LLaVA-NeXT of
    transformers. Models, template and tiles are the start's. Defaults are LLaVA-1.5's and the paper's.

    Examples:

      basic-lite stage2 --lora

      basic-lite stage2 --lora --data instruct.json --images pictures --start runs/stage1

      basic-lite stage2 --lora --data instruct.json --start llava-hf/llava-1.5-7b-hf

      basic-lite stage2 --lora --data instruct.json --start llava-hf/llava-v1.6-mistral-7b-hf    (in tiles)

      basic-lite stage2 --bits 16 --data instruct.json    (the paper's own stage 2: the whole decoder)
    """
    from basic_lite.experiments import interventions
    from basic_lite.models import trainable
    from basic_lite.training import checks, plan
    from basic_lite.training import run as training
    from basic_lite.training import start as starts

    console, clock, device, shards = training.begin(whole_decoder=not lora)

    # 1. Resolve the parts from what it starts with, the files, and every option that was left out.
    begin = starts.find(start, lora, device, console)
    sources = plan.sources_of_stage2(begin.manifest, parts, lora)
    data = checks.training_files(2, sources.llm, data, out, console, draw=not run.dry_run)
    new = begin.adapters(adapters, plan.adapters_of(lora, adapters, sources.llm, tower.tower_lora), tower)
    groups = (data, begin.method(method), memory, schedule, run, validation)
    settings = plan.resolve(
        *(2, sources.llm, device, out, *groups),
        shards=shards,
        lora=lora,
        projector_learning_rate=projector_learning_rate,
        tower=tower,
        optimizer=optimizer,
    )

    # 2. Check what can be checked before any weight is read.
    config = checks.check_sources(sources, settings)
    intervene = interventions.check(method.intervention, config, settings.micro_batch)

    # 3. Plan: the rows decide the global batch, the card the micro-batch (and --fit the optimizer).
    decided = plan.decide(
        settings, sources, device, memory, schedule, console, adapters=new, optimizer=optimizer
    )
    decided.print(console, sources, device, start=start, rank=new and new.rank)
    if run.dry_run:
        return
    with checks.claimed(decided) as resume:
        # 4. Look through the rows, and at the run to start from or to go on with.
        checks.check_before_loading(sources, decided, resume, console, begin)
        clock.mark("settings and data")

        # 5. Assemble with what the start has learnt; train adapters or the whole decoder, and the projector.
        assembled = training.assemble(sources, decided.settings, device, parts.quantised_copy, console)
        begin.load(assembled)
        trainable.train_decoder(assembled, new, run.seed, tower=tower.train_tower)
        begin.load_trained(assembled)
        clock.mark("models")

        # 6. Take over the start's target, or fit it, and train.
        made = (assembled, decided, assembled.template, console, clock)
        finished = training.run_stage(*made, resume=resume, start=begin, intervene=intervene)
    if finished:
        if lora and not tower.on and sources.tiles == sources.pool == 1:
            console.print(f"Adapters for PEFT's own loader: basic-lite export {out} FOLDER --to peft")
        console.print(f"The tuned model is in {out}. Next: basic-lite eval mmbench --run {out}")
