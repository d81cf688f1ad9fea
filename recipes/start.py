"""`basic-lite` without a command: what there is on this machine, and the next sensible command."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from basic_lite import __version__, files

CARDS = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver names its cards; read at once, while torch takes seconds to be imported."""

_SHOWN = 3


@dataclass(frozen=True)
class Run:
    """A run folder as its manifest describes it; `stage` is 0 if that cannot be read."""

    folder: Path
    stage: int
    finished: bool
    changed: float

    def __str__(self) -> str:
        if not self.stage:
            return f"{self.folder} (cannot be read)"
        return f"{self.folder} (stage {self.stage}{'' if self.finished else ', not finished'})"


def lines(here: Path) -> list[str]:
    """Return the eight lines, with the runs of the folders in `here` and in its `runs`."""
    cards, known = cards_of(CARDS), runs(here)
    shown = ", ".join(map(str, known[:_SHOWN]))
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(here)
    none = "no NVIDIA card seen: the demo runs on the processor; basic-lite doctor looks closer"
    command, why = following(known, bool(cards))
    return [
        f"basic-lite {__version__}: your own vision-language model, supervised by the LLM itself",
        "",
        f"Device   {', '.join(cards) or none}",
        f"Machine  {os.cpu_count()} cores, {memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB of "
        f"memory free, {disk.free / 1e9:.0f} GB free on this disk",
        f"Runs     {shown}{more}" if known else "Runs     none in this folder",
        "",
        f"Next     {command}   ({why})",
        "All      basic-lite --help, and basic-lite COMMAND --help with examples",
    ]


def cards_of(root: Path) -> list[str]:
    """Return the names of the cards that a driver lists under `root`, each once with its number."""
    names: dict[str, int] = {}
    for path in sorted(root.glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names[value.strip()] = names.get(value.strip(), 0) + 1
    return [name if count == 1 else f"{count} x {name}" for name, count in names.items()]


def runs(here: Path) -> list[Run]:
    """Return the runs of a folder, the one that was changed last first."""
    known = []
    for path in (*here.glob(f"*/{files.MANIFEST}"), *here.glob(f"runs/*/{files.MANIFEST}")):
        folder = path.parent.relative_to(here)
        try:
            manifest = files.read_manifest(path.parent)
            stage, finished = int(manifest["stage"]), bool(manifest.get("finished"))
        except (ValueError, KeyError, TypeError):
            stage, finished = 0, False
        known.append(Run(folder, stage, finished, path.stat().st_mtime))
    return sorted(known, key=lambda run: run.changed, reverse=True)


def following(known: list[Run], card: bool) -> tuple[str, str]:
    """Return the next sensible command and why, for runs, newest first, with or without a card."""
    newest = next((run for run in known if run.stage), None)
    if newest is None:
        if card:
            return "basic-lite plan --model gemma-2b", "what fits on this card; then stage1, stage2, eval"
        return "basic-lite demo", "the whole method in a drawn world, without a card or a download"
    if not newest.finished:
        place = "" if newest.folder == Path(f"runs/stage{newest.stage}") else f" --out {newest.folder}"
        return f"basic-lite stage{newest.stage}{place} --resume", "with its other options; it goes on"
    if newest.stage == 1:
        place = "" if newest.folder == Path("runs/stage1") else f" --start {newest.folder}"
        return f"basic-lite stage2 --lora{place}", f"{newest.folder} is ready for instructions"
    if not list((newest.folder / "eval").glob("*/results.json")):
        return f"basic-lite eval mmbench --run {newest.folder}", "it has no results yet"
    return f"basic-lite chat {newest.folder}", "talk with it; basic-lite export takes it elsewhere"
