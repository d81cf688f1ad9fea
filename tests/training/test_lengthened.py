"""A finished run that goes on: to more steps, on the schedule of the longer run, and no further than that."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from command import run, stage1

from basic_lite import files

RATE = 1e-6
"""So low that losses tell which rows they are of."""


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def said(*options, cwd, **more):
    done = run(*options, cwd=cwd, **more)
    return " ".join((done.stderr if more else done.stdout).split())


@pytest.fixture(scope="module")
def short(world, tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("short")
    run(*stage1(world, "--max-steps", 2, "--save-steps", 1, "--learning-rate", RATE), cwd=folder)
    return folder / "runs/stage1"


@pytest.fixture
def copied(short, tmp_path):
    return shutil.copytree(short, tmp_path / "runs/stage1")


def test_a_run_of_two_steps_goes_on_to_four(world, copied, tmp_path):
    before = files.file_hash(copied / files.PROJECTOR)
    longer = stage1(world, "--max-steps", 4, "--learning-rate", RATE)
    line = said(*longer, "--resume", cwd=tmp_path)
    rates = [RATE * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert "lengthened from 2 to 4 steps: the cosine is now that of the longer run" in line
    assert "is back at 5e-07 in step 3" in line
    rows = log_of(copied)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["learning_rate"] for row in rows[2:]] == pytest.approx(rates[2:])
    manifest = files.read_manifest(copied)
    assert (manifest["finished"], manifest["steps"], manifest["training"]["max_steps"]) == (True, 4, 4)
    assert manifest["resumed"] == [{"step": 2, "steps": [2, 4]}]
    assert files.file_hash(copied / files.PROJECTOR) != before

    # The same rows as a run that was of four steps from the start.
    run(*longer, "--out", "whole", cwd=tmp_path)
    whole = log_of(tmp_path / "whole")
    assert [row["learning_rate"] for row in whole] == pytest.approx(rates)
    losses = [row["loss"] for row in whole]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4)
    assert all(abs(losses[i] / losses[j] - 1) > 1e-3 for i in range(4) for j in range(i))

    refused = said(*longer, "--resume", cwd=tmp_path, expect=2)
    assert "is finished; nothing is left to resume" in refused


@pytest.mark.parametrize("more", [("--max-steps", 2), ("--max-steps", 1), ("--epochs", 0.5)])
def test_a_run_that_would_not_be_longer_is_refused(world, copied, tmp_path, more):
    done = run(*stage1(world, *more, "--learning-rate", RATE, "--resume"), cwd=tmp_path, expect=2)
    assert "is finished; nothing is left to resume (a larger --max-steps or --epochs" in done.stderr
    assert done.stderr.count("\n") == 1
    assert files.read_manifest(copied)["steps"] == 2


def test_a_longer_run_is_otherwise_the_same(world, copied, tmp_path):
    more = stage1(world, "--max-steps", 4, "--learning-rate", 1e-2, "--resume")
    assert "another training: {'learning_rate': 1e-06}, now {'learning_rate': 0.01}" in said(
        *more, cwd=tmp_path, expect=2
    )


def test_epochs_and_a_stop_on_the_way(world, copied, tmp_path):
    """A lengthened run that was stopped goes on with the same command, and may not become shorter."""
    longer = stage1(world, "--epochs", 1, "--save-steps", 1, "--learning-rate", RATE, "--resume")
    finished = (copied / files.MANIFEST).read_text()
    before = files.file_hash(copied / "checkpoint-2" / files.PROJECTOR)
    assert "from 2 to 4 steps" in said(*longer, cwd=tmp_path)  # 16 rows at a global batch of 4
    assert files.file_hash(copied / "checkpoint-3" / files.PROJECTOR) != before  # a rate of 0 moves nothing
    whole = files.file_hash(copied / files.PROJECTOR)
    shutil.rmtree(copied / "checkpoint-4")
    (copied / files.MANIFEST).write_text(finished)  # as a kill after step 3 leaves it
    shorter = stage1(world, "--max-steps", 3, "--learning-rate", RATE, "--resume")
    assert "another training: {'max_steps': -1}, now {'max_steps': 3}" in said(
        *shorter, cwd=tmp_path, expect=2
    )
    assert "lengthened" not in said(*longer, cwd=tmp_path)
    assert files.file_hash(copied / files.PROJECTOR) == whole
    assert files.read_manifest(copied)["resumed"] == [{"step": 2, "steps": [2, 4]}]


def test_a_run_that_stopped_early_is_not_lengthened(world, tmp_path):
    more = ("--val-share", "20%", "--val-steps", 1, "--stop-after", 1, "--learning-rate", 1e-10)
    run(*stage1(world, *more, "--max-steps", 4, "--save-steps", 1), cwd=tmp_path, expect=0)
    refused = said(*stage1(world, *more, "--max-steps", 9, "--resume"), cwd=tmp_path, expect=2)
    assert "by --stop-after, which more steps do not change; start again with --overwrite, or in" in refused
