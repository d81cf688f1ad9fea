"""`--exif`: a photo stored on its side, the same pixels wherever a run sees it, and what its export says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from command import make_world, run, settings_shown, stage1, stage2, write_row
from made_runs import export, made_run
from PIL import Image
from rich.console import Console
from tiny import tiny_assembled

from basic_lite import files
from basic_lite.analysis.inspection import InspectionSettings, inspect_layers
from basic_lite.analysis.samples import Sample
from basic_lite.chat import Chat
from basic_lite.data.pictures import open_picture
from basic_lite.data.readers import open_rows
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.tiles import picture_sizes
from basic_lite.evaluation import hf_llava
from basic_lite.evaluation.answer import Prompt, _prompt_ids, _with_pictures
from basic_lite.evaluation.question import Question
from basic_lite.models import quantised
from basic_lite.models.checkpoint import load_run
from basic_lite.training import start

SIZE = (60, 24)
"""Width and height as stored; upright it is 24 x 60."""


def photo(path, orientation=6):
    """Write random colours that EXIF turns clockwise by 90 degrees, and return both ways to see them."""
    values = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(path, "PNG", exif=exif)
    return {"ignore": values, "rotate": np.rot90(values, -1)}


@pytest.fixture
def photos(tmp_path):
    seen = photo(tmp_path / "0.png")
    write_row(tmp_path)
    return tmp_path, seen


@pytest.mark.parametrize("exif", ["ignore", "rotate"])
@pytest.mark.parametrize("tiles", [1, 4])
def test_training_evaluation_and_chat_get_the_same_pixels(photos, exif, tiles):
    folder, seen = photos
    assembled = tiny_assembled(exif=exif, tiles=tiles)
    transform, path = assembled.transform("pad"), folder / "0.png"
    expected = transform(Image.fromarray(np.ascontiguousarray(seen[exif])))
    other = seen["rotate" if exif == "ignore" else "ignore"]
    assert not torch.equal(expected, transform(Image.fromarray(np.ascontiguousarray(other))))

    rows = open_rows(folder / "rows.json")
    rows.sizes = picture_sizes(rows, exif=exif)
    assert rows.sizes.tolist() == [list(seen[exif].shape[:2])]
    item = assembled.supervised(rows, assembled.template, transform, max_length=None)[0]
    question = Question(5, "?", path, 8)
    evaluated = next(_with_pictures(assembled, [[Prompt(question, [1])]]))[0].shown
    chat = Chat(assembled)
    chat.show(path)
    (pixels,), (shown,) = item["pixels"], chat.waiting
    for given in (pixels, evaluated[0], shown.pixels):
        assert torch.equal(given, expected)
    assert evaluated[1] == shown.size == seen[exif].shape[:2]
    patches = _prompt_ids(assembled, question).count(assembled.image_token_id)
    assert patches == item["input_ids"].count(assembled.image_token_id)


@pytest.mark.parametrize("exif", ["ignore", "rotate"])
def test_an_analysis_sees_the_picture_as_the_run(photos, exif):
    """The same figures as of a picture that was stored as it is to be seen."""
    folder, seen = photos
    assembled = tiny_assembled(exif=exif, tiles=4)
    settings = InspectionSettings(TEMPLATES["plain"], "crop", max_new_tokens=2)
    upright = Image.fromarray(np.ascontiguousarray(seen[exif]))
    samples = [Sample("0", lambda: open_picture(folder / "0.png"), "What?", "a red one")]
    samples.append(Sample("0", lambda: upright, "What?", "a red one"))
    results = [inspect_layers(assembled, [sample], [None], settings) for sample in samples]
    assert results[0].depths == results[1].depths


def test_both_stages_say_it_and_resume_keeps_it(tmp_path):
    world = make_world(tmp_path)
    photo(world / "3.png")
    more = ("--max-steps", 2, "--save-steps", 1, "--exif", "rotate")
    assert settings_shown(run(*stage1(world, *more), cwd=tmp_path).stdout)["exif"] == "rotate"
    out = tmp_path / "runs/stage1"
    assert files.read_manifest(out)["sources"]["exif"] == "rotate"
    base = ("--lora", "--rank", 2, "--bits", 16, "--max-steps", 1)
    for given, exif in (((), "rotate"), (("--exif", "ignore"), "ignore")):
        run(*stage2(world, *base, *given, "--out", exif), cwd=tmp_path)
        assert files.read_manifest(tmp_path / exif)["sources"]["exif"] == exif
        assert load_run(tmp_path / exif)[0].transform("pad").exif == exif

    for path in (*out.glob("*.safetensors"), out / files.MANIFEST, out / "checkpoint-2"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused = run(*stage1(world, *more[:4], "--resume"), cwd=tmp_path, expect=2).stderr
    assert "started with another sources: {'exif': 'rotate'}, now {'exif': 'ignore'}" in refused
    assert refused.count("\n") == 1
    # A manifest of an older version says nothing: it was trained with `ignore`.
    kept = out / "checkpoint-1" / files.MANIFEST
    manifest = json.loads(kept.read_text())
    del manifest["sources"]["exif"]
    kept.write_text(json.dumps(manifest))
    refused = run(*stage1(world, *more, "--resume"), cwd=tmp_path, expect=2).stderr
    assert "{'exif': 'ignore'}, now {'exif': 'rotate'}" in refused
    run(*stage1(world, *more[:4], "--resume"), cwd=tmp_path)
    assert files.read_manifest(out)["sources"]["exif"] == "ignore"


@pytest.mark.parametrize("exif", ["ignore", "rotate"])
def test_an_export_says_what_its_readers_do(tmp_path, monkeypatch, exif):
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    made = made_run(tmp_path / "run", "llama", "clip", "lora", exif=exif)
    export(made, tmp_path / "out")
    export(made, tmp_path / "peft", to="peft")
    for folder in ("out", "peft"):
        card = (tmp_path / folder / "README.md").read_text()
        assert f"(`--exif {exif}`" in card
    begin = start.find(tmp_path / "out", lora=True, device="cpu", console=Console())
    assert begin.manifest["sources"]["exif"] == exif
    # transformers' own loader turns pictures, whatever the run did.
    assert hf_llava.load(str(tmp_path / "out"), "cpu").transform("pad").exif == "rotate"
