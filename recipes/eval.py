"""Ask a model a benchmark's questions, score the answers, write the submission."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from basic_lite.recipes import options as o


def main(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="mmbench, mmbench-cn, vqav2, gqa, scienceqa, textvqa, mmvet, vizwiz, pope, mme or seed."
        ),
    ],
    run: Annotated[Path, o.option(help="Run to evaluate.")] = Path("runs/stage2"),
    data: Annotated[
        str | None,
        o.option(
            "--data",
            "--tsv",
            "--hf",
            help="Original file or folder, folder of Parquet files, or hub id.",
            default="the hub's",
            panel="Data",
        ),
    ] = None,
    images: Annotated[Path | None, o.option(help="Folder of the pictures.", panel="Data")] = None,
    split: Annotated[str | None, o.option(help="Split.", default="the labelled one", panel="Data")] = None,
    limit: Annotated[
        int | None, o.option(help="Only so many questions: not the benchmark's number.", panel="Data")
    ] = None,
    prompt_style: Annotated[str, o.option(help="llava, or a harness's by name.", panel="Data")] = "llava",
    scorer: Annotated[
        str | None, o.option(help="Scoring rule by name.", default="LLaVA's", panel="Data")
    ] = None,
    step: Annotated[
        Literal["all", "generate", "score", "export"], o.option(help="One step alone, or all three.")
    ] = "all",
    out: Annotated[
        Path | None, o.option(help="Folder of predictions and results.", default="RUN/eval/BENCHMARK")
    ] = None,
    batch_size: Annotated[int, o.option(help="Prompts per batch; answers do not depend on it.")] = 16,
    max_steps: Annotated[int, o.option(help="Batches, then stop; again to go on.", default="-1, all")] = -1,
    image_size: o.ImageSize = None,
    tower_layer: Annotated[
        int | None, o.option(help="Features of the tower.", default="the run's", panel=o.MODEL)
    ] = None,
    overwrite: Annotated[bool, o.option("--overwrite", help="Ask again, replace the answers.")] = False,
    dry_run: o.DryRun = False,
) -> None:
    """Score a run on a benchmark, offline, with LLaVA-1.5's prompts and rules.

    Interrupted, the same command goes on where it was.

    Examples:

      basic-lite eval mmbench

      basic-lite eval mmbench --run runs/plain --data mmbench_dev_20230712.tsv

      basic-lite eval textvqa --data textvqa/ --step score
    """
    from basic_lite import checkpoint, launch
    from basic_lite.benchmarks import predictions, table
    from basic_lite.console import progress_bar
    from basic_lite.results import results_table
    from basic_lite.scoring.report import results
    from basic_lite.scoring.score import save_score

    console = launch.quiet_console()
    name = table.name_of(benchmark)
    scorer = table.scorer_of(name, scorer)
    manifest = checkpoint.read_manifest(run)
    # One TSV by name may be anybody's own benchmark in MMBench's format; what claims to be the published set
    # (a folder, the hub) must have its size.
    own_file = data is not None and data.endswith(".tsv") and Path(data).is_file()
    questions = table.load(
        name,
        data,
        split=split,
        images=images,
        prompt_style=prompt_style,
        limit=sys.maxsize if own_file and limit is None else limit,
        with_images=step in ("all", "generate"),
    )
    out = out or run / "eval" / name
    answers = out / "predictions.jsonl"
    split = split or table.BENCHMARKS[name].split
    published = limit is None and len(questions) in table.BENCHMARKS[name].sizes[split]
    console.print(f"{name} {split}: {len(questions):,} prompts, answers in {answers}", highlight=False)
    if not published:
        sizes = " or ".join(f"{size:,}" for size in table.BENCHMARKS[name].sizes[split])
        console.print(f"Not the published {sizes} rows: this is no {name} number.", highlight=False)
    if dry_run:
        return
    if step in ("all", "generate"):
        from basic_lite import evaluate

        conditions = {
            "run": checkpoint.file_hash(run / checkpoint.MANIFEST),
            "benchmark": name,
            "split": split,
            "prompt_style": prompt_style,
            "image_size": image_size or manifest["image_size"],
            "tower_layer": manifest["sources"]["tower_layer"] if tower_layer is None else tower_layer,
        }
        evaluate.claim_predictions(answers, conditions, overwrite)
        changes = {"image_size": conditions["image_size"], "tower_layer": conditions["tower_layer"]}
        assembled, _ = checkpoint.load_run(run, launch.choose_device(), **changes)
        with progress_bar(console) as shown:
            task = shown.add_task(name, total=len(questions), note="")
            left = evaluate.generate(
                assembled,
                questions,
                answers,
                batch_size=batch_size,
                model_id=str(run),
                max_batches=None if max_steps < 0 else max_steps,
                advance=lambda count: shown.advance(task, count),
            )
        if left:
            console.print(f"{left:,} questions are left; the same command goes on.", highlight=False)
    if step == "generate":
        return
    given = predictions.read(answers, questions)
    if step == "export":
        row = table.BENCHMARKS[name]
        if row.export is None:
            raise ValueError(f"{name} has no submission server: `--step score` gives its number")
        console.print(f"Submission in {row.export(questions, given, out / row.export_name)}")
        return
    score = table.BENCHMARKS[name].score(questions, given, scorer)
    content = results(
        score,
        benchmark=name,
        split=split,
        n=len(questions),
        prompt_style=prompt_style,
        manifest_hash=checkpoint.file_hash(run / checkpoint.MANIFEST),
        limit=limit,
        run={"folder": str(run), "decoding": "greedy", "published_size": published},
    )
    checkpoint.write_json(out / "results.json", content)
    save_score(score, out / "score.json")
    console.print(results_table(content))
    console.print(f"Results in {out / 'results.json'}")
