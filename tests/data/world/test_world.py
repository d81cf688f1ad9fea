"""The embedded world is drawn once, however many processes want it."""

from __future__ import annotations

import sys

from forked import Forked

DRAW = """
import sys
from pathlib import Path
from basic_lite.data.world import world
world.SCALE = {"captions": 32, "conversations": 32, "questions": 7}
while not Path("go").exists():
    pass
found = world.world_at(Path("runs/tiny-world"), print)
print(found.stage1.is_file() and all(path.is_file() for path in found.mmbench.values()))
"""


def test_processes_that_start_together_draw_one_world(tmp_path):
    command = [sys.executable, "-c", DRAW]
    both = [Forked(command, tmp_path, apart=True) for _ in range(2)]
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("Drawing" in out for out, _ in said) == [False, True]
    assert all(out.strip().endswith("True") for out, _ in said)
