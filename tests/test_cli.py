"""The three commands as a user types them: they chain, resume, and refuse in one line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import COMMAND, run, settings_shown, stage1, stage2
from forked import Forked
from typer.testing import CliRunner

from basic_lite.cli import app
from basic_lite.files import file_hash


@pytest.mark.usefixtures("short_answers")
def test_the_three_commands_chain(world, tmp_path):
    """Each finds what the last one left; 4-bit decoder, adapters, and a score at the end."""
    first = run(*stage1(world), cwd=tmp_path)
    assert "multi_modal_projector.linear_1.weight" in first.stdout
    second = run(*stage2(world, "--lora", "--rank", 4), cwd=tmp_path)
    assert "lora" in second.stdout
    assert "PEFT's own loader: basic-lite export runs/stage2 FOLDER --to peft\n" in second.stdout
    run("eval", "mmbench", "--data", world / "bench.tsv", "--limit", 3, cwd=tmp_path)

    manifest = json.loads((tmp_path / "runs/stage1/manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["steps"] == 4
    assert manifest["sources"]["bits"] == 4
    assert manifest["method"]["layers"] == 2
    manifest = json.loads((tmp_path / "runs/stage2/manifest.json").read_text())
    assert (manifest["stage"], manifest["steps"], manifest["finished"]) == (2, 5, True)
    assert manifest["from"]["stage1"] == "runs/stage1"
    rows = [json.loads(line) for line in (tmp_path / "runs/stage2/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    results = json.loads((tmp_path / "runs/stage2/eval/mmbench/results.json").read_text())
    assert results["n"] == 12
    assert results["figures"]["n_questions"] == 3
    assert 0 <= results["value"] <= 100
    lines = (tmp_path / "runs/stage2/eval/mmbench/predictions.jsonl").read_text().splitlines()
    assert len(lines) == 12

    # Stage 2 is a normal PEFT folder.
    from peft import PeftModel
    from tiny import tiny_assembled

    loaded = PeftModel.from_pretrained(tiny_assembled("llama").model, tmp_path / "runs/stage2")
    assert loaded.peft_config["default"].r == 4

    # Again: the answers are there, nothing is asked twice; another run's answers are not mixed in.
    again = run("eval", "mmbench", "--data", world / "bench.tsv", "--limit", 3, cwd=tmp_path)
    assert "12/12" in again.stdout
    refused = run(
        *("eval", "mmbench", "--run", "runs/stage1", "--data", world / "bench.tsv", "--limit", 3),
        *("--out", "runs/stage2/eval/mmbench"),
        cwd=tmp_path,
        expect=2,
    )
    assert "holds answers made with another run" in refused.stderr


def test_the_plain_twin_and_the_whole_decoder(world, tmp_path):
    run(*stage1(world, "--no-basic", "--bits", 16, "--max-steps", 2), cwd=tmp_path)
    log = [json.loads(line) for line in (tmp_path / "runs/stage1/log.jsonl").read_text().splitlines()]
    assert [row["das"] for row in log] == [None, None]
    run(*stage2(world, "--max-steps", 2), cwd=tmp_path)
    manifest = json.loads((tmp_path / "runs/stage2/manifest.json").read_text())
    assert manifest["sources"]["bits"] == 16
    assert "model.language_model.embed_tokens.weight" in manifest["trainable"]
    refused = run("eval", "mmbench", "--tsv", world / "bench.tsv", cwd=tmp_path, expect=2)
    assert "mmbench dev has 12 rows and not 4,329 or 4,377 or 4,876: it is cut off" in refused.stderr
    assert not (tmp_path / "runs/stage2/eval").exists()
    done = run("eval", "mmbench", "--tsv", world / "bench.tsv", "--any-size", cwd=tmp_path)
    assert "Not the published 4,329 or 4,377 or 4,876 rows: this is no mmbench number." in done.stdout
    assert "LLaVA-1.5" not in done.stdout  # nothing to compare with


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory) -> str:
    """The hash of the projector after twelve epochs without a signal."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(*stage1(world, "--epochs", 12, "--out", "whole"), cwd=folder)
    return file_hash(folder / "whole/projector.safetensors")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_resumable_run_that_ends_with_the_same_bytes(
    world, uninterrupted, tmp_path, number
):
    """A process of its own, as a user's; 48 steps of some 30 ms, of which it does about three."""
    arguments = [*COMMAND, *map(str, stage1(world, "--epochs", 12, "--out", "broken"))]
    process = Forked(arguments, tmp_path)
    log = tmp_path / "broken/log.jsonl"
    deadline = time.monotonic() + 300  # a busy machine takes long to start it
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    steps = log.read_text().count("\n")
    assert steps < 48, "the signal came too late for this test to say anything"
    assert "--resume goes on" in output
    run(*stage1(world, "--epochs", 12, "--out", "broken", "--resume"), cwd=tmp_path)
    assert file_hash(tmp_path / "broken/projector.safetensors") == uninterrupted
    rows = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert rows == list(range(1, 49))


@pytest.mark.usefixtures("short_answers")
def test_two_runs_are_compared_by_question(world, stage1_run, tmp_path):
    for name in "ab":
        shutil.copytree(stage1_run, tmp_path / name)
    refused = run("compare", "a", "b", cwd=tmp_path, expect=2)
    assert "have no benchmark in common" in refused.stderr
    base = ("eval", "mmbench", "--data", world / "bench.tsv", "--any-size", "--run")
    run(*base, "a", cwd=tmp_path)
    shutil.copytree(tmp_path / "a/eval", tmp_path / "b/eval")
    for name, word in (("a", "none of them"), ("b", None)):  # b says the right colour's name
        path = tmp_path / name / "eval/mmbench/predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["text"] = word or ["red", "green", "blue"][row["question_id"] % 1_000_000]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run(*base, name, "--step", "score", cwd=tmp_path)
    done = run("compare", "a", "b", cwd=tmp_path)
    for text in ("3 questions", "95 % paired bootstrap interval", "McNemar", "colour (3)", "more than noise"):
        assert text in done.stdout
    page = (tmp_path / "b/compare/mmbench.html").read_text()
    assert page.startswith("<!")
    assert page.count('class="gained"') == 3


@pytest.mark.usefixtures("short_answers")
def test_the_steps_of_an_evaluation_stand_alone(world, stage1_run, tmp_path):
    base = ("eval", "mmbench", "--run", "runs/stage1", "--data", world / "bench.tsv", "--any-size")
    refused = run(*base, "--step", "score", cwd=tmp_path, expect=2)
    assert "predictions.jsonl does not exist; run --step generate first" in refused.stderr
    part = run(*base, "--step", "generate", "--batch-size", 4, "--max-steps", 1, cwd=tmp_path)
    assert "8 questions are left; the same command goes on." in part.stdout
    run(*base, "--step", "generate", cwd=tmp_path)
    assert not (stage1_run / "eval/mmbench/results.json").exists()
    run(*base, "--step", "score", cwd=tmp_path)
    run(*base, "--step", "export", cwd=tmp_path)
    assert (stage1_run / "eval/mmbench/submission.xlsx").is_file()


@pytest.mark.usefixtures("short_answers")
def test_several_benchmarks_end_in_one_table(stage1_run, tmp_path):
    fixtures = Path(__file__).parent / "fixtures/eval"
    folder = tmp_path / "benchmarks"
    for name in ("mmbench", "mmbench-cn"):
        (folder / name).mkdir(parents=True)
        source = fixtures / ("mmbench_dev.tsv" if name == "mmbench" else "mmbench_dev_cn.tsv")
        (folder / name / source.name).write_bytes(source.read_bytes())
    base = ("eval", "mmbench,mmbench-cn", "--run", "runs/stage1", "--data", folder)
    refused = run(*base, cwd=tmp_path, expect=2)  # what stands for the published set must have its size
    assert "has 9 rows and not 4,329 or 4,377" in refused.stderr
    assert "2 of 2 benchmarks were left out" in refused.stderr
    done = run(*base, "--limit", 2, cwd=tmp_path)
    assert "68.8" in done.stdout  # of BASIC-7B, as published
    assert "not comparable with the figures beside it" in done.stdout


def test_a_used_folder_is_not_overwritten_by_accident(world, stage1_run, tmp_path):
    before = file_hash(tmp_path / "runs/stage1/projector.safetensors")
    refused = run(*stage1(world, "--max-steps", 1), cwd=tmp_path, expect=2)
    assert "already holds a run; go on with --resume" in refused.stderr
    refused = run(*stage1(world, "--max-steps", 1, "--resume"), cwd=tmp_path, expect=2)
    assert "is finished; nothing is left to resume" in refused.stderr
    assert file_hash(tmp_path / "runs/stage1/projector.safetensors") == before
    run(*stage1(world, "--max-steps", 1, "--overwrite"), cwd=tmp_path)


def test_a_resumed_run_must_be_the_same_run(world, tmp_path):
    run(*stage1(world, "--max-steps", 4, "--save-steps", 2), cwd=tmp_path)
    for name in ("manifest.json", "projector.safetensors"):
        (tmp_path / "runs/stage1" / name).unlink()  # as if it had been killed after its last checkpoint
    refused = run(*stage1(world, "--max-steps", 4, "--sds-weight", 0.5, "--resume"), cwd=tmp_path, expect=2)
    assert "was started with another method: {'sds_weight': 0.01}, now {'sds_weight': 0.5}" in refused.stderr


def test_dry_run_says_everything_and_loads_nothing(world, tmp_path):
    done = run(*stage1(world, "--dry-run"), cwd=tmp_path)
    for text in ("captions.json", "learning rate", "0.001", "quadratic", "max length"):
        assert text in done.stdout
    assert "(" not in settings_shown(done.stdout)["tower"], "a hub id or folder"
    assert list(tmp_path.iterdir()) == []


def test_a_bad_picture_within_the_budget_is_left_out_and_counted(world, tmp_path):
    rows = json.loads((world / "captions.json").read_text())
    broken = world / "broken.png"
    broken.write_bytes((world / "3.png").read_bytes()[:60])
    rows[3]["image"] = "broken.png"
    (world / "one_bad.json").write_text(json.dumps(rows))
    data = ("--data", world / "one_bad.json", "--images", world)
    refused = run(*stage1(world, *data), cwd=tmp_path, expect=2)
    assert "row 3 (id 'c3'): undecodable_image" in refused.stderr
    done = run(*stage1(world, *data, "--bad-budget", 0.1), cwd=tmp_path)
    assert "1 bad ones left out, 0 more replaced" in done.stdout
    manifest = json.loads((tmp_path / "runs/stage1/manifest.json").read_text())
    assert manifest["rows"] == {"seen": 15, "truncated": 0, "replaced": 0, "left_out": 1}
    assert manifest["data"]["left_out"] == 1
    line = json.loads((tmp_path / "runs/stage1/bad.jsonl").read_text())
    assert (line["row"], line["id"], line["code"]) == (3, "c3", "undecodable_image")


def wrong(world: Path) -> dict[str, tuple[list[object], str]]:
    bad = world / "bad"
    bad.mkdir(exist_ok=True)
    turns = [{"from": "human", "value": "<image>\n<image>\nTwo?"}, {"from": "gpt", "value": "yes"}]
    (bad / "two.json").write_text(json.dumps([{"id": "x", "image": "../0.png", "conversations": turns}]))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "  "}]
    (bad / "empty.json").write_text(json.dumps([{"id": "y", "image": "0.png", "conversations": turns}]))
    turns[1]["value"] = "a"
    (bad / "missing.json").write_text(json.dumps([{"id": "z", "image": "no.png", "conversations": turns}]))
    (bad / "half.json").write_text('[{"id": "1", ')
    (bad / "text.tsv").write_text("a\tb\n1\t2\n")
    images = ["--images", world]
    return {
        "unknown model": (["stage1", "--model", "gpt-5"], "no model is named 'gpt-5'; known: vicuna-7b"),
        "no hub for a named model": (
            ["stage1", "--model", "gemma-2b", "--data", world / "captions.json"],
            "no language model can be loaded from 'google/gemma-2b-it'",
        ),
        "no data, no hub": (
            stage1(world)[:7],
            "liuhaotian/LLaVA-Pretrain cannot be fetched (HF_HUB_OFFLINE is set)",
        ),
        "no such file": (stage1(world, "--data", "none.json"), "--data none.json does not exist"),
        "placeholders": (stage1(world, "--data", bad / "two.json", *images), "row 0"),
        "empty answer": (stage1(world, "--data", bad / "empty.json", *images), "row 0"),
        "missing picture": (stage1(world, "--data", bad / "missing.json", *images), "no.png"),
        "half a file": (stage1(world, "--data", bad / "half.json", *images), "half.json"),
        "batch": (
            stage1(world, "--micro-batch", 3),
            "the global batch of 4 is not a multiple",
        ),
        "layers": (stage1(world, "--layers", 9), "layers must be between 1 and 4 for this decoder, got 9"),
        "weighting": (stage1(world, "--weighting", "cubic"), "weighting must be one of quadratic"),
        "weight": (stage1(world, "--das-weight", -1), "--das-weight must be at least 0, got -1.0"),
        "bits": (stage1(world, "--bits", 3), "bits must be 4, 8 or 16, got 3"),
        "precision": (stage1(world, "--precision", "fp8"), "--precision must be one of auto, bf16, fp32"),
        "tracker": (stage1(world, "--report-to", "nothing"), "--report-to nothing is not installed here"),
        "steps": (stage1(world, "--max-steps", 0), "--max-steps must be at least 1, got 0"),
        "no stage 1": (stage2(world, "--lora", "--start", "nowhere"), "nowhere holds no run"),
        "no run": (["eval", "mmbench", "--run", "nowhere"], "nowhere holds no run"),
        "no benchmark": (["eval", "mmbunch"], "Unknown benchmark 'mmbunch'"),
        "out": (stage1(world, "--out", world / "0.png" / "x"), "cannot be written to"),
        "tiny": (["stage1", "--model", "tiny", "--out", world / "0.png" / "x"], "choose another --out"),
    }


@pytest.mark.parametrize("number", range(21))
def test_a_mistake_ends_in_one_line(number, world, tmp_path):
    cases = list(wrong(world).values())
    assert len(cases) == 21
    arguments, message = cases[number]
    refused = run(*arguments, cwd=tmp_path, expect=2)
    assert message in refused.stderr
    lines = [line for line in refused.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, refused.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_saves_nothing_is_cut_off_with_a_word(number, tmp_path, monkeypatch):
    """SIGTERM unwinds as Ctrl-C does: by default it would leave drafts and worker processes."""
    cleaned = []

    def examine(*arguments: object) -> list:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)
        return []

    monkeypatch.setattr("basic_lite.bench.doctor.examine", examine)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        cut_off = run("doctor", cwd=tmp_path, expect=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert cut_off.stderr == "interrupted\n"
    assert cleaned == [True]


def test_a_home_folder_behind_an_equals_sign_is_the_users(tmp_path, monkeypatch):
    """Shells expand `--out ~/x` alone; a folder that is called "~" would invite `rm -r ~`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    refused = run("eval", "mmbench", "--run=~/runs", "--data=a~/b", cwd=tmp_path, expect=2)
    assert f"{tmp_path}/home/runs holds no run" in refused.stderr


def test_a_whole_decoder_that_cannot_fit_is_said_before_loading(world, tmp_path, monkeypatch):
    from transformers import LlamaConfig

    from basic_lite.memory.available import check_whole_decoder_fits, parameters_of

    config = LlamaConfig()  # LLaMA-2-7B's sizes
    assert parameters_of(config) == 6_738_415_616
    monkeypatch.setattr("basic_lite.memory.available.available_bytes", lambda device: 48e9)
    with pytest.raises(ValueError, match=r"needs 108 GB .* and 48 GB are there; add --lora"):
        check_whole_decoder_fits(config, "cpu")


@pytest.mark.parametrize("command", ["stage1", "stage2", "eval", "plan", "ablate", "bench step"])
def test_help_shows_whole_names_in_80_columns(command):
    shown = CliRunner().invoke(
        app, [*command.split(), "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    )
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown.output


def test_the_package_is_the_command_too():
    done = subprocess.run([sys.executable, "-m", "basic_lite", "nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage: python -m basic_lite" in done.stderr
    assert "No such command 'nope'" in done.stderr


@pytest.mark.parametrize("command", [[], ["stage1"], ["stage2"], ["eval"], ["data"]])
def test_help_has_examples(command, tmp_path):
    text = run(*command, "--help", cwd=tmp_path).stdout
    assert "basic-lite" in text or not command
    if command and command != ["data"]:
        assert "Examples" in text
