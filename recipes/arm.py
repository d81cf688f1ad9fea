"""One run of an ablation in a process of its own: stage by stage, each measured with the same yardstick."""

from __future__ import annotations

import json
from pathlib import Path


def run(folder: Path, steps: list[str], seed: int, threads: int, stages: dict, yardstick: dict) -> None:
    """Do what is left of a run; everything that is printed goes to `console.txt`.

    Args:
        folder: of the run.
        steps: `stage1`, `stage2`, or the name of a benchmark; those that are measured already are left out.
        seed: of the projector and the order of rows.
        threads: of the CPU.
        stages: name of a stage -> its options.
        yardstick: what is measured, see `basic_lite.experiments.measure`.

    Raises:
        SystemExit: With `children.STOPPED`, if a signal stopped it with a checkpoint.
    """
    from basic_lite.recipes import stage1, stage2

    from basic_lite.experiments import measure as experiments_measure
    from basic_lite.experiments import processes
    from basic_lite.experiments.measure import measure
    from basic_lite.experiments.processes import DIARY, Diary
    from basic_lite.files import is_finished

    diary = Diary.open(folder / DIARY)
    with processes.begin(folder, threads):
        for step in steps:
            if experiments_measure.path_of(folder, step).is_file():
                continue
            out = folder / step
            if step in stages and not is_finished(out):
                options = _with_paths(stages[step]) | {"seed": seed}
                with diary.during(step):
                    if step == "stage1":
                        processes.train(stage1.main, out, **options)
                    else:
                        processes.train(stage2.main, out, start=folder / "stage1", **options)
            with diary.during(f"measuring {step}"):
                experiments_measure.write_measures(folder, step, measure(folder, step, seed, **yardstick))


def _with_paths(options: dict) -> dict:
    return {name: Path(value) if name in ("data", "images") else value for name, value in options.items()}


if __name__ == "__main__":
    import sys

    arguments = json.loads(sys.argv[1])
    run(**arguments | {"folder": Path(arguments["folder"])})
