"""One twin of the demo in a process of its own: the three headline commands, one after the other."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Diary:
    """What a twin has done so far, in a file that the demo's display reads while it grows."""

    path: Path
    phase: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Note that a phase goes on, and afterwards its time and the highest memory so far."""
        from basic_lite.memory import peak_mib

        self.phase, start = phase, time.monotonic()
        self.write()
        yield
        self.seconds[phase] = round(time.monotonic() - start, 1)
        self.peak_mib[phase] = round(peak_mib("cpu"), 1)
        self.phase = ""
        self.write()

    def write(self) -> None:
        """Write the file."""
        from basic_lite.writing import write_json

        write_json(self.path, {"phase": self.phase, "seconds": self.seconds, "peak_mib": self.peak_mib})


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
    from basic_lite.modeling import Sources, assemble
    from basic_lite.writing import write_json

    torch.set_num_threads(threads)
    data, device = world_in(world), devices.choose_device()
    shown = held_out_scenes(scenes, seed)
    diary = Diary(out / "twin.json")
    first, second = out / "stage1", out / "stage2"
    common = {"images": data.images, "basic": basic, "seed": seed, "workers": 0, "logging_steps": 5}
    with (out / "console.txt").open("w", encoding="utf-8") as console, contextlib.redirect_stdout(console):
        with diary.during("look before"):
            fresh = assemble(Sources.named("tiny", bits=16, dtype=torch.float32), device, seed)
            write_json(out / "before.json", inspect_model(fresh, shown).as_dict())
        with diary.during("stage 1"):
            stage1.main(model="tiny", data=data.stage1, out=first, **common)
        with diary.during("look after stage 1"):
            write_json(first / "inspection.json", inspect_model(load_run(first, device)[0], shown).as_dict())
        with diary.during("stage 2"):
            stage2.main(lora=True, start=first, data=data.stage2, out=second, **common)
        with diary.during("look after stage 2"):
            write_json(
                second / "inspection.json", inspect_model(load_run(second, device)[0], shown).as_dict()
            )
        with diary.during("questions"):
            for name, language in (("mmbench", "en"), ("mmbench-cn", "zh")):
                tsv = str(data.mmbench[language])
                evaluation.main(name, run=second, data=tsv, any_size=True, batch_size=64)


if __name__ == "__main__":
    import sys

    arguments = json.loads(sys.argv[1])
    run(**arguments | {name: Path(arguments[name]) for name in ("out", "world")})
