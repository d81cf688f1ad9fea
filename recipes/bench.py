"""Measure this machine: answers per second, a training step, and what a layer costs the host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from basic_lite.training import settings as o


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
        seconds, answers = {}, {}
        for name, size in (("batched", batch_size), ("one by one", 1)):
            path = Path(scratch) / name
            start = time.perf_counter()
            if size > 1:
                answer.generate(assembled, questions, path, batch_size=size)
                answers[name] = predictions.read(path, questions)
            else:
                answers[name] = {q.id: answer.answer_one(assembled, q) for q in questions}
            seconds[name] = time.perf_counter() - start
    for name, value in seconds.items():
        console.print(f"{name:12} {len(questions) / value:8.2f} answers/s")
    same = sum(answers["batched"][q.id] == answers["one by one"][q.id] for q in questions)
    ratio = seconds["one by one"] / seconds["batched"]
    console.print(f"ratio        {ratio:8.2f}   equal answers {same} of {len(questions)}")


@o.command
def step(
    model: Annotated[
        str, o.option("vicuna-7b, gemma-2b, qwen3-4b, ... (see basic-lite models).", panel=o.MODEL)
    ] = "vicuna-7b",
    stage: Annotated[
        int, o.option("1: the projector. 2: adapters and projector.", callback=o.within(1, 2))
    ] = 1,
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
    cap: Annotated[
        float | None,
        o.option("Emulate a card with this many GiB.", default="the card's", callback=o.within(above=0)),
    ] = None,
    against: Annotated[
        bool, o.option("Also the plain step of transformers and peft, and naive BASIC.", "--against")
    ] = False,
    out: Annotated[Path | None, o.option("JSON file for the results.", default="none")] = None,
) -> None:
    """Train a model of real size with random weights for some steps: samples per second and peak memory.

    Examples:

      basic-lite bench step --model vicuna-7b --cap 24

      basic-lite bench step --model gemma-2b --stage 2 --micro-batch 4 --text 824 --cap 24

      basic-lite bench step --model vicuna-7b --cap 24 --against --out step.json

      basic-lite bench step --decoder-layers 1 --micro-batch 1 --steps 2     (on a CPU)
    """
    from basic_lite.bench import synthetic
    from basic_lite.bench.sds import markdown
    from basic_lite.bench.step import compare_steps, measure_steps
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.models import devices

    console = quiet_console()
    device = devices.choose_device()
    dtype = devices.choose_dtype(precision, device)
    held = bits or 4
    assembled = synthetic.random_model(model, bits=held, dtype=dtype, device=device, layers=decoder_layers)
    settings = {
        "stage": stage,
        "micro_batch": micro_batch,
        "text": text,
        "rank": rank,
        "recompute": devices.layers_to_recompute(recompute, recompute_layers, device),
        "steps": steps,
        "warm": warm,
        "cap_gib": cap,
    }
    if against:
        sizes = [micro_batch * factor for factor in (2, 4)] if device == "cuda" else []
        results = compare_steps(assembled, rounds=rounds, micro_batches=sizes, **settings)
        console.print(markdown(results))
    else:
        results = measure_steps(assembled, basic=basic, **settings)
        for name, value in results.items():
            if name != "speeds":
                console.print(f"{name:24} {value}")
    if out is not None:
        write_json(out, {"model": model, **settings, "results": results})


def host(
    model: Annotated[str, o.option("Model whose decoder is measured.", panel=o.MODEL)] = "vicuna-7b",
    rounds: Annotated[int, o.option("Measurements of each, in turn.", callback=o.within(1))] = 3,
    steps: Annotated[int, o.option("Timed steps of each.", callback=o.within(1))] = 10,
) -> None:
    """Count and time what a decoder layer costs the host in a step: tiny tensors, no GPU.

    Examples:

      basic-lite bench host --model gemma-2b
    """
    import statistics

    import torch
    from rich.table import Table

    from basic_lite.bench.host import measure
    from basic_lite.console import quiet_console

    console = quiet_console()
    torch.set_num_threads(1)
    kinds = {
        "stage 1, BASIC": {"stage": 1},
        "stage 1, plain": {"stage": 1, "basic": False},
        "stage 2, BASIC": {},
        "stage 2, plain": {"basic": False},
        "stage 2, BASIC, adapters as PEFT runs them": {"grouped": False},
    }
    table = Table("one decoder layer, one step", "recomputing", "operations", "processor ms", "of PEFT's")
    for recompute in (False, True):
        layers = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, settings in kinds.items():
                layers[name].append(measure(model, recompute=recompute, steps=steps, **settings))
        seconds = {name: statistics.median(layer.seconds for layer in each) for name, each in layers.items()}
        theirs = seconds["stage 2, BASIC, adapters as PEFT runs them"]
        for name, each in layers.items():
            share = f"{seconds[name] / theirs:.2f}" if name.startswith("stage 2") else ""
            cells = (f"{each[-1].operations:.0f}", f"{1000 * seconds[name]:.2f}", share)
            table.add_row(name, "yes" if recompute else "no", *cells)
    console.print(table)
