"""Look whether this machine is ready for a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def main(
    out: Annotated[Path, o.option("Folder that runs will be written into.")] = Path("runs"),
    model: Annotated[
        str | None, o.option("A model by name: its download, room on disk and memory too.", default="none")
    ] = None,
) -> None:
    """Try device, driver, bf16, 4-bit layers, fused kernels, disk and hub; each fault with its remedy.

    Exit code 0 if a run is possible (notes included), 1 if something is broken.

    Examples:

      basic-lite doctor

      basic-lite doctor --out /data/runs

      basic-lite doctor --model vicuna-7b
    """
    from basic_lite.bench.doctor import examine
    from basic_lite.console import quiet_console

    console = quiet_console()
    broken = False
    for finding in examine(out, model):
        broken = broken or finding.state == "bad"
        console.print(f"{finding.state:<5} {finding.name:<13} {finding.text}")
        if finding.remedy and finding.state != "good":
            console.print(f"      {'':<13} -> {finding.remedy}")
    if broken:
        raise typer.Exit(1)
