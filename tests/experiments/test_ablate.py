"""`basic-lite ablate` as a user types it, in a very small world."""

from __future__ import annotations

import json

import pytest
from command import run
from embedded import needs_parts, small_world  # noqa: F401 (a fixture)
from tiny import llm_folder, tower_folder

pytestmark = [needs_parts, pytest.mark.usefixtures("small_world")]


@pytest.fixture
def files(world):
    return world


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "plans are layers, losses"),
        (["losses", "--seeds", "0"], "--seeds must be at least 1"),
        (["losses", "--jobs", "0"], "--jobs must be at least 1"),
        (["losses", "--arms", "both;x"], "no arm 'x'"),
        (["losses", "--foo", "3"], "stage1: No such option"),
        (["losses", "--das-weight", "2"], "sets --das-weight itself"),
        (["weights", "--layers", "9"], "layers must be between 1 and 8"),
        (["losses", "--model", "nothing"], "no model is named 'nothing'"),
        (["losses", "--data", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_a_user_can_have_wrong_is_said_before_any_work(words, said, tmp_path):
    assert said in run("ablate", *words, cwd=tmp_path, expect=2).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_plan_from_end_to_end(tmp_path):
    words = ["ablate", "losses", "--arms", "both", "--out", "a", "--max-steps", "2", "--jobs", "1"]
    said = run(*words, "--dry-run", cwd=tmp_path).stdout
    assert "to do: basic=False, seed 0" in said
    assert not list(tmp_path.iterdir())
    said = run(*words, cwd=tmp_path).stdout
    assert "2 of 2 runs are done" in said
    content = json.loads((tmp_path / "a/losses.json").read_text())
    assert list(content["arms"]) == ["none", "both"]
    assert set(content["arms"]["both"]) == {"caption_loss", "cosine", "meaningful"}
    for arm, active in (("basic=False", False), ("default", True)):
        folder = tmp_path / "a/runs" / arm / "seed-0"
        manifest = json.loads((folder / "stage1/manifest.json").read_text())
        assert (manifest["steps"], manifest["method"]["basic"]) == (2, active)
        cosine = content["arms"]["both" if active else "none"]["cosine"]["mean"]
        inspected = json.loads((folder / "stage1/inspection.json").read_text())["cosine"]
        assert cosine == pytest.approx(sum(inspected) / len(inspected))
    assert "<svg" in (tmp_path / "a/losses.html").read_text()
    assert "| both |" in (tmp_path / "a/losses.md").read_text()

    written = (tmp_path / "a/runs/default/seed-0/stage1/manifest.json").stat().st_mtime_ns
    said = run(*words, cwd=tmp_path).stdout
    assert "2 of 2 runs are done already" in said
    assert (tmp_path / "a/runs/default/seed-0/stage1/manifest.json").stat().st_mtime_ns == written
    words[words.index("2")] = "3"
    assert "made with another stage1" in run(*words, cwd=tmp_path, expect=2).stderr


@pytest.mark.slow
def test_own_model_data_and_benchmark(files, tmp_path):
    """Losses and cosine on rows of the file, and a score; one arm, as each takes seconds."""
    models = ["--llm", llm_folder(), "--tower", tower_folder(), "--precision", "fp32", "--bits", "16"]
    batch = ["--global-batch", "4", "--micro-batch", "2", "--workers", "0", "--max-steps", "1"]
    words = ["ablate", "weights", "--arms", "quadratic", *models, "--data", files / "captions.json", *batch]
    words += ["--measure-rows", "5", "--eval", "mmbench", "--eval-data", files / "bench.tsv", "--jobs", "1"]
    run(*words, cwd=tmp_path)
    content = json.loads((tmp_path / "runs/ablation/weights.json").read_text())
    assert {m["name"]: m["over"] for m in content["measures"]} == {
        **dict.fromkeys(("caption_loss", "cosine", "das", "sds"), "rows of the training file"),
        "mmbench": "questions",
    }
    assert 0 <= content["arms"]["quadratic"]["mmbench"]["mean"] <= 100
    assert content["setup"]["stage1"]["max_steps"] == 1


@pytest.mark.slow
def test_stage_2_and_questions(tmp_path):
    words = ["ablate", "lambda", "--arms", "as it is", "--max-steps", "1", "--stage", "2", "--jobs", "1"]
    run(*words, "--weighting", "linear", "--stage2", "--lora --max-steps 1", "--out", "a", cwd=tmp_path)
    content = json.loads((tmp_path / "a/lambda.json").read_text())
    figures = [f"{name}_stage{n}" for n in (1, 2) for name in ("caption_loss", "cosine", "meaningful")]
    assert [m["name"] for m in content["measures"]] == [*figures, "answers_en", "answers_zh"]
    manifest = json.loads((tmp_path / "a/runs/default/seed-0/stage2/manifest.json").read_text())
    assert manifest["method"]["weighting"] == "linear"
    assert manifest["steps"] == 1
