"""Measure this machine: a training step, what a layer costs the host, `L_sds` alone, answers, and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.training import settings as o

app = typer.Typer(help="Measure the speed and memory of this machine.", no_args_is_help=True)

CLIP = o.zoo.TOWERS["clip-l-336"]
CapOption = Annotated[
    float | None,
    o.option("Emulate a card with this many GiB.", default="the card's", callback=o.within(above=0)),
]
OutOption = Annotated[Path | None, o.option("JSON file for the results.", default="none")]


@app.command()
@o.command
def step(
    model: Annotated[
        str, o.option("vicuna-7b, gemma-2b, qwen3-4b, ... (see basic-lite models).", panel=o.MODEL)
    ] = "vicuna-7b",
    stage: Annotated[Literal[1, 2], o.option("1: the projector. 2: adapters and projector.")] = 1,
    bits: o.BitsOption = None,
    precision: o.PrecisionOption = "auto",
    decoder_layers: Annotated[
        int | None,
        o.option("Fewer layers, for a small machine.", default="all", panel=o.MODEL, callback=o.within(1)),
    ] = None,
    micro_batch: Annotated[int, o.option("Rows per forward pass.", callback=o.within(1))] = 8,
    text: Annotated[int, o.option("Text tokens per row.", callback=o.within(1))] = 64,
    rank: o.RankOption = o.zoo.RANK,
    recompute: o.RecomputeOption = None,
    recompute_layers: o.RecomputeLayersOption = None,
    basic: o.BasicOption = True,
    steps: Annotated[int, o.option("Steps to measure.", callback=o.within(1))] = 20,
    warm: Annotated[int, o.option("Steps before them, to warm up.", callback=o.within(0))] = 2,
    rounds: Annotated[
        int, o.option("With --against: how often each takes its turn.", callback=o.within(1))
    ] = 3,
    cap: CapOption = None,
    against: Annotated[
        bool,
        o.option(
            "Also transformers' and peft's plain step (stage 2: with Unsloth's layers too), and naive BASIC.",
            "--against",
        ),
    ] = False,
    out: OutOption = None,
) -> None:
    """Train a model of real size with random weights for some steps: samples per second and peak memory.

    Examples:

      basic-lite bench step --model vicuna-7b --cap 24

      basic-lite bench step --model gemma-2b --stage 2 --micro-batch 4 --text 824 --cap 24

      basic-lite bench step --model vicuna-7b --cap 24 --against --out step.json

      basic-lite bench step --decoder-layers 1 --micro-batch 1 --steps 2     (on a CPU)
    """
    from dataclasses import asdict

    from basic_lite.bench.sds import markdown
    from basic_lite.bench.step import Step, compare_steps, measure_steps
    from basic_lite.bench.synthetic import random_model
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.models import devices

    console = quiet_console()
    device = devices.choose_device()
    dtype = devices.choose_dtype(precision, device)
    assembled = random_model(model, bits=bits or 4, dtype=dtype, device=device, layers=decoder_layers)
    settings = Step(
        stage=stage,
        micro_batch=micro_batch,
        text=text,
        rank=rank,
        recompute=devices.layers_to_recompute(recompute, recompute_layers, device),
        steps=steps,
        warm=warm,
        cap_gib=cap,
    )
    if against:
        sizes = [micro_batch * factor for factor in (2, 4)] if device == "cuda" else []
        results = compare_steps(assembled, settings, rounds=rounds, micro_batches=sizes)
        console.print(markdown(results))
    else:
        results = measure_steps(assembled, settings, basic=basic)
        for name, value in results.items():
            if name != "speeds":
                console.print(f"{name:24} {value}")
    if out is not None:
        write_json(out, {"model": model, **asdict(settings), "results": results})


@app.command()
def host(
    model: Annotated[str, o.option("Whose decoder's structure is taken.", panel=o.MODEL)] = "vicuna-7b",
    rounds: Annotated[int, o.option("Measurements of each, in turn.", callback=o.within(1))] = 3,
    steps: Annotated[int, o.option("Timed steps of each.", callback=o.within(1))] = 10,
) -> None:
    """Count and time what a decoder layer costs the host in a step: tiny tensors, no GPU.

    Examples:

      basic-lite bench host --model gemma-2b
    """
    import torch

    from basic_lite.bench.host import compare_layers
    from basic_lite.bench.sds import markdown
    from basic_lite.console import quiet_console

    console = quiet_console()
    torch.set_num_threads(1)
    console.print(markdown(compare_layers(model, rounds, steps)))


@app.command()
@o.command
def sds(
    rows: Annotated[int, o.option("Patches, N.", callback=o.within(1))] = 4608,
    width: Annotated[int, o.option("Width of the decoder, D.", callback=o.within(1))] = 4096,
    vocabulary: Annotated[int, o.option("Size of the vocabulary, V.", callback=o.within(2))] = 32_000,
    precision: o.PrecisionOption = "auto",
    repeats: Annotated[int, o.option("Rounds, after one to warm up.", callback=o.within(1))] = 10,
    cap: CapOption = None,
    out: OutOption = None,
) -> None:
    """Time L_sds, its three matrix products, Liger's and TRL's divergences and the naive code, in turn.

    Examples:

      basic-lite bench sds                                          (Vicuna-7B, eight pictures)

      basic-lite bench sds --width 2048 --vocabulary 256000         (Gemma-2B; --rows 576: in tiles)

      basic-lite bench sds --rows 288 --width 1024 --repeats 3      (on a CPU)
    """
    from basic_lite.bench.sds import markdown, measure_sds
    from basic_lite.bench.step import emulate_card
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.models import devices

    console = quiet_console()
    device = devices.choose_device()
    emulate_card(cap, device)
    dtype = devices.choose_dtype(precision, device)
    results = measure_sds(rows, width, vocabulary, device, dtype, repeats)
    console.print(markdown(results))
    if out is not None:
        write_json(out, {"rows": rows, "width": width, "vocabulary": vocabulary, "results": results})


@app.command()
def generate(
    run: Annotated[Path, o.option("Run whose model answers.")] = Path("runs/stage2"),
    benchmark: Annotated[str, o.option("Benchmark whose questions are asked.", panel=o.DATA)] = "mmbench",
    data: Annotated[
        str | None, o.option("Its file, folder or hub id.", default="the hub's", panel=o.DATA)
    ] = None,
    limit: Annotated[int, o.option("Number of questions.", panel=o.DATA, callback=o.within(1))] = 64,
    batch_size: Annotated[int, o.option("Prompts per batch.", callback=o.within(2))] = 16,
) -> None:
    """Answer the same questions in batches and one by one, in one process and in turn.

    One by one is the plain loop of LLaVA's scripts: one prompt, no padding, pictures on the main thread.

    Examples:

      basic-lite bench generate --run runs/stage2 --data mmbench_dev_20230712.tsv
    """
    import tempfile
    import time

    from basic_lite.console import quiet_console
    from basic_lite.evaluation import answer, predictions, table
    from basic_lite.models import checkpoint, devices

    console = quiet_console()
    questions = table.load(table.name_of(benchmark), data, limit=limit)
    assembled, _ = checkpoint.load_run(run, devices.choose_device())
    with tempfile.TemporaryDirectory() as scratch:
        # A first batch pays for everything that happens once.
        answer.generate(assembled, questions[:batch_size], Path(scratch) / "first", batch_size=batch_size)
        path = Path(scratch) / "batched"
        start = time.perf_counter()
        answer.generate(assembled, questions, path, batch_size=batch_size)
        between = time.perf_counter()
        alone = {q.id: answer.answer_one(assembled, q) for q in questions}
        end = time.perf_counter()
        batched = predictions.read(path, questions)
    for name, seconds in (("batched", between - start), ("one by one", end - between)):
        console.print(f"{name:12} {len(questions) / seconds:8.2f} answers/s")
    same = sum(batched[q.id] == alone[q.id] for q in questions)
    ratio = (end - between) / (between - start)
    console.print(f"ratio        {ratio:8.2f}   equal answers {same} of {len(questions)}")


@app.command("data")
def measure_data(
    annotations: Annotated[
        Path | None,
        typer.Argument(help="Data to measure with. Left out: photos made for it.", show_default=False),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder, zip or tar of the images.")] = None,
    image_size: Annotated[
        int, typer.Option(help="Side of the tower's input in pixels.", callback=o.within(1))
    ] = CLIP.image_size,
    tokens_per_image: Annotated[
        int, typer.Option(help="Tokens of one image.", callback=o.within(1))
    ] = CLIP.tokens,
    batch: Annotated[int, typer.Option(help="Rows per batch.", callback=o.within(1))] = 16,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.", callback=o.within(0))] = 2,
    step_ms: Annotated[
        float, o.option("How long the model computes on a batch.", callback=o.within(0))
    ] = 200,
    steps: Annotated[int, typer.Option(help="Batches to measure.", callback=o.within(1))] = 50,
    tokenizer: Annotated[
        str | None,
        o.option("Tokenizer, name or folder, whose lengths the padding is for.", default="letters"),
    ] = None,
) -> None:
    """Measure how fast this machine prepares batches, how long a training would wait, and what is padding.

    Without data of your own the padding is that of rows of LLaVA-665k's shape.

    Examples:

      basic-lite bench data

      basic-lite bench data llava_v1_5_mix665k.json --images data/ --workers 4

      basic-lite bench data --tokenizer lmsys/vicuna-7b-v1.5
    """
    from basic_lite.bench import data
    from basic_lite.bench.padding import measure_padding
    from basic_lite.console import quiet_console
    from basic_lite.models.repository import read_tokenizer

    console = quiet_console()
    facts = data.measure_data(
        annotations,
        images,
        image_size=image_size,
        tokens_per_image=tokens_per_image,
        batch_size=batch,
        workers=workers,
        step_seconds=step_ms / 1000,
        steps=steps,
    )
    counter = None if tokenizer is None else read_tokenizer(tokenizer)
    padding = measure_padding(annotations, tokenizer=counter, tokens_per_image=tokens_per_image)
    for line in [*facts.lines(), *padding.lines()]:
        console.print(line)
