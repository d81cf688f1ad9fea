"""Stage 2 from a LLaVA of transformers, or from a finished stage 2: it begins where that one ended."""

from __future__ import annotations

import json
import shutil

import pytest
from command import run, stage2

from basic_lite.models import quantised

ADAPTERS = ("--lora", "--rank", 4, "--dropout", 0, "--bits", 16)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def second(trained_run, tmp_path_factory):
    """A finished stage 2 with adapters, its stage 1 and the latter's export."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(trained_run, folder / "runs/stage1")
    world = trained_run.parents[1]
    run(*stage2(world, *ADAPTERS, "--max-steps", 2, "--learning-rate", 1e-2), cwd=folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))


def test_an_exported_folder_begins_as_the_run_it_came_from(second, world, tmp_path):
    run("export", second / "runs/stage1", "whole", "--dtype", "fp32", cwd=tmp_path)
    more = (*ADAPTERS, "--max-steps", 2)
    said = run(*stage2(world, *more, "--start", second / "runs/stage1", "--out", "run"), cwd=tmp_path).stdout
    assert "written apart" not in said
    said = run(*stage2(world, *more, "--start", "whole", "--out", "model"), cwd=tmp_path).stdout
    assert "the parts of 'whole' are written apart once" in " ".join(said.split())
    for ours, theirs in zip(log_of(tmp_path / "model"), log_of(tmp_path / "run"), strict=True):
        for key in ("loss", "lm", "das", "sds", "grad_norm"):
            assert (ours[key] or 0.0) == pytest.approx(theirs[key] or 0.0, rel=1e-5), key  # None: no picture
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    assert manifest["from"]["model"] == "whole"
    assert manifest["finished"]
    # What was trained is a run like any other.
    run("export", "model", "again", cwd=tmp_path)
    assert json.loads((tmp_path / "again/export.json").read_text())["parity"]["gap"] < 1e-4
    said = run(*stage2(world, *more, "--start", "again", "--out", "third"), cwd=tmp_path).stdout
    assert "written apart" in said


def test_adapters_go_on_from_where_they_were(second, world, tmp_path):
    """The first step's loss on the same rows is that of the trained adapters, not that of fresh ones."""
    shutil.copytree(second / "runs", tmp_path / "runs")
    base = ("--max-steps", 1, *ADAPTERS, "--seed", 5)
    run(*stage2(world, *base, "--start", "runs/stage2", "--out", "on"), cwd=tmp_path)
    run(*stage2(world, *base, "--start", "runs/stage1", "--out", "anew"), cwd=tmp_path)
    run("export", "runs/stage2", "merged", "--dtype", "fp32", cwd=tmp_path)
    run(*stage2(world, *base, "--start", "merged", "--out", "merged-on"), cwd=tmp_path)
    on, anew, merged = (log_of(tmp_path / name)[0]["lm"] for name in ("on", "anew", "merged-on"))
    assert on == pytest.approx(merged, rel=1e-4)  # the same function: adapters apart, or added to the weights
    assert abs(on - anew) > 1e-3
    origin = json.loads((tmp_path / "on/manifest.json").read_text())["from"]
    assert origin["stage2"] == "runs/stage2"


def test_a_whole_decoder_goes_on(stage1_run, world, tmp_path):
    whole = ("--bits", 16, "--max-steps", 1, "--learning-rate", 1e-2)
    run(*stage2(world, *whole), cwd=tmp_path)
    run("export", "runs/stage2", "merged", "--dtype", "fp32", cwd=tmp_path)
    for name, start in (("on", "runs/stage2"), ("model", "merged")):
        run(*stage2(world, *whole, "--start", start, "--out", name), cwd=tmp_path)
    on, model = (log_of(tmp_path / name)[0]["lm"] for name in ("on", "model"))
    assert on == pytest.approx(model, rel=1e-5)
    said = run(*stage2(world, *ADAPTERS, "--start", "runs/stage2", "--out", "no"), cwd=tmp_path, expect=2)
    assert "trained the whole decoder, which does not go on with adapters (--lora)" in said.stderr


def test_what_cannot_be_started_from_is_said_in_one_line(second, world, tmp_path):
    shutil.copytree(second / "runs", tmp_path / "runs")
    manifest = tmp_path / "runs/stage1/manifest.json"
    (tmp_path / "runs/half").mkdir()
    half = json.loads(manifest.read_text()) | {"finished": False}
    (tmp_path / "runs/half/manifest.json").write_text(json.dumps(half))
    (tmp_path / "text").mkdir()
    (tmp_path / "text/config.json").write_text('{"model_type": "qwen3"}')
    for more, said in (
        (("--start", "runs/half"), "runs/half is not finished"),
        (("--start", "text"), "text is qwen3, neither a finished run nor a LLaVA"),
        (("--start", "nowhere"), "nowhere holds no run"),
        (("--start", "nobody/nothing"), "no model can be loaded from 'nobody/nothing'"),
        (
            ("--start", "runs/stage2", "--rank", 8),
            "have --rank 4 and go on as they are; for --rank 8 put them",
        ),
    ):
        done = run(*stage2(world, *ADAPTERS, "--max-steps", 1, *more, "--out", "no"), cwd=tmp_path, expect=2)
        assert said in done.stderr
        assert "\n" not in done.stderr.strip()
    assert not (tmp_path / "no").exists()
