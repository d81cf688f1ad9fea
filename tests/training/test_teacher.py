"""What a run knows of its teacher: a fitted target lies in its folder, is resumed, and inherited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command import run
from PIL import Image
from rich.console import Console
from tiny import llm_folder, tiny_assembled, tower_folder

from basic_lite.data.readers import open_rows
from basic_lite.files import file_hash
from basic_lite.method.targets import TargetSpace
from basic_lite.training import teacher
from basic_lite.training.settings import Method, Settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (30, 40), "teal").save(folder / "a.png")
    rows = []
    for number in range(24):
        said = f"{('red', 'teal', 'brown')[number % 3]} thing number {number} stands here"
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": said}]
        rows.append({"id": f"r{number}", "image": "a.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(rows))
    return folder


def stage1(data: Path, out: Path, *more: object, expect: int = 0) -> object:
    models = ["--llm", llm_folder(), "--tower", tower_folder(), "--precision", "fp32", "--bits", 16]
    batch = ["--global-batch", 4, "--micro-batch", 2, "--workers", 0, "--logging-steps", 1]
    paths = ["--out", out, *([] if "--data" in more else ["--data", data / "captions.json"])]
    return run("stage1", *models, *batch, *paths, *more, cwd=data, expect=expect)


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def test_a_fitted_target_is_kept_with_the_run_and_resumed_to_the_same_bytes(data, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ("--target", "translated", "--max-steps", 4, "--save-steps", 2, "--layers", 3)
    said = stage1(data, whole, *more).stdout
    assert "fitting layers 1 to 3 on" in said
    found = manifest(whole)
    assert found["method"]["target"] == "translated"
    assert found["target"]["kind"] == "translated"
    assert [set(layer) for layer in found["target"]["layers"]] == [
        {"own", "cosine", "own_unseen", "cosine_unseen"}
    ] * 3
    assert TargetSpace.load(whole / "target.safetensors").report["tokens"] == found["target"]["tokens"]
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint-4")
    (cut / "projector.safetensors").unlink()
    (cut / "manifest.json").unlink()

    monkeypatch.setattr("basic_lite.training.teacher.fit_target", refuse)
    stage1(data, cut, *more, "--resume")
    assert file_hash(cut / "projector.safetensors") == file_hash(whole / "projector.safetensors")
    assert manifest(cut)["target"] == found["target"]

    shutil.rmtree(cut / "checkpoint-4")
    (cut / "manifest.json").unlink()
    other = stage1(data, cut, *more[2:], "--resume", expect=2)
    assert "'target': 'translated'" in other.stderr
    (cut / "target.safetensors").write_bytes(b"another")
    assert (
        "not the one that this run was started with" in stage1(data, cut, *more, "--resume", expect=2).stderr
    )


def test_the_target_is_another_and_the_default_is_raw(data, tmp_path):
    ends = {}
    for kind in ("raw", "centred", "translated"):
        out = tmp_path / kind
        stage1(data, out, "--max-steps", 2, *(() if kind == "raw" else ("--target", kind)))
        ends[kind] = file_hash(out / "projector.safetensors")
        assert manifest(out)["method"]["target"] == kind
        assert (out / "target.safetensors").exists() == (kind != "raw")
    assert len(set(ends.values())) == 3
    stage1(data, tmp_path / "centred", "--max-steps", 1, "--overwrite")
    assert not (tmp_path / "centred" / "target.safetensors").exists()


def test_stage_2_takes_stage_1s_kind_and_fit(data, tmp_path):
    first = tmp_path / "first"
    stage1(data, first, "--max-steps", 1, "--target", "translated")
    more = ["--start", first, "--data", data / "captions.json", "--global-batch", 4, "--micro-batch", 2]
    more += ["--workers", 0, "--max-steps", 1, "--lora", "--rank", 2]
    run("stage2", *more, "--out", tmp_path / "asked", "--target", "centred", cwd=data)
    assert manifest(tmp_path / "asked")["target"]["kind"] == "centred"
    deeper = run("stage2", *more, "--out", tmp_path / "deeper", "--layers", 3, cwd=data)
    assert "fitting layers 1 to 3" in deeper.stdout
    said = run("stage2", *more, "--out", tmp_path / "second", cwd=data).stdout
    assert "fitting" not in said
    assert manifest(tmp_path / "second")["method"]["target"] == "translated"
    files = [file_hash(folder / "target.safetensors") for folder in (first, tmp_path / "second")]
    assert files[0] == files[1]


def refuse(*arguments: object, **named: object) -> None:
    raise AssertionError("nothing is to be fitted or looked at here")


def test_a_plain_twin_neither_fits_nor_looks(data, tmp_path, monkeypatch):
    monkeypatch.setattr("basic_lite.method.premise.glance", refuse)
    monkeypatch.setattr("basic_lite.training.teacher.fit_target", refuse)
    stage1(data, tmp_path / "plain", "--max-steps", 1, "--no-basic")
    found = manifest(tmp_path / "plain")
    assert found["target"] == {"kind": "raw"}
    assert "premise" not in found


def test_stage_1_looks_at_its_teacher_once(data, tmp_path, monkeypatch):
    out, more = tmp_path / "run", ("--max-steps", 2, "--save-steps", 1)
    assert "Warning: Nothing to learn from" in stage1(data, out, *more).stdout  # random weights
    found = manifest(out)["premise"]
    assert found["verdict"]["case"] == "untrained"
    assert set(found["targets"]) == {"raw"}
    shutil.rmtree(out / "checkpoint-2")
    (out / "manifest.json").unlink()
    monkeypatch.setattr("basic_lite.method.premise.glance", refuse)
    stage1(data, out, *more, "--resume")
    assert manifest(out)["premise"] == found


def test_a_handful_of_rows_is_no_reason_to_stop(data, tmp_path):
    rows = json.loads((data / "captions.json").read_text())[:4]
    for row in rows:
        row["conversations"][1]["value"] = "a box"
    (data / "few.json").write_text(json.dumps(rows))
    said = stage1(data, tmp_path / "few", "--max-steps", 1, "--data", data / "few.json").stdout
    assert "was not checked" in said
    assert manifest(tmp_path / "few")["premise"] is None


def test_an_unknown_target_is_refused_in_one_line(data, tmp_path):
    refused = stage1(data, tmp_path / "x", "--target", "tilted", expect=2)
    assert "target must be one of raw, centred, translated, individual, got 'tilted'" in refused.stderr


def test_the_first_process_writes_and_the_others_read(data, tmp_path, monkeypatch):
    given = {"stage": 1, "out": tmp_path, "learning_rate": 1e-3, "global_batch": 4, "micro_batch": 2}
    settings = Settings(**given, method=Method(target="centred"))
    assembled, rows = tiny_assembled(), open_rows(data / "captions.json", data)
    console = Console(quiet=True)
    monkeypatch.setattr("basic_lite.training.teacher.rank_and_count", lambda: (1, 2))
    alone = teacher.target_space(assembled, settings, rows, console)  # the first's disk is out of reach
    assert not (tmp_path / teacher.FILE).exists()
    monkeypatch.setattr("basic_lite.training.teacher.rank_and_count", lambda: (0, 2))
    first = teacher.target_space(assembled, settings, rows, console)
    monkeypatch.setattr("basic_lite.training.teacher.fit_target", refuse)
    monkeypatch.setattr("basic_lite.training.teacher.rank_and_count", lambda: (1, 2))
    second = teacher.target_space(assembled, settings, rows, console)
    assert torch.equal(first.centre, second.centre)
    assert torch.equal(first.centre, alone.centre)
