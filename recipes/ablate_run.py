"""One run of an ablation or of the demo in a process of its own: step by step, each one measured."""

from __future__ import annotations

import json
from pathlib import Path


def run(folder: Path, steps: list[str], seed: int, threads: int, stages: dict, measure: dict) -> None:
    """Do what is left of the `steps` of a run; everything that is printed goes to `console.txt`.

    `stages` has each stage's options by name, `measure` those of `experiments.measure.measure`. Ends with
    `processes.STOPPED` if a signal stopped it with a checkpoint.
    """
    from basic_lite.recipes import stage1, stage2  # pyright: ignore[reportMissingImports]

    from basic_lite.experiments import measure as measures
    from basic_lite.experiments import processes
    from basic_lite.files import is_finished

    progress = processes.ProgressFile.open(folder / processes.PROGRESS)
    with processes.begin(folder, threads):
        for step in steps:
            if measures.path_of(folder, step).is_file():
                continue
            if step in stages and not is_finished(folder / step):
                options = processes.for_stage(stages[step])
                stage, more = (stage1, {}) if step == "stage1" else (stage2, {"start": folder / "stage1"})
                with progress.during(processes.phase_of(step)):
                    processes.train(stage.main, folder / step, **options, **more, seed=seed)
            with progress.during(processes.phase_of(step, measuring=True)):
                measures.write_measures(folder, step, measures.measure(folder, step, seed, **measure))


if __name__ == "__main__":
    import sys

    task = json.loads(sys.argv[1])
    run(**task | {"folder": Path(task["folder"])})
