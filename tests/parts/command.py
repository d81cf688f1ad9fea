"""Build the two pretrained parts of the demo world from nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def main(
    out: Annotated[Path, typer.Option(help="Folder for `decoder/` and `tower/`.")] = Path("demo-parts"),
    part: Annotated[str, typer.Option(help="`decoder`, `tower` or `both`.")] = "both",
    seed: Annotated[int, typer.Option(help="Seed of weights, texts and pictures.", callback=o.a_seed)] = 0,
    decoder_steps: Annotated[
        int, typer.Option(callback=o.within(1), help="Steps of the decoder's first course.")
    ] = 16000,
    decoder_finish: Annotated[
        int, typer.Option(callback=o.within(0), help="Steps of its second, multiple choice.")
    ] = 2500,
    tower_steps: Annotated[
        int, typer.Option(callback=o.within(1), help="Optimizer steps of the tower.")
    ] = 1200,
    device: Annotated[str, typer.Option(help="`cpu`, or `cuda` for minutes instead of an hour.")] = "cpu",
    processes: Annotated[
        int,
        typer.Option(
            callback=o.within(1, 16), help="CPU processes for the decoder; figures vary slightly with them."
        ),
    ] = 2,
) -> None:
    """Train the demo decoder and the demo tower, probe both, and write them as Hugging Face folders.

    Both at the same time. On two CPU cores the decoder takes an hour and a half, the tower minutes of it.

    Examples:

      python -m parts.command --out demo-parts

      python -m parts.command --part tower --tower-steps 100 --out trial
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from basic_lite.console import quiet_console
    from parts.beside import Part, build_beside
    from parts.build import build_decoder, build_tower

    steps = {"decoder": decoder_steps + decoder_finish, "tower": tower_steps}
    builds = {
        "decoder": Part(
            partial(build_decoder, out / "decoder", seed, decoder_steps, device, finish=decoder_finish),
            processes if device == "cpu" else 1,
        ),
        "tower": Part(partial(build_tower, out / "tower", seed, tower_steps, device)),
    }
    if part not in (*builds, "both"):
        raise typer.BadParameter(f"part is {part!r}; it must be decoder, tower or both", param_hint="--part")
    wanted = {name: build for name, build in builds.items() if part in (name, "both")}
    console = quiet_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[losses]}"), console=console) as shown:
        tasks = {name: shown.add_task(name, total=steps[name], losses="") for name in wanted}

        def report(name: str, step: int, losses: dict[str, float]) -> None:
            text = " ".join(f"{key} {value:.2f}" for key, value in losses.items())
            shown.update(tasks[name], completed=step + 1, losses=text)
            if step % 250 == 249 and not console.is_terminal:
                console.print(f"{name}, step {step + 1}: {text}", highlight=False)

        probes = build_beside(wanted, report)
    for name, probe in probes.items():
        table = Table("probe", "%", title=f"{name}: {out / name}")
        for key, value in probe.items():
            table.add_row(key, f"{value:.1f}")
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
