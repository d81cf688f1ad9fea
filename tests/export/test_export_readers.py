"""Exported folders in the hands of others: transformers' pipeline, vLLM and SGLang by their tables."""

from __future__ import annotations

import json

import pytest
import torch
from made_runs import export, made_run

from basic_lite import files
from basic_lite.data.conversation import IMAGE
from basic_lite.export import parity
from basic_lite.models import checkpoint


@pytest.mark.parametrize(("decoder", "tower"), [("llama", "clip"), ("gemma", "siglip")])
def test_the_pipeline_answers_as_the_run(tmp_path, decoder, tower):
    from transformers import pipeline

    run = made_run(tmp_path / "run", decoder, tower, "lora")
    export(run, tmp_path / "out")
    pipe = pipeline("image-text-to-text", model=str(tmp_path / "out"), device="cpu")
    picture = parity.pictures()[0]
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is in the picture?"}]
    found = pipe(
        text=[{"role": "user", "content": parts}], max_new_tokens=parity.NEW_TOKENS, return_full_text=False
    )
    assembled, _ = checkpoint.load_run(run)
    turns, count = parity.PROMPTS[0]
    assert (turns, count) == ([("user", f"{IMAGE}\nWhat is in the picture?")], 1)
    assert found[0]["generated_text"].strip() == parity.ask_run(assembled)[0].text


def test_a_card_says_what_was_trained_and_measured(tmp_path):
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    rows = [{"step": step, "loss": 5.0 / step, "lm": 4.0 / step, "das": None, "sds": None} for step in (1, 2)]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"benchmark": "mmbench", "split": "dev", "metric": "circular", "value": 61.25, "n": 12}
    files.write_json(run / "eval/mmbench/results.json", result | {"scorer": "static", "run": {}})
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| 1 | 5.0000 | 4.0000 |" in card
    assert "| mmbench | dev | circular | 61.25 | 12 | static | not the published set" in card
    assert "rows.json" in card
    assert f"| transformers | {files.versions()['transformers']} |" in card
    assert "license: unknown" in card
    assert "equal greedy answers | 4 of 4" in card


def test_eight_bits_dequantised(tmp_path):
    from basic_lite.export.weights import Entry, dequantised

    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    entry = Entry("model.layers.0.mlp.up_proj.weight", (64, 128), lambda: weight)
    found = dequantised(entry, 8, torch.float32, "cpu").read()
    scale = weight.half().float().abs().amax(1, keepdim=True) / 127
    expected = (weight.half().float() / scale).round() * scale
    assert float((found - expected).abs().max()) < float(scale.max()) * 1.01  # a tie may round the other way
    assert float((found - expected).abs().mean()) < 1e-3
    norm = Entry("model.layers.0.input_layernorm.weight", (64,), lambda: weight)
    assert dequantised(norm, 4, torch.float32, "cpu") is norm


def test_the_command_prints_the_gap(tmp_path):
    from command import run as command

    made_run(tmp_path / "runs/stage2", "llama", "clip", "lora", bits=4)
    done = command("export", "runs/stage2", "out", "--base", "dequantised", cwd=tmp_path)
    assert "gap to the run: " in done.stdout
    assert "4 of 4 answers equal" in done.stdout
    assert "Written: out" in done.stdout
    stored = json.loads((tmp_path / "out/export.json").read_text())
    assert stored["base"] == "dequantised"
    assert stored["parity"]["gap"] < stored["parity"]["limit"] == 1e-3
    done = command("export", "runs/stage2", "adapter", "--to", "peft", cwd=tmp_path)
    assert "gap to the run's decoder: " in done.stdout
