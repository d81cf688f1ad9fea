"""From the command to the first step: where a process began, the parts in order, and what a run says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest
from command import run, stage1

from basic_lite.method.chunks import rows_in_chunk
from basic_lite.training.callbacks import Clock, process_age


def test_a_process_knows_when_it_was_started():
    code = (
        "import time; time.sleep(0.5); from basic_lite.training.callbacks import process_age; "
        "print(process_age())"
    )
    start = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert 0.5 <= age <= time.monotonic() - start + 0.02  # the kernel counts in hundredths


def test_parts_add_up_to_everything_since_the_process_began(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("basic_lite.training.callbacks.process_age", lambda: 7.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock()
    for part, seconds in (("imports", 0.5), ("models", 2.0), ("models", 1.0), ("first step", 4.0)):
        now[0] += seconds
        clock.mark(part)
    assert clock.parts == {"imports": 7.5, "models": 3.0, "first step": 4.0}
    assert clock.line() == "first step 14.5 s after the command (imports 7.5, models 3.0, first step 4.0)"


def test_elsewhere_the_age_is_unknown(monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError))
    assert process_age() == 0.0


@pytest.mark.parametrize("given", [None, 5])
def test_a_run_says_once_how_long_it_took_and_how_many_patches_went_through(world, tmp_path, given):
    more = [] if given is None else ["--rows-per-chunk", given]
    done = run(*stage1(world, "--max-steps", 3, "--logging-steps", 1, *more), cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if "after the command" in line]
    assert len(lines) == 1
    names = ["imports", "settings and data", "models", "teacher", "preparation", "first step"]
    assert re.findall(r"([a-z ]+?) [0-9.]+[,)]", lines[0].partition("(")[2]) == [
        names[0],
        *(f" {name}" for name in names[1:]),
    ]
    chunk = given or rows_in_chunk(2 * 9, 320)  # two rows of nine patches
    assert done.stdout.count(f"L_sds: {chunk} patches per pass over the vocabulary") == 1
    log = [json.loads(line) for line in (tmp_path / "runs/stage1/log.jsonl").read_text().splitlines()]
    assert [row.get("rows_per_chunk") for row in log] == [chunk, None, None]
