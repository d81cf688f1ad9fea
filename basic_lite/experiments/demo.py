"""The demo: a plan of two variants in the embedded world, through both stages and the questions."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from os import cpu_count
from pathlib import Path

from basic_lite.data.world.dataset import world_in
from basic_lite.data.world.world import SCALE
from basic_lite.experiments import curves
from basic_lite.experiments.measure import BEFORE, QUESTIONS, Measure, of_run, read_inspection
from basic_lite.experiments.plans import DEMO
from basic_lite.experiments.processes import PROGRESS, Run
from basic_lite.experiments.table import DifferenceTable, tabulate
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


@dataclass(frozen=True)
class Results:
    """What finished demos came to, a seed each."""

    demos: Sequence[Path]  # their folders
    seeds: Sequence[int]

    @cached_property
    def _runs(self) -> dict[str, list[Path]]:
        return {variant: [folder_of(demo, variant) for demo in self.demos] for variant in DEMO.variants}

    @cached_property
    def _progress(self) -> dict[Path, dict[str, dict[str, float]]]:
        """Seconds of each phase and highest memory, run by run."""
        runs = chain.from_iterable(self._runs.values())
        return {run: json.loads((run / PROGRESS).read_text(encoding="utf-8")) for run in runs}

    @cached_property
    def table(self) -> DifferenceTable:
        measured = {
            variant: [[*of_run(run, STEPS[1:], details=True), *self._costs(run)] for run in runs]
            for variant, runs in self._runs.items()
        }
        return tabulate(DEMO.name, DEMO.asks, DEMO.baseline, self.seeds, measured)

    def _costs(self, run: Path) -> list[Measure]:
        spent = [content["seconds"] for content in self._progress.values()]
        phases = [
            phase for phase in spent[0] if all(phase in own for own in spent)
        ]  # a killed run may lack one
        own = self._progress[run]
        figures = [(f"seconds_{phase}", f"seconds, {phase}", "s", own["seconds"][phase]) for phase in phases]
        figures.append(("peak_mib", "highest memory", "MiB", max(own["peak_mib"].values())))
        return [
            Measure(name, label, unit, None, "", [value], digits=0, group="cost")
            for name, label, unit, value in figures
        ]

    @cached_property
    def curves(self) -> curves.Curves:
        return {
            variant: curves.curves_of([curves.read(run / "stage1") for run in runs])
            for variant, runs in self._runs.items()
        }

    @cached_property
    def sentences(self) -> list[str]:
        """How many samples BASIC needs for what plain ends with."""
        return curves.sentences(self.curves, DEMO.baseline)

    @property
    def seconds(self) -> float:
        """How long the longest run took, with all its interrupted parts."""
        return max(sum(content["seconds"].values()) for content in self._progress.values())

    @cached_property
    def measuring_share(self) -> float | None:
        return curves.measuring_share(list(self._progress))

    @property
    def cost(self) -> str:
        """How many scenes a curve is over, and what measuring it cost; empty where nothing was measured."""
        if self.measuring_share is None:
            return ""
        return f"{curves.size_sentence(self.curves)} {curves.cost_sentence(self.measuring_share)}"

    def as_dict(self) -> dict[str, object]:
        """Return every measure and curve for JSON, and how many samples BASIC needs for what plain can do."""
        columns = [
            {
                **{"name": pair.measure.name, "label": pair.measure.label.strip(), "group": pair.group},
                **{key: getattr(pair.measure, key) for key in ("unit", "better", "digits")},
                **{"plain": pair.base.mean, "basic": pair.other.mean, "difference": pair.other.difference},
                **{"interval_95": pair.other.interval, "verdict": pair.other.verdict},
                "each": pair.other.differences,
            }
            for pair in self.table.pairs
        ]
        saved = curves.savings_as_dict(self.curves, DEMO.baseline)
        return {"columns": columns, "curves": curves.as_dict(self.curves), "savings": saved}


def write_summary(results: Results) -> Path:
    """Write `summary.json` into the folder of a demo of one seed, and return its path."""
    (demo,), (seed,) = results.demos, results.seeds
    before = read_inspection(folder_of(demo, DEMO.baseline), BEFORE)
    content = {
        "seed": seed,
        "seconds": round(results.seconds, 1),
        "world": SCALE,
        "meaningful_before": 100 * sum(before.meaningful) / sum(before.shown),
        **results.as_dict(),
        "measuring_share": results.measuring_share,
        "machine": {"system": platform.platform(), "cores": cpu_count()},
        "versions": versions(),
    }
    write_json(demo / "summary.json", content)
    return demo / "summary.json"
