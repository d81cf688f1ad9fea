"""One run of an ablation in a process of its own: stage by stage, each measured with the same yardstick."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path


def run(folder: Path, steps: list[str], seed: int, threads: int, stages: dict, yardstick: dict) -> int:
    """Do what is left of a run; everything that is printed goes to `console.txt`.

    Args:
        folder: of the run.
        steps: `stage1`, `stage2`, or the name of a benchmark; those that are measured already are left out.
        seed: of the projector and the order of rows.
        threads: of the CPU.
        stages: name of a stage -> its options.
        yardstick: what is measured, see `basic_lite.ablation.yardstick`.

    Returns:
        An exit code: 0, or `STOPPED` if a signal stopped it with a checkpoint.
    """
    import torch
    from basic_lite.recipes import stage1, stage2
    from basic_lite.recipes.twin import Diary

    from basic_lite.ablation import measures
    from basic_lite.ablation.runs import STOPPED, follow_parent
    from basic_lite.ablation.watch import DIARY
    from basic_lite.ablation.yardstick import measure
    from basic_lite.run_folder import checkpoints, is_finished

    torch.set_num_threads(threads)
    follow_parent()
    diary = Diary.open(folder / DIARY)
    with (folder / "console.txt").open("a", encoding="utf-8") as console, contextlib.redirect_stdout(console):
        for step in steps:
            if measures.path_of(folder, step).is_file():
                continue
            out = folder / step
            if step in stages and not is_finished(out):
                again = bool(checkpoints(out))
                options = _with_paths(stages[step]) | {"seed": seed, "out": out}
                options |= {"resume": again, "overwrite": not again}
                with diary.during(step):
                    if step == "stage1":
                        stage1.main(**options)
                    else:
                        stage2.main(start=folder / "stage1", **options)
                if not is_finished(out):
                    return STOPPED
            with diary.during(f"measuring {step}"):
                measures.write(folder, step, measure(folder, step, seed, **yardstick))
    return 0


def _with_paths(options: dict) -> dict:
    return {name: Path(value) if name in ("data", "images") else value for name, value in options.items()}


if __name__ == "__main__":
    import sys

    arguments = json.loads(sys.argv[1])
    sys.exit(run(**arguments | {"folder": Path(arguments["folder"])}))
