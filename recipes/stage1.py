"""Stage 1: align a fresh projector with a frozen decoder, on captions."""

from __future__ import annotations

from pathlib import Path

from basic_lite.training import settings as o


@o.command
def main(
    *,
    model: o.Model,
    data: o.Data,
    method: o.Method,
    memory: o.Memory,
    out: o.OutOption = Path("runs/stage1"),
    schedule: o.Schedule,
    validation: o.Validation,
    run: o.Run,
    refused: o.OfStage2,
) -> None:
    """Align a projector: everything else is frozen, the decoder in 4 bits.

    Defaults are LLaVA-1.5's and the paper's.

    Examples:

      basic-lite stage1 --model gemma-2b

      basic-lite stage1 --data captions.json --images pictures --micro-batch 4

      basic-lite stage1 --llm ./my-llama --tower ./my-clip --data captions.json --no-basic --out runs/plain
    """
    from basic_lite.data.templates import TEMPLATES
    from basic_lite.experiments import curves, interventions
    from basic_lite.models import trainable
    from basic_lite.training import checks, plan
    from basic_lite.training import run as training

    console, clock, device, shards = training.begin()

    # 1. Resolve the parts, the files, and every option that was left out.
    sources = plan.sources_of(model, device, console)
    data = checks.training_files(1, sources.llm, data, out, console, draw=not run.dry_run)
    settings = plan.resolve(
        1, sources.llm, device, out, data, method, memory, schedule, run, validation, shards=shards
    )

    # 2. Check what can be checked before any weight is read.
    config = checks.check_sources(sources, settings)
    intervene = interventions.check(method.intervention, config, settings.micro_batch)

    # 3. Plan: the rows decide the global batch, the card the micro-batch.
    decided = plan.decide(settings, sources, device, memory, schedule, console, name=model.llm or model.model)
    decided.print(console, sources, device)
    if run.dry_run:
        return
    with checks.claimed(decided) as resume:
        # 4. Look through the rows, and at the run to go on with.
        checks.check_before_loading(sources, decided, resume, console)
        clock.mark("settings and data")

        # 5. Assemble, and freeze everything but the projector.
        assembled = training.assemble(sources, decided.settings, device, model.quantised_copy, console)
        trainable.train_projector(assembled)
        clock.mark("models")

        # 6. Fit the target, see whether the teacher can teach, and train.
        watching = curves.callbacks(run.along, assembled, out)
        made = (assembled, decided, TEMPLATES["plain"], console, clock)
        finished = training.run_stage(*made, resume=resume, intervene=intervene, callbacks=watching)
    if finished:
        console.print(f"The projector is in {out}. Next: basic-lite stage2 --lora --start {out}")
