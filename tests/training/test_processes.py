"""Two processes make the update of one, write one set of files, stop together, and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command import run, stage1, stage2
from kills import lines
from processes import finish, launch
from safetensors.torch import load_file

from basic_lite.files import checkpoints, file_hash

SPEEDS = ("samples_per_second", "peak_mib", "rows_per_chunk", "val_seconds")


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(world, tmp_path):
    more = ("--bits", 16, "--max-steps", 3, "--save-steps", 2, "--val-share", "30%", "--val-steps", 2)
    run(*stage1(world, *more, "--micro-batch", 4, "--out", "one"), cwd=tmp_path)
    first, second = finish(launch(stage1(world, *more, "--out", "two"), tmp_path))
    assert "stage 1 3/3" in first
    assert "stage 1" not in second  # one voice
    one, two = (load_file(tmp_path / name / "projector.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    logs = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").open()] for n in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        for key in ours.keys() - {*SPEEDS, "samples", "val_named"}:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4), key
        assert [sample["id"] for sample in ours.get("samples", [])] == [
            sample["id"] for sample in theirs.get("samples", [])
        ]
    assert [row["val_rows"] for row in logs[1] if "val_rows" in row] == [5, 5, 5]  # not a multiple of two
    manifests = [json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("one", "two")]
    assert manifests[0]["trainable"] == manifests[1]["trainable"]
    assert manifests[1]["finished"]
    names = [{p.name for p in (tmp_path / n).iterdir()} - {"other.log"} for n in ("one", "two")]
    assert names[0] == names[1]
    states = {path.name for path in checkpoints(tmp_path / "two")[-1].iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= states


@pytest.mark.slow
def test_accelerate_launch_trains_adapters_in_two_processes(world, tmp_path):
    """The launcher itself, on rows with and without pictures; `--cpu` would start one process alone."""
    run(*stage1(world, "--bits", 16, "--max-steps", 2, "--out", "start"), cwd=tmp_path)
    more = ("--lora", "--rank", 4, "--dropout", 0, "--start", "start", "--max-steps", 5)
    run(*stage2(world, *more, "--micro-batch", 4, "--out", "one"), cwd=tmp_path)
    options = ["--multi_gpu", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", 0, "-m", "basic_lite"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options]
    command += stage2(world, *more, "--micro-batch", 2, "--out", "two")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("stage 2 5/5") == 1
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert any("lora_B" in name and tensor.abs().max() > 1e-4 for name, tensor in one.items())
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    assert (checkpoints(tmp_path / "two")[-1] / "rng_state_1.pth").is_file()


@pytest.mark.parametrize(
    ("stage", "names", "reason"),
    [
        (stage1, ["ACCELERATE_USE_DEEPSPEED"], "asks for DeepSpeed"),
        (stage2, ["ACCELERATE_USE_MEGATRON_LM"], "asks for Megatron-LM"),
        (stage2, ["ACCELERATE_USE_FSDP"], "add --lora, or start with"),
        (stage1, ["ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"], "leave --fsdp_offload_params out"),
    ],
)
def test_other_cuts_are_refused_before_anything_happens(
    world,
    tmp_path,
    monkeypatch,
    stage,
    names,
    reason,
):
    for name in names:
        monkeypatch.setenv(name, "true")
    refused = run(*stage(world), cwd=tmp_path, expect=2)
    assert refused.stderr.startswith("error: accelerate launch asks for ")
    assert refused.stderr.count("\n") == 1
    assert reason in refused.stderr
    assert refused.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on(world, tmp_path):
    """It reaches the second process alone; both leave after the same step, with one checkpoint."""
    more = ("--bits", 16, "--max-steps", 40, "--micro-batch", 1)
    started = launch(stage1(world, *more, "--out", "broken"), tmp_path)
    while lines(tmp_path / "broken") < 3 and all(process.poll() is None for process in started):
        time.sleep(0.02)
    started[1].send_signal(signal.SIGTERM)
    finish(started)
    assert lines(tmp_path / "broken") < 40
    finish(launch(stage1(world, *more, "--out", "broken", "--resume"), tmp_path))
    finish(launch(stage1(world, *more, "--out", "whole"), tmp_path))
    ends = [file_hash(tmp_path / name / "projector.safetensors") for name in ("broken", "whole")]
    assert ends[0] == ends[1]
