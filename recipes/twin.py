"""One twin of the demo in a process of its own: the three headline commands, one after the other."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basic_lite.modeling import Assembled


@dataclass
class Diary:
    """What a twin has done so far, in a file that the demo's display reads while it grows.

    Attributes:
        path: The file.
        phase: What goes on.
        seconds: Of the phases that are done, with what interrupted attempts took.
        spent: Seconds of interrupted attempts at the phase that comes next.
        peak_mib: Highest memory at the end of each phase.
    """

    path: Path
    phase: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    spent: float = 0.0
    peak_mib: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Diary:
        """Go on with the diary in a file, or begin it."""
        if not path.is_file():
            return cls(path)
        return cls(path, **json.loads(path.read_text(encoding="utf-8")) | {"phase": ""})

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Note that a phase goes on, and then its time and the highest memory so far."""
        from basic_lite.memory import peak_mib

        self.phase, start = phase, time.monotonic()
        self.write()
        try:
            yield
        except BaseException:
            self.spent += time.monotonic() - start
            self.write()
            raise
        self.seconds[phase] = round(self.spent + time.monotonic() - start, 1)
        self.peak_mib[phase] = round(peak_mib("cpu"), 1)
        self.phase, self.spent = "", 0.0
        self.write()

    def does(self, phase: str, action: Callable[[], None]) -> None:
        """Do something unless it is done."""
        if phase not in self.seconds:
            with self.during(phase):
                action()

    def write(self) -> None:
        """Write the file."""
        from basic_lite.writing import write_json

        write_json(self.path, {key: value for key, value in vars(self).items() if key != "path"})


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

    from basic_lite import devices
    from basic_lite.checkpoint import load_run
    from basic_lite.demo.dataset import world_in
    from basic_lite.demo.inspection import held_out_scenes, inspect_model
    from basic_lite.demo.watch import STOPPED
    from basic_lite.modeling import Sources, assemble
    from basic_lite.run_folder import checkpoints, is_finished
    from basic_lite.writing import write_json

    torch.set_num_threads(threads)
    data, device = world_in(world), devices.choose_device()
    shown = held_out_scenes(scenes, seed)
    diary = Diary.open(out / "twin.json")
    first, second, seen = out / "stage1", out / "stage2", "inspection.json"
    common = {"images": data.images, "basic": basic, "seed": seed, "workers": 0, "logging_steps": 5}

    def look(path: Path, make: Callable[[], Assembled]) -> None:
        write_json(path, inspect_model(make(), shown).as_dict())

    def train(stage: Callable[..., None], folder: Path, **settings: object) -> None:
        if is_finished(folder):
            return
        resume = bool(checkpoints(folder))
        stage(out=folder, resume=resume, overwrite=not resume, **settings, **common)
        if not is_finished(folder):
            sys.exit(STOPPED)

    def ask() -> None:
        for name, language in (("mmbench", "en"), ("mmbench-cn", "zh")):
            tsv = str(data.mmbench[language])
            evaluation.main(name, run=second, data=tsv, any_size=True, batch_size=64)

    with (out / "console.txt").open("a", encoding="utf-8") as console, contextlib.redirect_stdout(console):
        sources = Sources.named("tiny", bits=16, dtype=torch.float32)
        diary.does("look before", lambda: look(out / "before.json", lambda: assemble(sources, device, seed)))
        diary.does("stage 1", lambda: train(stage1.main, first, model="tiny", data=data.stage1))
        diary.does("look after stage 1", lambda: look(first / seen, lambda: load_run(first, device)[0]))
        diary.does("stage 2", lambda: train(stage2.main, second, lora=True, start=first, data=data.stage2))
        diary.does("look after stage 2", lambda: look(second / seen, lambda: load_run(second, device)[0]))
        diary.does("questions", ask)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    run(**arguments | {name: Path(arguments[name]) for name in ("out", "world")})
