"""A run goes on with other micro-batches: the same rows in every step, the same losses, and it says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from command import run, stage1, stage2

from basic_lite.data.batches import Batches
from basic_lite.files import EMBEDDING_SPACE, FORMAT
from basic_lite.training.checks import Passes, changes_line, check_resumable
from basic_lite.training.settings import Method, Settings


def steps_of(batches: Batches, accumulation: int) -> list[list[int]]:
    """Return the rows of each optimizer step, as the Trainer cuts them."""
    passes = list(batches)
    assert len(passes) == len(batches)
    steps = [passes[i : i + accumulation] for i in range(0, len(passes), accumulation)]
    return [sorted(row for part in step for row in part) for step in steps]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("rows", [16, 37, 100])
def test_larger_batches_hold_the_same_steps(rows, group):
    rng = np.random.default_rng(rows)
    lengths, modality = rng.integers(5, 90, rows), rng.random(rows) < 0.6
    more = {"seed": 3, "group": group}
    began = steps_of(Batches(lengths, modality, batch_size=2, accumulation=6, **more), 6)
    for size in (4, 6, 12):
        joined = Batches(lengths, modality, batch_size=size, order_rows=2, accumulation=12 // size, **more)
        assert steps_of(joined, 12 // size) == began
        for batch in joined:
            assert list(lengths[batch]) == sorted(lengths[batch], reverse=True)


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").open()]


def stopped(whole, out):
    """Make the folder of a run that was killed after its second step."""
    out.mkdir()
    shutil.copytree(whole / "checkpoint-2", out / "checkpoint-2")
    text = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(text[:2]))


@pytest.mark.parametrize("micro", [1, 4])
def test_stage_one_ends_with_the_same_losses(world, tmp_path, micro):
    rows = json.loads((world / "captions.json").read_text())
    rows[9]["conversations"][1]["value"] += (
        " indeed" * 9
    )  # its batch comes first: a small one moves fewer rows
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    common = ("--bits", 16, "--max-steps", 5, "--save-steps", 2, "--keep", 9, "--precision", "fp32")
    common += ("--data", "captions.json", "--images", world)
    run(*stage1(world, *common, "--micro-batch", 2, "--out", "whole"), cwd=tmp_path)
    stopped(tmp_path / "whole", tmp_path / "other")
    more = ("--micro-batch", micro, "--workers", 1 if micro == 1 else 0, "--out", "other", "--resume")
    said = run(*stage1(world, *common, *more), cwd=tmp_path).stdout
    assert f"micro-batch {micro} (2 before)" in said
    assert "the same rows and the same loss in every step, up to rounding" in said
    ours, theirs = log_of(tmp_path / "other"), log_of(tmp_path / "whole")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [1, 2, 3, 4, 5]
    for mine, other in zip(ours, theirs, strict=True):
        # A step's passes are added up in another order, and two more steps carry that on: within four fp32
        # roundings, whatever the size of a loss (one is 1e-6 of the 11 that they begin with).
        for key in ("loss", "lm", "das", "sds"):
            assert mine[key] == pytest.approx(other[key], rel=2**-21, abs=0), key
        assert mine.get("micro_batch") == (micro if mine["step"] > 2 else None)
    manifest = json.loads((tmp_path / "other/manifest.json").read_text())
    assert manifest["passes"]["order_rows"] == 2
    assert manifest["resumed"][0]["step"] == 2
    assert manifest["resumed"][0]["micro_batch"] == [2, micro]


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 4])
def test_adapters_without_dropout_end_with_the_same_losses(world, tmp_path, micro):
    """Rows with and without pictures, grouped; 18 rows, so that no epoch ends with a whole step."""
    run(*stage1(world, "--bits", 16, "--max-steps", 1), cwd=tmp_path)
    common = ("--lora", "--rank", 4, "--max-steps", 9, "--save-steps", 2, "--keep", 9, "--dropout", 0)
    run(*stage2(world, *common, "--out", "whole"), cwd=tmp_path)
    stopped(tmp_path / "whole", tmp_path / "other")
    done = run(*stage2(world, *common, "--out", "other", "--micro-batch", micro, "--resume"), cwd=tmp_path)
    assert "masks" not in done.stdout
    for mine, other in zip(log_of(tmp_path / "other"), log_of(tmp_path / "whole"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)


def settings(**more: object) -> Settings:
    given = {"stage": 1, "out": Path("o"), "learning_rate": 1.0, "global_batch": 12, "micro_batch": 4}
    return Settings(**given | more)


def test_an_order_outlives_several_changes(monkeypatch):
    began = Passes.of(settings())
    assert (began.order_rows, began.loaded) == (4, 4)
    second = Passes.of(settings(micro_batch=2), {"training": {"micro_batch": 4}})  # of an older version
    assert (second.order_rows, second.loaded) == (4, 4)
    then = {"training": {"micro_batch": 2}, "passes": asdict(second)}
    third = Passes.of(settings(micro_batch=6), then)
    assert (third.order_rows, third.loaded) == (4, 12)
    with pytest.raises(ValueError, match=r"depends on which rows share a pass: resume with --micro-batch 2"):
        Passes.of(settings(micro_batch=1, method=Method(intervention="noise=0.1")), then)
    with pytest.raises(
        ValueError, match=r"--target individual depends on which rows share a pass: resume with"
    ):
        Passes.of(settings(micro_batch=6, method=Method(target="individual")), then)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Passes.of(settings(micro_batch=2), then).loaded == 4  # two processes make the passes of one
    with pytest.raises(ValueError, match="a run goes on with 4 rows per pass or more, a multiple; got 2 x 1"):
        Passes.of(settings(micro_batch=1), then)


def test_what_is_not_the_same_is_said():
    assert changes_line({"workers": [2, 0]}, 0.05, 4) == (
        "going on with workers 0 (2 before): the same rows and the same loss in every step"
    )
    assert changes_line({"micro_batch": [4, 2]}, 0.05, 4).endswith(
        "up to rounding; adapters' dropout of 0.05 draws other masks"
    )
    assert "8-bit layers round" in changes_line({"micro_batch": [4, 2]}, 0.0, 8)


def test_a_run_of_another_order_of_rows_is_refused_in_one_line(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    older = {"format": FORMAT, "method": {"embedding_space": EMBEDDING_SPACE}, "data": {"rows": 3}}
    (checkpoint / "manifest.json").write_text(json.dumps(older | {"versions": {"basic-lite": "0.0.9"}}))
    with pytest.raises(ValueError, match=r"in another order \(0\.0\.9\): finish it .* --overwrite$"):
        check_resumable(None, None, checkpoint)
