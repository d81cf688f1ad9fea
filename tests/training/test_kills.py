"""A kill at any moment, also inside a save, costs the steps since the last save and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kills import kill_and_resume
from tiny_trainer import trainer

from basic_lite import files


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(tmp_path):
    said: list[str] = []
    killed, whole, _ = kill_and_resume(tmp_path, kills=3, seed=1, tell=said.append)
    assert killed == whole, said


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it but the test."""


@pytest.mark.parametrize("moment", range(5))
def test_a_save_cut_off_at_any_file_leaves_the_last_checkpoint(tmp_path, monkeypatch, moment):
    """Every rename and removal of a save is once the last thing that happens."""
    run = trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    whole, count = run._save_checkpoint, 0

    def dying(name: str):
        real = getattr(Path, name)

        def call(self: Path, *args: object) -> object:
            nonlocal count
            count += 1
            if count > moment:
                raise Killed
            return real(self, *args)

        return call

    def save(*args: object) -> None:
        if run.state.global_step == 2:
            for name in ("rename", "replace"):
                monkeypatch.setattr(Path, name, dying(name))
        whole(*args)

    monkeypatch.setattr(run, "_save_checkpoint", save)
    died = False
    try:
        run.train()
    except Killed:
        died = True
    monkeypatch.undo()
    found = files.checkpoints(tmp_path)
    assert found, "no checkpoint is left"
    assert died or moment > 2
    for path in found:
        again = trainer(tmp_path, max_steps=3, save_strategy="no")
        again.train(resume_from_checkpoint=str(path))
        assert all(torch.isfinite(p).all() for p in again.model.parameters())
