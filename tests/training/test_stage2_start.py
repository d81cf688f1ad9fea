"""Stage 2 from a LLaVA of transformers, or from a finished stage 2: it begins where that one ended."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from command import run, stage2
from made_runs import export, made_run
from PIL import Image
from tiled import llava_next_folder
from tiny import old_names
from transformers import AutoProcessor

from basic_lite.console import quiet_console
from basic_lite.data.conversation import IMAGE
from basic_lite.data.tiles import packed
from basic_lite.models import checkpoint, quantised
from basic_lite.models.generate import one_row, prompt_ids
from basic_lite.models.llava import assemble, for_inference
from basic_lite.training import start as starts

SHAPES = ((37, 40), (130, 40))
"""Width and height."""
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
    assert "is a model, no run" in run("chat", "again", cwd=tmp_path, expect=2).stderr
    text = json.loads((tmp_path / "again/config.json").read_text())["text_config"]
    assert text["architectures"] == ["LlamaForCausalLM"]  # vLLM asks
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
    assert on == pytest.approx(merged, rel=1e-5)  # the same function: adapters apart, or added to the weights
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
        (("--start", "text", "--pool", 2), "--pool is for stage 1"),
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


def logits_of(assembled):
    """Return what a model says of two pictures, the second a wide one, in fp64.

    Then only what stands in the weights' files differs: fp32 rounds adapters that were added to weights, or a
    projector that was divided, to 3e-6 of these logits.
    """
    for_inference(assembled.model.double())
    pictures = [Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 60).convert("RGB") for size in SHAPES]
    transform, sizes = assembled.transform("pad"), [size[::-1] for size in SHAPES]
    pixels = packed([transform(picture) for picture in pictures])
    ids = prompt_ids(assembled, [("user", f"{IMAGE}{IMAGE}\nWhat differs?")], sizes)
    with torch.no_grad():
        return assembled.model(**one_row(assembled.model, ids, pixels, transform, sizes)).logits


def started(folder):
    """Return the model that stage 2 trains on from a folder."""
    start = starts.find(folder, True, "cpu", quiet_console())
    sources = checkpoint.sources_of(json.loads(json.dumps(start.manifest)))  # as a run's manifest holds it
    assembled = assemble(dataclasses.replace(sources, bits=16))
    start.load(assembled)
    return assembled


@pytest.mark.parametrize(
    ("decoder", "tower", "kind", "more"),
    [
        ("llama", "clip", "lora", {"tiles": 4}),
        ("mistral", "dinov2", "lora", {"tiles": 2}),
        ("gemma", "siglip", "whole", {"tiles": 9}),
        ("phi3", "clip", "stage1", {"tiles": 4, "image_size": 32}),
        ("granite", "clip", "whole", {"tiles": 4}),  # multiplies embeddings, the newline too
        ("granite", "clip", "stage1", {}),
    ],
)
def test_what_was_exported_is_loaded_as_it_was(tmp_path, decoder, tower, kind, more):
    made = made_run(tmp_path / "run", decoder, tower, kind, **more)
    export(made, tmp_path / "whole", dtype="fp32")
    here = started(tmp_path / "whole")
    there, _ = checkpoint.load_run(made)
    assert (here.tiling, here.template, here.image_size) == (there.tiling, there.template, there.image_size)
    torch.testing.assert_close(logits_of(here), logits_of(there), rtol=1e-5, atol=1e-5)


def test_an_export_for_older_releases_is_loaded_as_it_was(tmp_path):
    """Its projector is divided by what those multiply a Gemma's embeddings by."""
    made = made_run(tmp_path / "run", "gemma", "clip", "stage1", tiles=4)
    export(made, tmp_path / "whole", dtype="fp32", old_gemma=True)
    torch.testing.assert_close(
        logits_of(started(tmp_path / "whole")), logits_of(checkpoint.load_run(made)[0]), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    "pinpoints",
    [
        [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]],  # in the order of the published ones
        [[24, 24], [24, 96], [48, 24]],  # no set of "up to N tiles"
    ],
)
def test_a_llava_next_of_transformers_is_the_same_model(tmp_path, pinpoints, older):
    theirs = llava_next_folder(tmp_path / "theirs", pinpoints)
    if older:
        old_names(tmp_path / "theirs")
    ours = started(tmp_path / "theirs")
    for_inference(ours.model.double())
    theirs = theirs.double()
    processor, transform = AutoProcessor.from_pretrained(tmp_path / "theirs"), ours.transform("pad")
    for size in (*SHAPES, (24, 24), (52, 47), (40, 130), (9, 8)):
        picture = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 60).convert("RGB")
        written = "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
        batch = processor(text=[written], images=[picture], return_tensors="pt")
        ids = prompt_ids(ours, [("user", f"{IMAGE}\nWhat?")], [size[::-1]])
        assert batch["input_ids"][0].tolist() == ids
        pixels = transform.normalise(transform(picture))
        torch.testing.assert_close(batch["pixel_values"][0], pixels, rtol=0, atol=1e-5)
        batch["pixel_values"] = pixels.double()[None]  # apart from how pictures are resized
        logits = ours.model(**one_row(ours.model, ids, pixels, sizes=[size[::-1]])).logits
        known = theirs(**batch).logits
        torch.testing.assert_close(logits, known, rtol=1e-5, atol=1e-9)
