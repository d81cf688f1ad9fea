"""Ask a model a benchmark's questions, score the answers, write the submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.evaluation.question import AnswerBy
from basic_lite.training import settings as o

_LIMIT = "Ask only this many questions, drawn from each category: not the benchmark's score."
_JUDGE = "Judge (MM-Vet, LLaVA-Bench)"
_ADDRESS = "OpenAI-style address that questions and answers are sent to; key in BASIC_LITE_JUDGE_KEY."


def home_of(run: Path, model: str | None, answers: Path | None, out: Path | None) -> Path:
    """Return the folder of what is evaluated: the run's, one for a model, one beside a file of answers."""
    from basic_lite.files import MANIFEST

    if model is not None and answers is not None:
        raise ValueError("--model answers itself, --predictions holds answers: give one of them")
    if answers is not None:
        return answers.with_name(f"{answers.name.removesuffix('.jsonl')}-scored")
    if model is None:
        return run
    home = Path("runs") / Path(model).resolve().name
    if out is None and (home / MANIFEST).is_file():
        raise ValueError(f"{home} holds a run of that name; choose another folder with --out")
    return home


def main(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="mmbench, mmbench-cn, vqav2, gqa, scienceqa, textvqa, mmvet, vizwiz, pope, pope-gqa, "
            "pope-aokvqa, mme, seed, mmstar, mmmu, ai2d, realworldqa, hallusionbench, cv-bench, mmvp, "
            "chartqa, ocrbench, docvqa, infovqa, mmvet-v2, llava-bench; several with commas; all (the "
            "paper's eight); or mine, with --data."
        ),
    ],
    run: Annotated[Path, o.option("Run to evaluate.")] = Path("runs/stage2"),
    model: Annotated[
        str | None,
        o.option("Instead of a run: a LLaVA of transformers, folder or hub id.", metavar="FOLDER_OR_ID"),
    ] = None,
    answers: Annotated[
        Path | None, o.option("Instead of a run: score this file of answers (JSON lines).", "--predictions")
    ] = None,
    data: Annotated[
        str | None,
        o.option(
            "Original file or folder, folder of Parquet files, or hub id (hf:owner/name). "
            "For several benchmarks: a folder with one folder for each.",
            "--data",
            "--tsv",
            "--hf",
            default="the hub's",
            panel="Data",
        ),
    ] = None,
    images: Annotated[Path | None, o.option("Folder of the pictures.", panel="Data")] = None,
    split: Annotated[
        str | None, o.option("Split of the benchmark.", default="the labelled one", panel="Data")
    ] = None,
    limit: Annotated[int | None, o.option(_LIMIT, panel="Data", callback=o.within(1))] = None,
    any_size: Annotated[
        bool, o.option("Accept data of another size: not the benchmark's score.", "--any-size", panel="Data")
    ] = False,
    prompt_style: Annotated[str, o.option("llava, or a harness's by name.", panel="Data")] = "llava",
    scorer: Annotated[str | None, o.option("Scoring rule by name.", default="LLaVA's", panel="Data")] = None,
    judge_scores: Annotated[
        Path | None,
        o.option("A judge's grades: JSON, JSON lines.", "--grades", "--judge-scores", panel=_JUDGE),
    ] = None,
    judge: Annotated[str | None, o.option("Model that grades, or graded.", panel=_JUDGE)] = None,
    judge_url: Annotated[str | None, o.option(_ADDRESS, default="ask nobody", panel=_JUDGE)] = None,
    judge_prompt: Annotated[
        Path | None, o.option("The judge's rule: a text file, or MM-Vet's mm-vet_evaluator.py.", panel=_JUDGE)
    ] = None,
    step: Annotated[
        Literal["all", "generate", "score", "export"],
        o.option("One step alone; all generates and scores, or exports where labels are not public."),
    ] = "all",
    out: Annotated[
        Path | None,
        o.option("Folder of predictions and results.", default="RUN/eval/NAME; a model's in runs/"),
    ] = None,
    answer_by: Annotated[
        AnswerBy,
        o.option(
            "How a choice is answered: in text; likelihood, the letter likeliest to come next; option, the "
            "likeliest words per character (lm-eval's acc_norm); mutual-information, words that the picture "
            "makes likelier (acc_mutual_info)."
        ),
    ] = "text",
    swap_pictures: Annotated[
        bool,
        o.option(
            "A control: ask each question about another one's picture; what is right then owes nothing to "
            "it. Results go to NAME-swapped.",
            "--swap-pictures",
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        o.option(
            "Prompts per batch; answers do not depend on it.",
            default="what the card holds, up to 32; 16 without one",
            callback=o.within(1),
        ),
    ] = None,
    max_steps: Annotated[
        int,
        o.option(
            "Stop after this many batches; the same command goes on.",
            default="-1, all",
            callback=o.within(1, off=-1),
        ),
    ] = -1,
    image_size: Annotated[
        int | None,
        o.option(
            "Side of the tower's input in pixels.", default="the run's", panel=o.MODEL, callback=o.within(1)
        ),
    ] = None,
    tower_layer: Annotated[
        int | None,
        o.option("Which hidden states of the tower are its features.", default="the run's", panel=o.MODEL),
    ] = None,
    template: Annotated[
        str | None,
        o.option("Words around a --model's questions, as vicuna_v1.", default="its own", panel=o.MODEL),
    ] = None,
    overwrite: Annotated[bool, o.option("Ask again and replace the answers.", "--overwrite")] = False,
    dry_run: o.DryRunOption = False,
) -> None:
    """Score a run, a model or a file of answers on a benchmark, offline, with LLaVA-1.5's prompts and rules.

    An interrupted command can be repeated. In a list, a benchmark whose data are missing is left out and
    named, at once and at the end; the others run, and the exit code is 2.

    Examples:

      basic-lite eval mmbench

      basic-lite eval mmbench --run runs/plain --data mmbench_dev_20230712.tsv

      basic-lite eval all --data benchmarks/

      basic-lite eval textvqa --data textvqa/ --step score

      basic-lite eval mmbench --data my_benchmark.tsv --any-size

      basic-lite eval mmbench --model llava-hf/llava-1.5-7b-hf

      basic-lite eval pope --predictions answers.jsonl

      basic-lite eval mmvet --judge gpt-4-0613 --judge-url https://api.openai.com/v1

      basic-lite eval mine --data questions.jsonl --answer-by likelihood

      accelerate launch --num_processes 2 -m basic_lite eval all     (two GPUs share the questions)
    """
    from basic_lite.console import command_console
    from basic_lite.data.world.world import is_embedded, questions_beside
    from basic_lite.evaluation import table
    from basic_lite.evaluation.distributed import processes
    from basic_lite.evaluation.run import Candidate, Evaluation
    from basic_lite.evaluation.suite import Suite
    from basic_lite.files import read_manifest

    with processes() as team:
        console = command_console()
        names = list(table.PAPER) if benchmark == "all" else [table.name_of(n) for n in benchmark.split(",")]
        several = len(names) > 1
        if several and data is not None and not Path(data).is_dir():
            raise ValueError(
                f"--data {data} is no folder; several benchmarks need one with a folder for each"
            )
        home = home_of(run, model, answers, out)
        if answers is not None:
            if several or step == "generate":
                raise ValueError(
                    "--predictions holds one benchmark's answers: name it alone, without --step generate"
                )
            step = "score" if step == "all" else step
        of_run = model is None and answers is None
        candidate = Candidate(run if of_run else None, model, answers, image_size, tower_layer, template)
        candidate.check()
        embedded = of_run and data is None and is_embedded(read_manifest(run)["sources"]["llm"])
        if embedded:
            console.print("Offline, in the embedded world: held-out scenes, no benchmark's number.")

        def evaluation(name: str) -> Evaluation:
            source = str(Path(data) / name) if data and several else data
            judging = not several or table.BENCHMARKS[name].grading is not None
            folder = f"{name}-swapped" if swap_pictures else name
            return Evaluation(
                candidate=candidate,
                name=name,
                out=(out / folder if several else out) if out else home / "eval" / folder,
                data=str(questions_beside(run, name, console.print)) if embedded else source,
                images=images,
                split=split,
                prompt_style=prompt_style,
                scorer=scorer,
                limit=limit,
                any_size=any_size or embedded,
                judge=judge if judging else None,
                judge_scores=judge_scores,
                judge_url=judge_url if judging else None,
                judge_prompt=judge_prompt,
                answer_by=answer_by,
                swap_pictures=swap_pictures,
            )

        suite = Suite(
            names,
            evaluation,
            step,
            console,
            team,
            overwrite=overwrite,
            batch_size=batch_size,
            max_batches=None if max_steps < 0 else max_steps,
        )
        suite.run(out or home, dry_run=dry_run)
