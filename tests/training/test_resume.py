"""What a resumed run shares with the run before, what it may change, and that its log shows no seam."""

from __future__ import annotations

import json
import shutil

import pytest
from command import run, stage1, stage2
from tiny import adapted, tiny_llava
from tiny_trainer import Rows, log_of, trainer

from basic_lite.files import checkpoints
from basic_lite.method.objective import Objective

SPEEDS = ("samples_per_second", "peak_mib")


def built(out, steps: int, **more):
    more = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3} | more
    made = trainer(out, adapted(tiny_llava()), Rows(40), logging_first_step=True, **more)
    return made, made.train(resume_from_checkpoint=str(out / f"checkpoint-{steps}") if steps else None)


@pytest.mark.parametrize("objective", [Objective(), Objective(0, 0)])
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_log_has_the_lines_of_an_undisturbed_one(tmp_path, step, objective):
    """Lines come after steps 1, 3 and 6: a checkpoint carries what no line counts yet."""
    built(tmp_path / "whole", 0, objective=objective)
    out = tmp_path / "again"
    out.mkdir()
    shutil.copytree(tmp_path / f"whole/checkpoint-{step}", out / f"checkpoint-{step}")
    shutil.copy(tmp_path / "whole/log.jsonl", out)  # with lines of steps that are done again
    built(out, step, objective=objective)
    logs = [log_of(folder) for folder in (out, tmp_path / "whole")]
    lines = [[{k: v for k, v in row.items() if k not in SPEEDS} for row in log] for log in logs]
    assert lines[0] == lines[1]
    assert [row["step"] for row in lines[0]] == [1, 3, 6]
    assert any(row["cosine"] for row in lines[0])


def test_intervals_of_saving_and_logging_may_be_others(tmp_path):
    built(tmp_path, 0, max_steps=2)
    built(tmp_path, 2, save_steps=3, logging_steps=2)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 3, 6, 8)]
    assert [row["step"] for row in log_of(tmp_path)] == [1, 4, 6, 8]


@pytest.fixture(scope="module")
def second(trained_run, tmp_path_factory):
    """A stage 2 that was stopped after its first step, its stage 1, and another stage 1."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(trained_run, folder / "runs/stage1")
    world = trained_run.parents[1]
    run(*stage1(world, "--bits", 16, "--max-steps", 1, "--seed", 4, "--out", "other"), cwd=folder)
    run(*stage2(world, *ADAPTERS, "--save-steps", 1), cwd=folder)
    for name in ("checkpoint-2", "manifest.json", "adapter_model.safetensors", "adapter_config.json"):
        path = folder / "runs/stage2" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


ADAPTERS = ("--lora", "--rank", 4, "--bits", 16, "--max-steps", 2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--rank", 8), "was started with --rank 4, now 8; resume with the same settings"),
        (("--alpha", 64), "was started with --alpha 8, now 64"),
        (("--dropout", 0.5), "was started with --dropout 0.05, now 0.5"),
        (("--start", "other"), "was started from runs/stage1, and --start other holds other weights"),
        (("--overwrite",), "--resume goes on with the run in --out, --overwrite replaces it"),
    ],
)
def test_what_changes_the_numbers_is_refused_in_one_line(second, trained_run, more, said):
    world = trained_run.parents[1]
    before = sorted(second.rglob("*"))
    done = run(*stage2(world, *ADAPTERS, "--resume", *more), cwd=second, expect=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(second.rglob("*")) == before


def test_a_start_that_was_moved_is_the_same_start(second, trained_run, tmp_path):
    world = trained_run.parents[1]
    shutil.copytree(second, tmp_path / "copy")
    (tmp_path / "copy/runs/stage1").rename(tmp_path / "copy/moved")
    run(*stage2(world, *ADAPTERS, "--resume", "--start", "moved"), cwd=tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy/runs/stage2/manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["from"]["stage1"] == "moved"
