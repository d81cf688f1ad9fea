"""Build the two pretrained parts of the demo world from nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def main(
    out: Annotated[Path, typer.Option(help="Folder for `decoder/` and `tower/`.")] = Path("demo-parts"),
    part: Annotated[str, typer.Option(help="`decoder`, `tower` or `both`.")] = "both",
    seed: Annotated[int, typer.Option(help="Seed of weights, texts and pictures.")] = 0,
    decoder_steps: Annotated[int, typer.Option(min=1, help="Steps of the decoder's first course.")] = 16000,
    decoder_finish: Annotated[int, typer.Option(min=0, help="Steps of its second, on every pair.")] = 2500,
    tower_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the tower.")] = 1200,
    device: Annotated[str, typer.Option(help="`cpu`, or `cuda` for minutes instead of an hour.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; figures vary slightly with them.")] = 1,
) -> None:
    """Train the demo decoder and the demo tower, probe both, and write them as Hugging Face folders.

    Examples:

      basic-lite demo-parts --out demo-parts

      basic-lite demo-parts --part tower --tower-steps 100 --out trial
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from basic_lite.demo.build import build_decoder, build_tower

    parts = {
        "decoder": (
            partial(build_decoder, finish=decoder_finish),
            decoder_steps,
            decoder_steps + decoder_finish,
        ),
        "tower": (build_tower, tower_steps, tower_steps),
    }
    if part not in (*parts, "both"):
        raise typer.BadParameter(f"part is {part!r}; it must be decoder, tower or both", param_hint="--part")
    torch.set_num_threads(threads)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for name in parts if part == "both" else (part,):
        build, steps, total = parts[name]
        with Progress(*columns, TextColumn("{task.fields[losses]}"), console=console) as progress:
            task = progress.add_task(name, total=total, losses="")

            def report(step: int, losses: dict[str, float], progress=progress, task=task) -> None:
                text = " ".join(f"{key} {value:.2f}" for key, value in losses.items())
                progress.update(task, completed=step + 1, losses=text)
                if step % 250 == 249 and not progress.console.is_terminal:
                    progress.console.print(f"step {step + 1}: {text}", highlight=False)

            figures = build(out / name, seed, steps, device, report)
        table = Table("probe", "%", title=f"{name}: {out / name}")
        for key, value in figures.items():
            table.add_row(key, f"{value:.1f}")
        console.print(table)
