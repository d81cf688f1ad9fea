"""`basic-lite plan`: the tables, the JSON lines, and what it answers when nothing fits."""

from __future__ import annotations

import json

import pytest
from command import run
from tiny import llm_folder, tiny_llava, tower_folder

from basic_lite.models import zoo
from basic_lite.models.llava import read_config

FIELDS = {
    *("stage", "model", "tower", "gpu_gib", "micro_batch", "accumulation", "recompute_layers"),
    *("rows_per_chunk", "peak_gb", "parts", "seconds_per_sample", "dequantised_layers"),
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Nothing may be asked of the hub: the names of the zoo are enough."""
    monkeypatch.setattr(
        "basic_lite.models.llava.read_config", lambda *a: pytest.fail("a configuration was read")
    )


def rows_of(*arguments: object, cwd) -> list[dict]:
    return [json.loads(line) for line in run("plan", *arguments, "--json", cwd=cwd).stdout.splitlines()]


def test_every_model_tower_card_and_stage(tmp_path):
    rows = rows_of(cwd=tmp_path)
    assert len(rows) == 3 * (len(zoo.LLMS) - 1) * 2 * 6  # the embedded one is none of them
    for row in rows:
        assert set(row) == FIELDS
        assert row["peak_gb"] == pytest.approx(sum(row["parts"].values()), abs=0.002)
        if row["micro_batch"] is None:
            assert row["peak_gb"] > row["gpu_gib"] * 2**30 / 1e9 * 0.9
            continue
        batch = 256 if row["stage"] == "stage1" else 128
        assert row["micro_batch"] * row["accumulation"] == batch
        assert row["peak_gb"] * 1e9 <= (row["gpu_gib"] - 0.5) * 2**30 + 1e6
        assert row["seconds_per_sample"] > 0
    on_24 = [row for row in rows if row["gpu_gib"] == 24 and row["stage"] != "stage2"]
    assert all(row["micro_batch"] for row in on_24)  # every model and both stages on one 24 GiB card


def test_at_a_glance_every_name_and_figure_is_whole(tmp_path):
    """Two models are called mistral-7b something: a name that is cut off says nothing."""
    rows = run("plan", "--stage", 1, cwd=tmp_path).stdout.splitlines()
    named = [row for row in rows if ", clip " in row or ", siglip " in row]
    assert len({row.split(",")[0] for row in named}) == len(zoo.LLMS) - 1
    assert len(named) == 2 * (len(zoo.LLMS) - 1)
    assert all(row.count(" s") >= 6 or " - " in row for row in named)
    assert "…" not in "".join(rows)


def test_one_model_in_full(tmp_path):
    text = run("plan", "--model", "vicuna-7b", "--gpu", 24, cwd=tmp_path).stdout
    for line in ("decoder", "embeddings and head", "tower", "projector", "adapters", "activations"):
        assert f"\n{line} " in text
    for words in ("recomputing all", "micro-batch x accumulation", "RTX 4090", "not measured on this card"):
        assert words in text
    assert "stage2 of vicuna-7b does not fit 24 GiB: it needs" in text
    assert "; add --lora" in text


def test_a_tower_that_is_trained_is_planned_for(tmp_path):
    """CLIP-L: 23 of 24 layers and what is in front of them, 4 bytes each; only stage 2 trains it."""
    given = ("--model", "vicuna-7b", "--tower", "clip-l-336", "--gpu", 48)
    frozen, whole, adapted = (
        rows_of(*given, *how, cwd=tmp_path) for how in ((), ("--train-tower",), ("--tower-lora", 16))
    )
    assert frozen[0] == whole[0] == adapted[0]
    assert adapted[2] == frozen[2]  # a stage 2 without --lora has no adapters
    layer = 4 * 1024**2 + 2 * 1024 * 4096 + 4 * 1024 + 1024 + 4096 + 4 * 1024
    trained = 23 * layer + 1024 * (3 * 14**2 + 1 + 577 + 2)
    for row, before in zip(whole[1:3], frozen[1:3], strict=True):
        assert row["parts"]["tower's optimizer"] * 1e9 == pytest.approx(12 * trained, rel=1e-3)
        if row["micro_batch"]:
            assert row["seconds_per_sample"] > before["seconds_per_sample"]
    ranks = 16 * 23 * (8 * 1024 + 2 * (1024 + 4096))
    assert adapted[1]["parts"]["tower's optimizer"] * 1e9 == pytest.approx(16 * ranks, rel=1e-2)
    refused = run("plan", "--train-tower", "--tower-lora", 2, cwd=tmp_path, expect=2).stderr
    assert "give only one" in refused


def test_nothing_fits_is_answered_in_one_line(tmp_path):
    text = run("plan", "--model", "vicuna-13b", "--gpu", 8, "--stage", 1, cwd=tmp_path).stdout
    line = next(line for line in text.splitlines() if "does not fit" in line)
    assert line.startswith("stage1 of vicuna-13b does not fit 8 GiB: it needs")
    assert "take a card of 12 GiB, or --model vicuna-7b or gemma-2b or phi3-mini or mistral-7b" in line


def test_a_folder_is_planned_for(tmp_path, monkeypatch):
    monkeypatch.setattr("basic_lite.models.llava.read_config", read_config)
    rows = rows_of("--llm", llm_folder(), "--tower", tower_folder(), "--stage", 1, "--gpu", 12, cwd=tmp_path)
    assert len(rows) == 1
    assert rows[0]["micro_batch"] == 64
    tiny_llava().config.save_pretrained(tmp_path / "whole")  # of the same parts
    (row,) = rows_of("--llm", "whole", "--tower", "whole", "--stage", 1, "--gpu", 12, cwd=tmp_path)
    assert row == rows[0] | {"model": "whole", "tower": "whole"}
    refused = run("plan", "--llm", tmp_path / "none", cwd=tmp_path, expect=2)
    assert "no language model can be loaded from" in refused.stderr


def test_a_wrong_name_is_said(tmp_path):
    refused = run("plan", "--model", "gpt-5", cwd=tmp_path, expect=2)
    assert "no model is named 'gpt-5'; known: vicuna-7b" in refused.stderr
