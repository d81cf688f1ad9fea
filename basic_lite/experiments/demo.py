"""The demo: a plan of two variants in the embedded world, through both stages and the questions."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from os import cpu_count
from pathlib import Path

from basic_lite.data.world.dataset import world_in
from basic_lite.data.world.world import SCALE
from basic_lite.experiments import curves
from basic_lite.experiments.measure import BEFORE, QUESTIONS, Measure, of_run, read_inspection
from basic_lite.experiments.plans import DEMO
from basic_lite.experiments.processes import PROGRESS, Run
from basic_lite.experiments.table import DifferenceTable, pairs, tabulate
from basic_lite.files import versions, write_json

STEPS = (BEFORE, "stage1", "stage2", QUESTIONS)
BYTES_OF_A_RUN = 2 * 2**30  # what stage 2 of the embedded model takes at its highest, with room


def folder_of(demo: Path, variant: str) -> Path:
    """Return the folder of a variant's run: `plain` or `basic`."""
    return demo / variant.lower()


def runs(demo: Path, seed: int, scenes: int) -> list[Run]:
    """Return both runs of a demo, whose world is its folder `world`; `scenes` held-out scenes are inspected.

    `seed` is of the world, the projectors and the order of rows.
    """
    world = world_in(demo / "world")
    made = []
    for variant, options in DEMO.variants.items():
        common = {"images": str(world.images), "workers": 0, "logging_steps": 5, **options}
        along = json.dumps({"world": str(world.images), "scenes": curves.SAMPLES, "seed": seed})
        stages = {
            "stage1": {"model": "tiny", "data": str(world.stage1), "along": along, **common},
            "stage2": {"lora": True, "data": str(world.stage2), **common},
        }
        task = {"stages": stages, "measure": {"world": str(world.images), "scenes": scenes}}
        made.append(Run(variant, seed, folder_of(demo, variant), STEPS, task))
    return made


def compare(demos: Sequence[Path], seeds: Sequence[int]) -> DifferenceTable:
    """Compare the variants of finished demos, a seed each."""
    folders = {variant: [folder_of(demo, variant) for demo in demos] for variant in DEMO.variants}
    progress = {run: _progress(run) for runs in folders.values() for run in runs}
    phases = [
        phase
        for phase in next(iter(progress.values()))["seconds"]
        if all(phase in content["seconds"] for content in progress.values())  # a killed run may lack one
    ]
    measured = {
        variant: [[*of_run(run, STEPS[1:], details=True), *_costs(progress[run], phases)] for run in runs]
        for variant, runs in folders.items()
    }
    return tabulate(DEMO.name, DEMO.asks, DEMO.baseline, seeds, measured)


def curves_of_demos(demos: Sequence[Path]) -> curves.Curves:
    """Return the curves of both variants of finished demos, a seed each."""
    return {
        variant: curves.curves_of([curves.read(folder_of(demo, variant) / "stage1") for demo in demos])
        for variant in DEMO.variants
    }


def _progress(run: Path) -> dict:
    return json.loads((run / PROGRESS).read_text(encoding="utf-8"))


def _costs(progress: dict, phases: Sequence[str]) -> list[Measure]:
    figures = [(f"seconds_{p}", f"seconds, {p}", "s", progress["seconds"][p]) for p in phases]
    figures.append(("peak_mib", "highest memory", "MiB", max(progress["peak_mib"].values())))
    return [
        Measure(name, label, unit, None, "", [value], digits=0, group="cost")
        for name, label, unit, value in figures
    ]


def seconds_of(demo: Path) -> float:
    """Return how long the longer of both runs took, with all its interrupted parts."""
    return max(sum(_progress(folder_of(demo, variant))["seconds"].values()) for variant in DEMO.variants)


def cost_of(demo: Path) -> str:
    """Describe what measuring along the way cost in a finished demo; empty where nothing was measured."""
    share = curves.measuring_share([folder_of(demo, variant) for variant in DEMO.variants])
    return "" if share is None else curves.cost_sentence(share)


def write_summary(table: DifferenceTable, demo: Path) -> None:
    before = read_inspection(folder_of(demo, DEMO.baseline), BEFORE)
    content = {
        "seed": table.seeds[0],
        "seconds": round(seconds_of(demo), 1),
        "world": SCALE,
        "meaningful_before": 100 * sum(before.meaningful) / sum(before.shown),
        "columns": columns(table),
        **curve_figures([demo]),
        "measuring_share": curves.measuring_share([folder_of(demo, variant) for variant in DEMO.variants]),
        "machine": {"system": platform.platform(), "cores": cpu_count()},
        "versions": versions(),
    }
    write_json(demo / "summary.json", content)


def curve_figures(demos: Sequence[Path]) -> dict[str, object]:
    """Return curves, and how many samples BASIC needs for what plain can do, as plain JSON."""
    drawn = curves_of_demos(demos)
    saved = curves.savings_as_dict(drawn, DEMO.baseline)
    return {"curves": curves.as_dict(drawn), "savings": saved}


def columns(table: DifferenceTable) -> list[dict[str, object]]:
    """Return every measure of a demo's table, or of that of several demos, as plain JSON."""
    return [
        {
            **{"name": pair.measure.name, "label": pair.measure.label.strip(), "group": pair.group},
            **{key: getattr(pair.measure, key) for key in ("unit", "better", "digits")},
            **{"plain": pair.base.mean, "basic": pair.other.mean, "difference": pair.other.difference},
            **{"interval_95": pair.other.interval, "verdict": pair.other.verdict},
            "each": pair.other.differences,
        }
        for pair in pairs(table)
    ]
