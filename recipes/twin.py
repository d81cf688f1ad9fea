"""One twin of the demo in a process of its own: the three headline commands, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basic_lite.models.llava import Assembled


def run(out: Path, basic: bool, seed: int, threads: int, world: Path, scenes: int) -> None:
    """Train and score one twin; everything that is printed goes to `console.txt`.

    Args:
        out: Folder of the twin.
        basic: With BASIC or without.
        seed: Of the projector, the order of rows and the scenes looked into.
        threads: Of the CPU.
        world: Folder of the embedded world.
        scenes: Held-out scenes to look into.
    """
    import torch
    from basic_lite.recipes import eval as evaluation
    from basic_lite.recipes import stage1, stage2

    from basic_lite.data.world.dataset import world_in
    from basic_lite.data.world.world import held_out_scenes
    from basic_lite.experiments import processes
    from basic_lite.experiments.measure import inspect_model
    from basic_lite.experiments.processes import DEMO_DIARY, QUESTIONS, Diary
    from basic_lite.files import write_json
    from basic_lite.models import devices
    from basic_lite.models.checkpoint import load_run
    from basic_lite.models.llava import Sources, assemble

    data, device = world_in(world), devices.choose_device()
    shown = held_out_scenes(scenes, seed)
    diary = Diary.open(out / DEMO_DIARY)
    first, second, seen = out / "stage1", out / "stage2", "inspection.json"
    common = {"images": data.images, "basic": basic, "seed": seed, "workers": 0, "logging_steps": 5}

    def look(path: Path, make: Callable[[], Assembled]) -> None:
        write_json(path, inspect_model(make(), shown).as_dict())

    def train(stage: Callable[..., None], folder: Path, **settings: object) -> None:
        processes.train(stage, folder, **settings, **common)

    def ask() -> None:
        for name, language in (("mmbench", "en"), ("mmbench-cn", "zh")):
            tsv = str(data.mmbench[language])
            evaluation.main(name, run=second, data=tsv, any_size=True, batch_size=64)

    with processes.begin(out, threads):
        sources = Sources.named("tiny", bits=16, dtype=torch.float32)
        diary.does("look before", lambda: look(out / "before.json", lambda: assemble(sources, device, seed)))
        diary.does("stage 1", lambda: train(stage1.main, first, model="tiny", data=data.stage1))
        diary.does("look after stage 1", lambda: look(first / seen, lambda: load_run(first, device)[0]))
        diary.does("stage 2", lambda: train(stage2.main, second, lora=True, start=first, data=data.stage2))
        diary.does("look after stage 2", lambda: look(second / seen, lambda: load_run(second, device)[0]))
        diary.does(QUESTIONS, ask)


if __name__ == "__main__":
    import sys

    arguments = json.loads(sys.argv[1])
    run(**arguments | {name: Path(arguments[name]) for name in ("out", "world")})
