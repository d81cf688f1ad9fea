"""A plan for a named model starts at once: nothing heavy is imported, and it says what it said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    SiglipVisionConfig,
)

from basic_lite.bench.synthetic import DECODERS
from basic_lite.memory.sizes import TOWERS, DecoderSize, TowerSize, published_decoder, towers_named
from basic_lite.models import zoo
from basic_lite.models.llava import read_config

GOLDEN = Path(__file__).parent / "golden" / "plan_vicuna_7b_24_gib.txt"
HEAVY = "torch transformers peft accelerate datasets bitsandbytes matplotlib PIL numpy".split()
CODE = f"""
import sys
from basic_lite import cli
code = 0
try:
    cli.main()
except SystemExit as end:
    code = end.code
found = [name for name in {HEAVY} if name in sys.modules]
sys.exit(f"imported: {{found}}" if found else code)
"""


def basic_lite(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_is_the_one_of_before_and_takes_no_torch():
    assert basic_lite("plan", "--model", "vicuna-7b", "--gpu", "24") == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("model", {row.family: name for name, row in zoo.LLMS.items()}.values())
def test_no_named_model_takes_torch_or_transformers(model):
    assert "context and allocator" in basic_lite("plan", "--model", model, "--gpu", "24")


def test_no_named_tower_takes_torch_or_transformers():
    for tower in zoo.TOWERS:
        basic_lite("plan", "--model", "gemma-2b", "--tower", tower, "--stage", "1", "--json")


def test_the_overview_of_all_takes_no_torch():
    assert "mistral-7b" in basic_lite("plan")


def test_the_list_of_models_takes_no_torch():
    rows = [json.loads(line) for line in basic_lite("models", "--json").splitlines()]
    named = {row["model"]: row for row in rows if "model" in row}
    assert list(named) == list(zoo.LLMS)
    assert named["llama3.2-1b"]["gated"]
    assert not named["qwen3-4b"]["gated"]
    assert named["qwen3-4b"]["parameters"] == 4_022_468_096
    assert (named["vicuna-13b"]["stage1_gib"], named["vicuna-13b"]["stage2_lora_gib"]) == (12, 16)
    for gib, fits in ((12, False), (16, True)):  # as the plan says
        plans = basic_lite("plan", "--model", "vicuna-13b", "--gpu", str(gib), "--stage", "2", "--json")
        lora = next(row for row in map(json.loads, plans.splitlines()) if row["stage"] == "stage2 --lora")
        assert (lora["micro_batch"] is not None) == fits
    assert {row["tower"] for row in rows if "tower" in row} == set(zoo.TOWERS)
    shown = basic_lite("models")
    assert "Llama 3.2 licence, gated" in " ".join(shown.split())


def test_the_version_takes_no_torch():
    assert basic_lite("--version") == "basic-lite 0.1.0\n"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "vicuna-7b",
            LlamaConfig(),
        ),  # LLaMA-7B's are transformers' defaults, as Phi-3-mini's and Mistral-7B's
        (
            "vicuna-13b",
            LlamaConfig(
                hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
            ),
        ),
        (
            "gemma-2b",
            GemmaConfig(
                hidden_size=2048,
                intermediate_size=16384,
                num_hidden_layers=18,
                num_attention_heads=8,
                num_key_value_heads=1,
                head_dim=256,
                vocab_size=256_000,
            ),
        ),
        ("phi3-mini", Phi3Config()),
        ("mistral-7b", MistralConfig(sliding_window=None)),
    ],
)
def test_a_size_without_transformers_is_the_size_with_it(name, config):
    assert published_decoder(name) == DecoderSize.of(config)
    assert DECODERS[name].to_dict() == type(config)(**config.to_dict() | _window(name)).to_dict()


def _window(name: str) -> dict[str, int]:
    """Vicuna and Phi-3-mini-4k read 4,096 tokens, more or fewer than the classes' defaults."""
    return {} if name in ("gemma-2b", "mistral-7b") else {"max_position_embeddings": 4096}


def test_the_parts_that_ship_and_the_towers_are_read_alike():
    decoder = read_config("tiny-decoder", "language model")
    assert published_decoder("tiny") == DecoderSize.of(decoder)
    tower = read_config("tiny-tower", "vision tower")
    assert towers_named("tiny", None, every=False) == [("tiny", TowerSize.of(tower))]
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size".split()
    )
    clip = CLIPVisionConfig(**dict(zip(names, (1024, 4096, 24, 16, 336, 14), strict=True)))
    assert TowerSize.of(TOWERS["clip-l-336"]) == TowerSize.of(clip)
    siglip = SiglipVisionConfig(**dict(zip(names, (1152, 4304, 27, 16, 384, 14), strict=True)))
    assert TowerSize.of(TOWERS["siglip-so400m-384"]) == TowerSize.of(siglip)
