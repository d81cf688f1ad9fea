"""Stage 2: instruction tuning, of adapters and the projector or of the whole decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from basic_lite.recipes import options as o


def main(
    lora: Annotated[
        bool, o.option("--lora", help="Train adapters on a 4-bit decoder. Without: the whole decoder.")
    ] = False,
    start: Annotated[Path, o.option(help="Run of stage 1 to start from.")] = Path("runs/stage1"),
    rank: Annotated[
        int | None, o.option(help="Rank of the adapters.", default="128", panel=o.MODEL, callback=o.within(1))
    ] = None,
    alpha: Annotated[
        int | None,
        o.option(
            help="Scale times rank of the adapters.", default="2 * rank", panel=o.MODEL, callback=o.within(1)
        ),
    ] = None,
    dropout: Annotated[
        float,
        o.option(help="Dropout in front of the adapters.", panel=o.MODEL, callback=o.within(0, below=1)),
    ] = 0.05,
    bits: Annotated[
        int | None,
        o.option(
            help="Bits of the decoder's weights.", default="stage 1's", panel=o.MODEL, callback=o.a_width
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        o.option(
            help="Side of the tower's input in pixels.",
            default="stage 1's",
            panel=o.MODEL,
            callback=o.within(1),
        ),
    ] = None,
    tower_layer: Annotated[
        int | None,
        o.option(
            help="Which hidden states of the tower are its features.", default="stage 1's", panel=o.MODEL
        ),
    ] = None,
    data: o.Data = None,
    images: o.Images = None,
    follow_links: o.FollowLinks = False,
    min_rating: o.MinRating = None,
    max_length: o.MaxLength = 2048,
    bad_budget: o.BadBudget = 0.005,
    workers: o.Workers = None,
    basic: o.Basic = True,
    layers: o.Layers = None,
    weighting: o.Weighting = "quadratic",
    importance: o.Importance = "attention",
    target: o.Target = None,
    das_weight: o.DasWeight = 1.0,
    sds_weight: o.SdsWeight = 0.01,
    rows_per_chunk: o.RowsPerChunk = None,
    intervention: o.Intervention = "none",
    out: Annotated[Path, o.option(help="Run folder.")] = Path("runs/stage2"),
    learning_rate: Annotated[
        float | None,
        o.option(
            help="Peak of the schedule.", default="2e-4 with --lora, else 2e-5", callback=o.within(above=0)
        ),
    ] = None,
    projector_learning_rate: Annotated[
        float | None,
        o.option(help="The projector's own peak; 0 freezes it.", default="2e-5", callback=o.within(0)),
    ] = None,
    global_batch: o.GlobalBatch = None,
    micro_batch: o.MicroBatch = None,
    epochs: o.Epochs = None,
    max_steps: o.MaxSteps = -1,
    recompute: o.Recompute = None,
    recompute_layers: o.RecomputeLayers = None,
    fit: o.Fit = None,
    optimizer: o.Optimizer = None,
    fused_kernels: o.FusedKernels = True,
    quantised_copy: o.QuantisedCopy = True,
    save_steps: o.SaveSteps = 500,
    keep: o.Keep = 2,
    logging_steps: o.LoggingSteps = 10,
    seed: o.Seed = 0,
    report_to: o.ReportTo = "none",
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
) -> None:
    """Tune on instructions: adapters and projector (--lora), or the whole decoder and projector.

    Starts from what stage 1 left, with its models. Defaults are LLaVA-1.5's and the paper's.

    Examples:

      basic-lite stage2 --lora

      basic-lite stage2 --lora --data instruct.json --images pictures --start runs/stage1

      basic-lite stage2 --bits 16 --data instruct.json    (the paper's own stage 2: the whole decoder)
    """
    given = dict(locals())  # what was said, before anything is made of it
    from dataclasses import replace
    from functools import partial

    from basic_lite import files
    from basic_lite.console import quiet_console
    from basic_lite.data.workers import cores
    from basic_lite.experiments import interventions
    from basic_lite.method.objective import Objective
    from basic_lite.models import checkpoint, devices, llava, trainable, zoo
    from basic_lite.training import checks, run
    from basic_lite.training import settings as training_settings
    from basic_lite.training.callbacks import Clock
    from basic_lite.training.settings import Settings

    clock, console = Clock(), quiet_console()
    clock.mark("imports")
    shards = checks.shards_asked_for(whole_decoder=not lora)
    device = devices.choose_device()
    first = files.read_manifest(start)
    if first["stage"] != 1 or not first["finished"]:
        raise ValueError(f"{start} is no finished run of stage 1; finish it, or name another with --start")
    sources = checkpoint.sources_of(first)
    sources = replace(
        sources,
        bits=(sources.bits if lora else 16) if bits is None else bits,
        image_size=sources.image_size if image_size is None else image_size,
        tower_layer=sources.tower_layer if tower_layer is None else tower_layer,
    )
    checks.check_parts(sources, first)
    data, images = checks.training_files(2, sources.llm, data, images, out, console, draw=not dry_run)
    pace = zoo.pace_of(sources.llm, 2)
    rank = pace.rank if rank is None else rank
    rate = pace.learning_rate if lora else pace.learning_rate / 10
    projector_rate = (
        pace.projector_learning_rate if projector_learning_rate is None else projector_learning_rate
    )
    objective = Objective(das_weight, sds_weight, rows_per_chunk) if basic else Objective(0, 0)
    settings = Settings.of(
        given,
        stage=2,
        data=data,
        images=images,
        aspect="pad",  # LLaVA-1.5 pads to a square of the mean colour from stage 2 on
        learning_rate=rate if learning_rate is None else learning_rate,
        projector_learning_rate=projector_rate,
        global_batch=pace.global_batch if global_batch is None else global_batch,
        micro_batch=pace.rows_per_pass(global_batch) if micro_batch is None else micro_batch,
        workers=min(2, cores()) if workers is None else workers,
        epochs=pace.epochs if epochs is None else epochs,
        group=True,
        shards=shards,
        recompute=devices.layers_to_recompute(recompute, recompute_layers, device),
        optimizer=optimizer or "adamw",
        target=target or first["method"].get("target", "raw"),
        objective=objective,
    )
    checks.check_sources(sources, settings)
    interventions.check(intervention, llava.read_config(sources.llm, "language model"), settings.micro_batch)
    rows, steps = None, "known when the data are here"
    if not dry_run or settings.data.exists():
        rows = checks.open_training_rows(settings)
        settings, steps, line = checks.paced(
            settings, rows, pace, global_batch=global_batch, micro_batch=micro_batch
        )
        if line:
            console.print(line, highlight=False, soft_wrap=True)
    settings, plan = training_settings.planned(
        settings,
        training_settings.step_of(settings, sources, device, rank, dropout),
        device,
        names=(sources.llm, sources.tower),
        wanted=fit,
        automatic=device == "cuda" and recompute is None and recompute_layers is None,
        optimizer=optimizer,
    )
    checks.check_optimizer(settings.optimizer, lora, shards)
    names = {"start": start, "llm": sources.llm, "tower": sources.tower, "bits": sources.bits}
    console.print(settings.table(**names, device=device, optimizer_steps=steps, rank=rank if lora else None))
    console.print(training_settings.plan_line(plan), highlight=False)
    if dry_run:
        return
    with checks.claimed(out, resume, overwrite) as resumed:
        if resumed is None:  # a run that goes on takes nothing from stage 1 any more
            files.check_files(start, "weights")
        checks.check_training_rows(rows, settings)
        checks.check_unchanged(sources, settings, rows, resumed)
        clock.mark("settings and data")
        say = partial(console.print, highlight=False, soft_wrap=True)
        place = devices.loading_place(device, sources.bits, shards)
        assembled = llava.assemble(sources, place, seed, copies="keep" if quantised_copy else "off", say=say)
        checkpoint.check_identity(assembled, first)
        checkpoint.load_projector(assembled.model, start / files.PROJECTOR)
        if lora:
            trainable.train_adapters(
                assembled, trainable.Adapters(rank, 2 * rank if alpha is None else alpha, dropout), seed
            )
        else:
            trainable.train_everything(assembled)
        if projector_rate == 0:
            trainable.freeze_projector(assembled)
            idle = "; BASIC's terms reach nothing else, and are measured only" if objective.active else ""
            say(f"The projector stays as stage 1 left it (--projector-learning-rate 0){idle}.")
        console.print(trainable.trainable_table(assembled.model))
        clock.mark("models")
        origin = {"stage1": str(start), "projector": files.file_hash(start / files.PROJECTOR)}
        template = assembled.template
        finished = run.train(
            assembled,
            settings,
            rows,
            template,
            console,
            resumed,
            origin,
            plan=plan.json(),
            clock=clock,
            intervene=partial(interventions.make, intervention),
        )
        if not finished:
            console.print(f"Stopped, with a checkpoint in {out}. The same command with --resume goes on.")
            return
        if lora:
            say(f"Adapters for PEFT's own loader: basic-lite export {out} FOLDER --to peft")
        console.print(f"The tuned model is in {out}. Next: basic-lite eval mmbench --run {out}")
