"""Measure this machine: answers per second, batched against one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from basic_lite.recipes import options as o


def generate(
    run: Annotated[Path, o.option(help="Run whose model answers.")] = Path("runs/stage2"),
    benchmark: Annotated[str, o.option(help="Whose questions.", panel="Data")] = "mmbench",
    data: Annotated[
        str | None, o.option(help="Its file, folder or hub id.", default="the hub's", panel="Data")
    ] = None,
    limit: Annotated[int, o.option(help="Questions.", panel="Data", min=1)] = 64,
    batch_size: Annotated[int, o.option(help="Prompts per batch.", min=2)] = 16,
) -> None:
    """Answer the same questions in batches and one by one, in one process and in turn.

    One by one is the plain loop of LLaVA's scripts: one prompt, no padding, pictures on the main thread.

    Examples:

      basic-lite bench generate --run runs/stage2 --data mmbench_dev_20230712.tsv
    """
    import tempfile
    import time

    from basic_lite import checkpoint, evaluate, launch
    from basic_lite.benchmarks import predictions, table

    console = launch.quiet_console()
    questions = table.load(table.name_of(benchmark), data, limit=limit)
    assembled, _ = checkpoint.load_run(run, launch.choose_device())
    with tempfile.TemporaryDirectory() as scratch:
        # A first batch pays for everything that happens once.
        evaluate.generate(assembled, questions[:batch_size], Path(scratch) / "first", batch_size=batch_size)
        seconds, answers = {}, {}
        for name, size in (("batched", batch_size), ("one by one", 1)):
            path = Path(scratch) / name
            start = time.perf_counter()
            if size > 1:
                evaluate.generate(assembled, questions, path, batch_size=size)
                answers[name] = predictions.read(path, questions)
            else:
                answers[name] = {q.id: evaluate.answer_one(assembled, q) for q in questions}
            seconds[name] = time.perf_counter() - start
    for name, value in seconds.items():
        console.print(f"{name:12} {len(questions) / value:8.2f} answers/s", highlight=False)
    same = sum(answers["batched"][q.id] == answers["one by one"][q.id] for q in questions)
    ratio = seconds["one by one"] / seconds["batched"]
    console.print(f"ratio        {ratio:8.2f}   equal answers {same} of {len(questions)}", highlight=False)
