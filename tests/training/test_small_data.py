"""Few rows train: the default batch shrinks, warm-up leaves steps, and a run that moves nothing fails."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from command import run, settings_shown
from PIL import Image
from safetensors.torch import load_file
from tiny import llm_folder, tower_folder

from basic_lite import files
from basic_lite.models import llava, trainable
from basic_lite.models.checkpoint import sources_of

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (250, 250, 250)}
QUICK = ["--workers", 0, "--logging-steps", 1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A hundred pictures of one's own, of which a data set takes the first ones."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(100):
        colour = COLOURS[list(COLOURS)[number % 4]]
        Image.new("RGB", (30 + number % 20, 40), colour).save(folder / f"{number}.png")
    return folder


def rows_file(pictures: Path, count: int, turns: int = 1, prefix: str = "") -> Path:
    """Write captions (one turn) or conversations about the first pictures; ids begin with `prefix`."""
    rows = []
    for number in range(count):
        name = list(COLOURS)[number % 4]
        said = [("<image>\nWhat is it?", f"a {name} one"), ("And the colour?", name)][:turns]
        talk = [t for q, a in said for t in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
        rows.append({"id": f"{prefix}{number}", "image": f"{number}.png", "conversations": talk})
    path = pictures / f"{prefix}{count}-rows-{turns}.json"
    path.write_text(json.dumps(rows))
    return path


def stage1(pictures: Path, count: int, *more: object) -> list[object]:
    parts = ["--llm", llm_folder(), "--tower", tower_folder(), "--precision", "fp32", "--bits", 16]
    return ["stage1", *parts, "--data", rows_file(pictures, count), *QUICK, *more]


def stage2(pictures: Path, count: int, *more: object) -> list[object]:
    return ["stage2", "--lora", "--rank", 4, "--data", rows_file(pictures, count, 2), *QUICK, *more]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def fresh_projector(folder: Path) -> dict[str, torch.Tensor]:
    """Return the projector that a run began with."""
    assembled = llava.assemble(sources_of(files.read_manifest(folder)), "cpu", 0)
    return {n: p for n, p in assembled.model.named_parameters() if "multi_modal_projector" in n}


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_handful_of_rows_moves_every_tensor(count, pictures, tmp_path):
    done = run(*stage1(pictures, count, "--learning-rate", 0.01), cwd=tmp_path)
    few = f"{count} rows are 1 optimizer step at a global batch of 256: it is 1 here, for {count} optimizer "
    one = "Warning: 1 row is 1 optimizer step at a global batch of 256; more --epochs give more.\n"
    more = "steps, and more --epochs give more (--global-batch 256 keeps it).\n"
    assert (few + more if count > 1 else one) in done.stdout
    out = tmp_path / "runs/stage1"
    assert files.read_manifest(out)["steps"] == count
    ended = load_file(out / "projector.safetensors")
    for name, value in fresh_projector(out).items():
        assert not torch.equal(ended[name.removeprefix("model.")], value), name
    # Of fewer than 34 steps none is lost to warm-up: a cosine from the full rate, above 0 to its last step.
    rates = [row["learning_rate"] for row in log_of(out)]
    cosine = [0.01 * 0.5 * (1 + math.cos(math.pi * step / count)) for step in range(count)]
    assert rates == pytest.approx(cosine)
    assert min(rates) > 0


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(20, 1, 20), pytest.param(100, 2, 50, marks=pytest.mark.full)]
)
def test_own_pictures_go_through_both_stages(count, batch, steps, pictures, tmp_path):
    done = run(*stage1(pictures, count, "--dry-run"), cwd=tmp_path)
    shown = settings_shown(done.stdout)
    assert (shown["global batch"], shown["optimizer steps"]) == (str(batch), str(steps))
    assert f"{count} rows are 1 optimizer step at a global batch of 256: it is {batch} here" in done.stdout
    assert not (tmp_path / "runs").exists()
    # A step sees one row or two, once, and rows differ by ten times what a step changes (0.3 against 0.01 to
    # 0.03 in 20 steps of stage 2): whether anything was learned shows on the same rows, before and after.
    often = ("--val-steps", steps // 10, "--val-samples", 0)
    same = ("--val-data", rows_file(pictures, count, 2, "again"), *often)
    same_captions = ("--val-data", rows_file(pictures, count, 1, "again"), *often)
    run(*stage1(pictures, count, "--learning-rate", 0.01, *same_captions), cwd=tmp_path)
    run(*stage2(pictures, count, *same), cwd=tmp_path)
    for stage in ("stage1", "stage2"):
        log = log_of(tmp_path / "runs" / stage)
        assert [row["step"] for row in log if "lm" in row] == list(range(1, steps + 1))
        losses = [row["val_lm"] for row in log if "val_lm" in row]
        assert len(losses) == 11
        assert all(after < before for before, after in zip(losses[:2], losses[-2:], strict=True)), stage
        assert losses[-1] < losses[0] - 0.005, stage
        assert files.read_manifest(tmp_path / "runs" / stage)["training"]["global_batch"] == batch
    adapter = load_file(tmp_path / "runs/stage2/adapter_model.safetensors")
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)


def test_warm_up_is_what_it_was_where_it_is_a_step(pictures, tmp_path):
    run(*stage1(pictures, 4, "--max-steps", 40), cwd=tmp_path)
    rates = [row["learning_rate"] for row in log_of(tmp_path / "runs/stage1")]
    rising = [0.0, 0.5e-3]  # 3 % of 40, rounded up, as LLaVA-1.5's
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 38)) for step in range(38)]
    assert rates == pytest.approx(rising + cosine)


@pytest.mark.parametrize(
    ("count", "given", "batch", "steps", "said"),
    [
        (100, ["--global-batch", 256], 256, 1, "Warning: 100 rows are 1 optimizer step at a global batch"),
        (100, ["--global-batch", 50], 50, 2, "a smaller --global-batch or more --epochs give more."),
        (100, ["--global-batch", 2], 2, 50, ""),
        (100, ["--micro-batch", 4], 4, 25, "it is 4 here, for 25 optimizer steps, and more --epochs give"),
        (100, ["--max-steps", 7], 256, 7, ""),
        (100, ["--epochs", 4], 8, 52, "it is 8 here, for 52 optimizer steps (--global-batch 256 keeps it)."),
        (100, ["--epochs", 60], 256, 60, ""),
        (20, ["--epochs", 60], 256, 60, ""),
    ],
)
def test_what_is_given_is_kept(count, given, batch, steps, said, pictures, tmp_path):
    done = run(*stage1(pictures, count, *given, "--dry-run"), cwd=tmp_path)
    shown = settings_shown(done.stdout)
    assert (shown["global batch"], shown["optimizer steps"]) == (str(batch), str(steps))
    assert said in done.stdout
    assert ("optimizer steps at" in done.stdout or "optimizer step at" in done.stdout) == bool(said)


def test_processes_share_the_smaller_batch(pictures, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")
    shown = settings_shown(run(*stage1(pictures, 20, "--dry-run"), cwd=tmp_path).stdout)
    assert (shown["global batch"], shown["micro batch"]) == ("4", "1")


def test_a_resumed_run_has_the_same_batch_and_ends_with_the_same_bytes(pictures, tmp_path):
    command = stage1(pictures, 20, "--save-steps", 10, "--keep", 5)
    run(*command, "--out", "whole", cwd=tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copytree(tmp_path / "whole/checkpoint-10", broken / "checkpoint-10")
    lines = (tmp_path / "whole/log.jsonl").read_text().splitlines(keepends=True)
    (broken / "log.jsonl").write_text("".join(lines[:10]))
    run(*command, "--out", "broken", "--resume", cwd=tmp_path)
    whole, again = (files.file_hash(tmp_path / f"{n}/projector.safetensors") for n in ("whole", "broken"))
    assert whole == again
    # A checkpoint of the last step alone: nothing is left to do, and all that moved has moved before.
    for name in ("manifest.json", "projector.safetensors"):
        (broken / name).unlink()
    run(*command, "--out", "broken", "--resume", cwd=tmp_path)
    assert files.file_hash(broken / "projector.safetensors") == whole


def test_a_run_in_which_nothing_moves_fails_and_says_why(pictures, tmp_path):
    failed = run(*stage1(pictures, 3, "--learning-rate", 1e-30), cwd=tmp_path, expect=1)
    assert failed.stderr == (
        "error: no weight moved in 3 steps, so runs/stage1 is not finished: each update is too small for the "
        "weights' precision at --learning-rate 1e-30\n"
    )
    assert "The projector is in" not in failed.stdout
    assert not files.is_finished(tmp_path / "runs/stage1")
    refused = run(*stage2(pictures, 3), cwd=tmp_path, expect=2)
    assert "holds no run" in refused.stderr


def test_a_gradient_of_zeros_is_named_as_such(pictures, tmp_path, monkeypatch):
    from basic_lite.training.trainer import BasicTrainer

    whole = BasicTrainer.compute_loss
    monkeypatch.setattr(BasicTrainer, "compute_loss", lambda *a, **k: whole(*a, **k) * 0.0)
    failed = run(*stage1(pictures, 3, "--no-basic"), cwd=tmp_path, expect=1)
    assert "no weight moved in 3 steps" in failed.stderr
    assert "every gradient was zero" in failed.stderr


def test_one_value_of_one_adapter_is_enough():
    linear = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(2000, 2, bias=False)})
    begun = trainable.Beginning(linear)
    assert sum(value.numel() for value in begun.values.values()) == 9 + 3 + 1024
    assert not begun.has_moved(linear)
    with torch.no_grad():
        linear["b"].weight[0, 7] += 1e-6
    assert begun.has_moved(linear)
