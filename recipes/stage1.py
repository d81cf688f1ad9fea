"""Stage 1: align a fresh projector with a frozen decoder, on captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from basic_lite.recipes import options as o


def main(
    model: Annotated[
        str,
        o.option(
            help="vicuna-7b, gemma-2b, qwen3-4b, ... (basic-lite models lists them), or tiny (embedded).",
            panel=o.MODEL,
        ),
    ] = "vicuna-7b",
    llm: o.Llm = None,
    tower: o.Tower = None,
    template: o.Template = None,
    image_token: o.ImageToken = None,
    bits: o.Bits = None,
    precision: o.Precision = "auto",
    image_size: o.ImageSize = None,
    tower_layer: o.TowerLayer = -2,
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
    out: Annotated[Path, o.option(help="Run folder.")] = Path("runs/stage1"),
    learning_rate: Annotated[
        float | None,
        o.option(help="Peak of the cosine schedule.", default="1e-3", callback=o.within(above=0)),
    ] = None,
    global_batch: o.GlobalBatch = None,
    micro_batch: o.MicroBatch = None,
    epochs: o.Epochs = None,
    max_steps: o.MaxSteps = -1,
    recompute: o.Recompute = None,
    recompute_layers: o.RecomputeLayers = None,
    fit: o.Fit = None,
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
    """Align a projector: everything else is frozen, the decoder in 4 bits.

    Defaults are LLaVA-1.5's and the paper's.

    Examples:

      basic-lite stage1 --model gemma-2b

      basic-lite stage1 --data captions.json --images pictures --micro-batch 4

      basic-lite stage1 --llm ./my-llama --tower ./my-clip --data captions.json --no-basic --out runs/plain
    """
    given = dict(locals())  # what was said, before anything is made of it
    from functools import partial

    from basic_lite.console import quiet_console
    from basic_lite.data.templates import TEMPLATES
    from basic_lite.data.workers import cores
    from basic_lite.experiments import interventions
    from basic_lite.method.objective import Objective
    from basic_lite.models import devices, llava, trainable, zoo
    from basic_lite.training import checks, run
    from basic_lite.training import settings as training_settings
    from basic_lite.training.callbacks import Clock
    from basic_lite.training.settings import Settings

    clock, console = Clock(), quiet_console()
    clock.mark("imports")
    shards = checks.shards_asked_for()
    device = devices.choose_device()
    sources = llava.Sources.named(
        model,
        tower,
        llm,
        template=template,
        image_token=image_token,
        bits=zoo.bits_of(model, llm) if bits is None else bits,
        dtype=devices.choose_dtype(precision, device),
        image_size=image_size,
        tower_layer=tower_layer,
    )
    data, images = checks.training_files(1, sources.llm, data, images, out, console, draw=not dry_run)
    pace = zoo.pace_of(sources.llm, 1)
    objective = Objective(das_weight, sds_weight, rows_per_chunk) if basic else Objective(0, 0)
    settings = Settings.of(
        given,
        stage=1,
        data=data,
        images=images,
        aspect="crop",  # stage 1 of LLaVA-1.5 does not pad
        learning_rate=pace.learning_rate if learning_rate is None else learning_rate,
        global_batch=pace.global_batch if global_batch is None else global_batch,
        micro_batch=pace.rows_per_pass(global_batch) if micro_batch is None else micro_batch,
        workers=min(2, cores()) if workers is None else workers,
        epochs=pace.epochs if epochs is None else epochs,
        shards=shards,
        recompute=devices.layers_to_recompute(recompute, recompute_layers, device),
        target=target or "raw",
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
        training_settings.step_of(settings, sources, device),
        device,
        names=(llm or model, sources.tower),
        wanted=fit,
        automatic=device == "cuda" and recompute is None and recompute_layers is None,
    )
    names = {"llm": sources.llm, "tower": sources.tower, "bits": sources.bits, "device": device}
    console.print(settings.table(**names, optimizer_steps=steps))
    console.print(training_settings.plan_line(plan), highlight=False)
    if dry_run:
        return
    with checks.claimed(out, resume, overwrite) as checkpoint:
        checks.check_training_rows(rows, settings)
        checks.check_unchanged(sources, settings, rows, checkpoint)
        clock.mark("settings and data")
        say = partial(console.print, highlight=False, soft_wrap=True)
        place = devices.loading_place(device, sources.bits, shards)
        assembled = llava.assemble(sources, place, seed, copies="keep" if quantised_copy else "off", say=say)
        trainable.train_projector(assembled)
        console.print(trainable.trainable_table(assembled.model))
        clock.mark("models")
        finished = run.train(
            assembled,
            settings,
            rows,
            TEMPLATES["plain"],
            console,
            checkpoint,
            plan=plan.json(),
            clock=clock,
            intervene=partial(interventions.make, intervention),
        )
        if not finished:
            console.print(f"Stopped, with a checkpoint in {out}. The same command with --resume goes on.")
            return
        console.print(f"The projector is in {out}. Next: basic-lite stage2 --lora --start {out}")
