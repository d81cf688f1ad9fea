"""Compare parts of the method with each other: a named plan, several seeds, one table and one plot."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from basic_lite.evaluation.question import AnswerBy
from basic_lite.training import settings as o

HERE = "Comparison"
FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}


def main(
    context: typer.Context,
    plan: Annotated[
        str,
        typer.Argument(
            help="layers, losses, weights, importance, target, lambda, teacher-noise, text, tiles; data, "
            "rate, patches, world or space (plain and BASIC at every level); architecture (trains nothing)."
        ),
    ],
    model: Annotated[str, o.option("As in stage1; tiny is the embedded world.", panel=o.MODEL)] = "tiny",
    data: Annotated[
        Path | None, o.option("As in stage1.", default="with tiny the embedded world", panel="Data")
    ] = None,
    images: o.ImagesOption = None,
    out: Annotated[Path, o.option("Folder of runs and tables, shared by all plans of one set-up.")] = Path(
        "runs/ablation"
    ),
    variants: Annotated[
        str | None,
        o.option("Only these variants or levels, separated by semicolons.", default="all", panel=HERE),
    ] = None,
    seeds: Annotated[
        int, o.option("Runs of each variant, one per seed.", panel=HERE, callback=o.within(1))
    ] = 1,
    seed: Annotated[int, o.option("The first seed.", panel=HERE, callback=o.a_seed)] = 0,
    jobs: Annotated[
        int | None,
        o.option("Runs at a time.", default="what fits; 1 on a GPU", panel=HERE, callback=o.within(1)),
    ] = None,
    quick: Annotated[
        bool, o.option("A third of the embedded world, half of its scenes.", "--quick", panel=HERE)
    ] = False,
    stage: Annotated[
        int, o.option("1, or 2 for both stages and questions.", callback=o.within(1, 2), panel=HERE)
    ] = 1,
    stage2: Annotated[str, o.option("Options of stage 2, in quotes.", panel=HERE)] = "--lora",
    measure_data: Annotated[
        Path | None,
        o.option("File to measure losses and cosine on.", default="the training file", panel=HERE),
    ] = None,
    measure_rows: Annotated[
        int, o.option("Rows of it to measure on.", callback=o.within(2), panel=HERE)
    ] = 256,
    benchmark: Annotated[
        str | None, o.option("Benchmark to score every run on.", "--eval", default="none", panel=HERE)
    ] = None,
    eval_data: Annotated[
        Path | None, o.option("The benchmark's data, as --data in eval.", panel=HERE)
    ] = None,
    eval_images: Annotated[Path | None, o.option("The benchmark's pictures.", panel=HERE)] = None,
    answer_by: Annotated[
        AnswerBy,
        o.option("How it is answered, as in eval.", panel=HERE),
    ] = "text",
    tune: Annotated[
        bool, o.option("Choose the learning rate first, on plain and the first seed.", "--tune", panel=HERE)
    ] = False,
    teacher: Annotated[
        str | None,
        o.option("For teacher-noise: another LLM of the same width, as teacher.", default="none", panel=HERE),
    ] = None,
    overwrite: Annotated[bool, o.option("Replace everything in --out.", "--overwrite")] = False,
    dry_run: Annotated[bool, o.option("List the runs, train nothing.", "--dry-run")] = False,
) -> None:
    """Find out which part of the method makes the difference. An interrupted command can be repeated.

    All other options of stage1, such as --max-steps, are accepted too and hold for all variants.

    Every run is measured with the paper's target, whatever it was trained with.

    Examples:

      basic-lite ablate losses --seeds 5

      basic-lite ablate layers --model gemma-2b --data captions.json --images pictures --max-steps 500
    """
    from basic_lite.recipes import stage1 as first  # pyright: ignore[reportMissingImports]
    from basic_lite.recipes import stage2 as second  # pyright: ignore[reportMissingImports]

    from basic_lite import files
    from basic_lite.console import quiet_console
    from basic_lite.experiments import architectures, comparison
    from basic_lite.experiments.plans import plan_named

    if plan == architectures.PLAN:
        console = quiet_console()
        with files.held(out):
            console.print(architectures.report(out))
        console.print(f"Figures: {out}/architecture.json   for a README: {out}/architecture.md")
        return
    asked_on = {"data": eval_data and str(eval_data), "images": eval_images and str(eval_images)}
    compared = comparison.Comparison(
        plan=plan_named(plan, teacher),
        out=out,
        seeds=range(seed, seed + seeds),
        check=first.main,
        stage1=forwarded(first.main, context.args) | {"model": model, "data": data, "images": images},
        stage2=forwarded(second.main, shlex.split(stage2)) if stage == 2 else None,
        quick=quick,
        measured_on=measure_data,
        measured_rows=measure_rows,
        benchmarks={benchmark: asked_on | {"answer_by": answer_by}} if benchmark else {},
        chosen=[] if variants is None else [name.strip() for name in variants.split(";")],
        jobs=jobs,
        overwrite=overwrite,
    )
    console = quiet_console()
    if tune and not dry_run:
        compared = compared.tuned(console)
    compared.run(console, dry_run)


OWN = ("out", "seed", "resume", "overwrite", "dry_run", "start")  # what `ablate` decides itself


def forwarded(stage: Callable, words: Sequence[str]) -> dict[str, object]:
    """Parse words with a stage's own command, and return what they set, by parameter."""
    name = stage.__module__.rsplit(".", 1)[-1]
    app = typer.Typer(add_completion=False)
    app.command()(stage)
    try:
        context = typer.main.get_command(app).make_context(name, list(words))
    except Exception as error:  # click's own class, which newer typer carries along under another name
        if (message := getattr(error, "format_message", None)) is None:
            raise
        raise ValueError(f"{name}: {message()}") from error
    sources = {key: context.get_parameter_source(key) for key in context.params}
    given = {
        key: context.params[key] for key, source in sources.items() if source and source.name == "COMMANDLINE"
    }
    if taken := set(given) & set(OWN):
        raise ValueError(f"--{min(taken).replace('_', '-')} cannot be forwarded to {name}; see --help")
    return given
