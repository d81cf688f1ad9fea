"""A decoder whose layers are cut over two processes: the update, the files and the counts of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from command import run, stage1, stage2
from peft import PeftModel
from processes import finish, launch, start
from safetensors.torch import load_file
from tiny import tiny_assembled
from training.sharded import CASES, train

from basic_lite.files import file_hash

pytestmark = pytest.mark.slow

ADAPTER = "adapter_model.safetensors"

DEFAULT = ("llama", "mistral", "four-bits")
"""Plain, with a step that is not finite, and quantised with everything recomputed."""
NAMES = [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.full) for name in CASES]


@pytest.fixture(scope="module")
def trained(request) -> list[str]:
    """The cases of the tests that run."""
    names = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    return [name for name in CASES if name in names | set(DEFAULT)]


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory) -> Path:
    """The cases in one process and in two."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in trained:
        train(CASES[name], folder / "one" / name)
    command = [sys.executable, Path(__file__).with_name("sharded.py"), folder, *trained]
    finish(start(command, folder))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    adapter, tower = folder / ADAPTER, folder / "tower.safetensors"
    learnt = load_file(adapter if adapter.is_file() else folder / "projector.safetensors")
    return learnt | (load_file(tower) if tower.is_file() else {})


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_make_the_update_of_one(runs, name):
    one, two = (weights(runs / which / name) for which in ("one", "two"))
    assert one.keys() == two.keys()
    assert any("encoder" in key for key in one) == (name in ("tower", "tower-adapters"))
    early = weights(runs / "one" / name / "checkpoint-2")
    assert any((one[key] - early[key]).abs().max() > 1e-4 for key in one), "nothing was learned"
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_counts_all_processes_once(runs, name):
    """Losses over the step's own tokens and images, and the norm of all gradients, cut and whole."""
    logs = [log_of(runs / which / name) for which in ("one", "two")]
    assert [row["step"] for row in logs[0]] == list(range(CASES[name].every, 5, CASES[name].every))
    assert_alike(*logs)
    pictures = [row["das"] is not None for row in logs[1]]
    # The third step holds text alone; in the second one process has no picture.
    assert pictures == ([True] if name == "llama" else [True, name != "mistral", False, True])


def assert_alike(*logs: list[dict]) -> None:
    for ours, theirs in zip(*logs, strict=True):
        assert ours["step"] == theirs["step"]
        for key in ("loss", "lm", "das", "sds", "cosine", "grad_norm"):
            assert (theirs[key] is None) == (ours[key] is None), key
            if ours[key] is not None:
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4), key


def test_there_is_one_set_of_files(runs):
    one, two = ({p.relative_to(runs / n) for p in (runs / n / "llama").rglob("*")} for n in ("one", "two"))
    new = {path.name for path in two - one}
    assert new == {"rng_state_0.pth", "rng_state_1.pth"}
    assert {path.name for path in one - two} == {"rng_state.pth"}


def test_each_process_holds_half_of_the_layers(runs, trained):
    """Weights, adapters and moments; and nobody keeps what was cut."""
    for rank in (0, 1):
        held = json.loads((runs / f"held-{rank}.json").read_text())
        for name in trained:
            assert held[name]["after"] == held[name]["before"] / 2, name
            assert held[name]["alive"] == 0, name
    whole = sum(t.numel() for name, t in weights(runs / "two/llama").items() if "lora_" in name)
    projector = sum(t.numel() for name, t in weights(runs / "two/llama").items() if "lora_" not in name)
    assert sum(held["llama"]["moments"]) == whole / 2 + projector


def test_a_run_goes_on_with_as_many_processes_as_there_are(runs, tmp_path):
    """Two after two end with the same bytes; two after one, and one after two, with the same numbers."""
    assert file_hash(runs / "again" / ADAPTER) == file_hash(runs / "two/llama" / ADAPTER)
    train(CASES["llama"], tmp_path, runs / "two/llama/checkpoint-2")
    for folder in (runs / "from-one", tmp_path):
        for key, value in weights(runs / "one/llama").items():
            torch.testing.assert_close(weights(folder)[key], value, rtol=0, atol=1e-6)
        assert_alike(log_of(runs / "one/llama"), log_of(folder))  # a mean over steps before and after


def test_the_adapters_are_a_plain_peft_folder(runs):
    loaded = PeftModel.from_pretrained(tiny_assembled().model, runs / "two/llama")
    found = dict(loaded.named_parameters())
    for key, value in weights(runs / "two/llama").items():
        name = key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
        name = name.replace("multi_modal_projector.", "multi_modal_projector.modules_to_save.default.")
        assert torch.equal(found[name], value), key


def test_a_step_that_is_not_finite_in_one_process_is_taken_by_none(runs):
    lines = (runs / "two/mistral/nonfinite.jsonl").read_text().splitlines()
    assert sorted((json.loads(line)["step"], json.loads(line).get("rank", 0)) for line in lines) == [
        (2, 0),
        (2, 1),
    ]


def test_the_command_hears_the_launcher_and_refuses_what_cannot_be_cut(world, tmp_path, monkeypatch):
    run(*stage1(world, "--bits", 16, "--max-steps", 2, "--out", "start"), cwd=tmp_path)
    more = ("--lora", "--rank", 4, "--dropout", 0, "--start", "start", "--max-steps", 5, "--save-steps", 3)
    more += ("--val-share", "25%", "--val-steps", 4)
    run(*stage2(world, *more, "--out", "one"), cwd=tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    first, second = finish(launch(stage2(world, *more, "--micro-batch", 1, "--out", "two"), tmp_path))
    assert "shards" in first
    assert first.count("stage 2 5/5") == 1
    assert "stage 2" not in second
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert any("lora_B" in name and tensor.abs().max() > 1e-4 for name, tensor in one.items())
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-6)
    lines = [[row for row in log_of(tmp_path / n) if "val_lm" in row] for n in ("one", "two")]
    for ours, theirs in zip(*lines, strict=True):
        for key in ("step", "val_lm", "val_das", "val_sds", "val_cosine", "val_rows"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-5), key
        assert theirs["samples"] == ours["samples"]
    names = [{path.name for path in (tmp_path / n).iterdir()} - {"other.log"} for n in ("one", "two")]
    assert names[0] == names[1]
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    for key in ("trainable", "steps", "finished", "rows"):
        assert manifests[0][key] == manifests[1][key], key
    monkeypatch.setenv("WORLD_SIZE", "2")
    for wrong, reason in (
        (("--bits", 8), "take --bits 4 or"),
        (("--optimizer", "paged-adamw-8bit"), "leave it"),
    ):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # it is taken out when it is heard
        refused = run(*stage2(world, *more, *wrong, "--out", "three"), cwd=tmp_path, expect=2)
        assert reason in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "three").exists()
