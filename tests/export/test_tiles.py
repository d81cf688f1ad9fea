"""A run with tiles is exported as a standard LLaVA-NeXT: transformers' own class says what the run says."""

from __future__ import annotations

import json

import pytest
import torch
from made_runs import export, made_run
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from basic_lite.data.conversation import IMAGE
from basic_lite.export import parity
from basic_lite.models.checkpoint import load_run
from basic_lite.models.generate import one_row, prompt_ids
from basic_lite.models.llava import for_inference


@pytest.mark.parametrize(
    ("decoder", "tower", "kind"),
    [
        ("llama", "clip", "lora"),
        ("gemma", "siglip", "stage1"),
        ("phi3", "clip", "whole"),
        ("mistral", "dinov2", "lora"),
        ("granite", "clip", "lora"),
    ],
)
def test_the_folder_says_what_the_run_says(tmp_path, decoder, tower, kind):
    run = made_run(tmp_path / "run", decoder, tower, kind, tiles=4)
    content = export(run, tmp_path / "out")
    assert content["parity"]["gap"] < 1e-5
    assert content["parity"]["pixel_gap"] < 1e-5
    assert content["parity"]["equal_texts"] == len(parity.PROMPTS)
    assert "image_newline" in set(safe_open(tmp_path / "out/model.safetensors", "pt").keys())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert config["image_grid_pinpoints"] == [[24, 48], [48, 24], [48, 48], [24, 72], [72, 24]]


@torch.no_grad()
@pytest.mark.parametrize("size", [(130, 40), (37, 120), (52, 47), (24, 24), (9, 8), (300, 7)])
def test_transformers_class_and_processor_see_the_same_picture(tmp_path, size):
    run = made_run(tmp_path / "run", "llama", "clip", "stage1", tiles=4)
    export(run, tmp_path / "out")
    picture = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 60).convert("RGB")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    theirs = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    turns = [("user", f"{IMAGE}\nWhat is in the picture?")]
    text = processor.apply_chat_template(parity.messages(turns), add_generation_prompt=True, tokenize=False)
    batch = processor(text=[text], images=[picture], return_tensors="pt")

    assembled, _ = load_run(run)
    for_inference(assembled.model)
    ids = prompt_ids(assembled, turns, [size[::-1]])
    assert batch["input_ids"][0].tolist() == ids
    transform = assembled.transform("pad")
    pixels = transform.normalise(transform(picture))
    torch.testing.assert_close(batch["pixel_values"][0], pixels, rtol=0, atol=1e-5)
    ours = assembled.model(**one_row(assembled.model, ids, pixels, sizes=[size[::-1]])).logits
    torch.testing.assert_close(theirs(**batch).logits, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", ["gguf", "peft"])
def test_other_layouts_are_refused_in_one_line(tmp_path, to):
    run = made_run(tmp_path / "run", "llama", "clip", "lora", tiles=4)
    with pytest.raises(ValueError, match=f"trained with tiles, which --to {to} cannot hold") as raised:
        export(run, tmp_path / "out", to=to)
    assert "\n" not in str(raised.value)
