"""Measure one finished stage of a run: held-out scenes and questions, rows of a file, or a benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

from basic_lite.ablation.captions import rows_of_file
from basic_lite.ablation.measures import Measure, of_answers, of_inspection
from basic_lite.checkpoint import load_run
from basic_lite.demo.columns import LANGUAGE_NAMES, shares_right
from basic_lite.demo.dataset import world_in
from basic_lite.demo.inspection import held_out_scenes, inspect_model
from basic_lite.demo.signs import HELD_OUT, WORDS
from basic_lite.devices import choose_device
from basic_lite.measure import Evaluation
from basic_lite.scoring.score import load_score
from basic_lite.writing import write_json


def measure(
    folder: Path,
    step: str,
    seed: int,
    *,
    world: str | None = None,
    scenes: int = 0,
    signs: str | None = None,
    rows: dict | None = None,
    benchmarks: dict | None = None,
) -> list[Measure]:
    """Measure what a step of a run has left.

    Args:
        folder: of the run.
        step: `stage1`, `stage2`, or a benchmark's name.
        seed: of the scenes that are shown.
        world: folder of the embedded world that the run was trained in.
        scenes: how many held-out scenes to show it there.
        signs: folder of a world of scenes with signs that it was trained in.
        rows: without a world, what `rows_of_file` is told.
        benchmarks: name -> `data` and `images` of a benchmark.
    """
    if step in (benchmarks or {}):
        last = max(folder.glob("stage?"))
        return [_score(last, step, **benchmarks[step])]
    run = folder / step
    if signs is not None:
        label = "held-out scenes with signs"
        rows = {"data": f"{signs}/{HELD_OUT}", "images": signs, "count": sys.maxsize, "label": label}
        rows["words"] = WORDS
    if world is None:
        return rows_of_file(load_run(run, choose_device())[0], **rows)
    found = inspect_model(load_run(run, choose_device())[0], held_out_scenes(scenes, seed))
    write_json(run / "inspection.json", found.as_dict())
    answers = (
        [] if step == "stage1" else [_answers(run, Path(world), language) for language in LANGUAGE_NAMES]
    )
    return [*of_inspection(found), *answers]


def _answers(run: Path, world: Path, language: str) -> Measure:
    """Ask the embedded world's questions in a language."""
    name = {"en": "mmbench", "zh": "mmbench-cn"}[language]
    evaluation = _evaluated(run, name, str(world_in(world).mmbench[language]), None)
    shares = shares_right(evaluation.questions(with_images=False), evaluation.answers)
    return of_answers(f"answers_{language}", f"right answers, {LANGUAGE_NAMES[language]}", shares)


def _score(run: Path, name: str, data: str | None, images: str | None) -> Measure:
    evaluation = _evaluated(run, name, data, images)
    questions = evaluation.questions(with_images=False)
    evaluation.score(questions)
    return of_answers(name, f"{name}, right answers", load_score(evaluation.out / "score.json").items)


def _evaluated(run: Path, name: str, data: str | None, images: str | None) -> Evaluation:
    """Have a run answer a benchmark's questions, as far as it has not answered them."""
    root = None if images is None else Path(images)
    evaluation = Evaluation(run, name, run / "eval" / name, data=data, images=root, any_size=True)
    evaluation.generate(
        evaluation.questions(with_images=True),
        device=choose_device(),
        batch_size=64,
        max_batches=None,
        overwrite=False,
        image_size=None,
        tower_layer=None,
        advance=lambda count: None,
    )
    return evaluation
