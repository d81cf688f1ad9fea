"""`--background`: a transparent picture, the same pixels wherever a run sees it, and what its export says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from command import data_check, make_world, run, settings_shown, stage1, stage2, write_row
from made_runs import export, made_run
from PIL import Image
from rich.console import Console
from tiny import tiny_assembled

from basic_lite import files
from basic_lite.analysis.inspection import InspectionSettings, inspect_layers
from basic_lite.analysis.samples import Sample
from basic_lite.chat import Chat
from basic_lite.data.pictures import load_image, open_picture
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import ImageRef, colour
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.tiles import picture_sizes
from basic_lite.evaluation import hf_llava
from basic_lite.evaluation.answer import Prompt, _with_pictures
from basic_lite.evaluation.question import Question
from basic_lite.models import quantised
from basic_lite.models.checkpoint import load_run
from basic_lite.training import start

COLOURS = {"white": (255, 255, 255), "#204080": (0x20, 0x40, 0x80)}


def logo(path, exif=None):
    """Write random colours, a third of them transparent and a third half so; return them as RGBA."""
    values = np.random.default_rng(1).integers(0, 256, (24, 60, 4), np.uint8)
    values[..., 3] = np.array([0, 128, 255])[np.arange(60) % 3]
    Image.fromarray(values).save(path, "PNG", **({} if exif is None else {"exif": exif}))
    return values.astype(np.float64)


def composed(values, background):
    """`opacity * colour + (1 - opacity) * background`, rounded."""
    opacity = values[..., 3:] / 255
    return np.rint(opacity * values[..., :3] + (1 - opacity) * np.array(COLOURS[background]))


@pytest.fixture
def logos(tmp_path):
    values = logo(tmp_path / "0.png")
    write_row(tmp_path)
    return tmp_path, values


@pytest.mark.parametrize("exif", ["ignore", "rotate"])
@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("background", COLOURS)
def test_training_evaluation_and_chat_get_the_same_pixels(logos, background, tiles, exif):
    folder, values = logos
    if exif == "rotate":
        tag = Image.Exif()
        tag[0x0112] = 6
        values = np.rot90(logo(folder / "0.png", tag), -1)
    assembled = tiny_assembled(background=background, tiles=tiles, exif=exif)
    transform, path = assembled.transform("pad"), folder / "0.png"
    seen = transform.upright(load_image(ImageRef("0.png", str(folder))))
    assert np.abs(np.asarray(seen) - composed(values, background)).max() <= 1
    expected = transform(Image.fromarray(np.asarray(seen)))
    rows = open_rows(folder / "rows.json")
    rows.sizes = picture_sizes(rows, exif=exif)
    item = assembled.supervised(rows, assembled.template, transform, max_length=None)[0]
    prompt = Prompt(Question(5, "?", path, 8), [1])
    evaluated = next(_with_pictures(assembled, [[prompt]]))[0].shown
    chat = Chat(assembled)
    chat.show(path)
    (pixels,), (shown,) = item["pixels"], chat.waiting
    for given in (pixels, evaluated[0], shown.pixels, transform(open_picture(path))):
        assert torch.equal(given, expected)


def test_an_analysis_sees_it_on_the_run_s_background(logos):
    folder, _ = logos
    assembled = tiny_assembled(background="#204080")
    settings = InspectionSettings(TEMPLATES["plain"], "crop", max_new_tokens=2)
    layers = Image.open(folder / "0.png")
    flat = Image.new("RGB", layers.size, "#204080")
    flat.paste(layers, mask=layers.getchannel("A"))
    samples = [Sample("0", lambda: open_picture(folder / "0.png"), "What?", "a red one")]
    samples.append(Sample("0", lambda: flat, "What?", "a red one"))
    results = [inspect_layers(assembled, [sample], [None], settings) for sample in samples]
    assert results[0].depths == results[1].depths


def test_colours_and_what_is_none():
    assert [colour(text) for text in ("white", "Black", "#204080", "#ABCDEF")] == [
        "#ffffff",
        "#000000",
        "#204080",
        "#abcdef",
    ]
    for text in ("", "wite", "#12345", "#12345g", "rgb(1,2,3)", "0,0,0"):
        with pytest.raises(ValueError, match="a colour is a name such as white, or #rrggbb"):
            colour(text)


def test_both_stages_say_it_and_resume_keeps_it(tmp_path):
    world = make_world(tmp_path)
    logo(world / "3.png")
    more = ("--max-steps", 2, "--save-steps", 1)
    done = run(*stage1(world, *more, "--background", "black"), cwd=tmp_path)
    assert settings_shown(done.stdout)["background"] == "#000000"
    out = tmp_path / "runs/stage1"
    assert files.read_manifest(out)["sources"]["background"] == "#000000"
    assert "the picture's own least and largest value" in files.read_manifest(out)["pictures"]["deep_grey"]
    base = ("--lora", "--rank", 2, "--bits", 16, "--max-steps", 1)
    for given, background in (((), "#000000"), (("--background", "white"), "#ffffff")):
        name = background.removeprefix("#")
        run(*stage2(world, *base, *given, "--out", name), cwd=tmp_path)
        assert files.read_manifest(tmp_path / name)["sources"]["background"] == background
        assert load_run(tmp_path / name)[0].transform("pad").background == background

    for path in (*out.glob("*.safetensors"), out / files.MANIFEST):
        path.unlink()
    refused = run(*stage1(world, *more, "--resume"), cwd=tmp_path, expect=2).stderr
    assert "another sources: {'background': '#000000'}, now {'background': '#ffffff'}" in refused
    refused = run(*stage1(world, "--background", "wite"), cwd=tmp_path, expect=2).stderr
    assert refused == "error: --background: a colour is a name such as white, or #rrggbb, got 'wite'\n"


def test_the_check_looks_at_colours_as_training_shows_them(tmp_path):
    Image.new("LA", (9, 9), (0, 0)).save(tmp_path / "nothing.png")
    half = Image.new("LA", (9, 9), (0, 0))
    half.paste((0, 255), (0, 0, 4, 9))
    half.save(tmp_path / "black.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a red one"}]
    rows = [{"image": name, "conversations": turns} for name in ("nothing.png", "black.png")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for background, noted in (("white", [0]), ("black", [0, 1]), ("white", [0])):
        options = ("--images", tmp_path, "--background", background, "--report", tmp_path / "r.json")
        data_check(tmp_path / "rows.json", *options)
        found = json.loads((tmp_path / "r.json").read_text())["findings"]
        assert [(finding["code"], finding["row"]) for finding in found] == [("one_colour", n) for n in noted]


@pytest.mark.parametrize("background", COLOURS)
def test_an_export_says_it_and_carries_it(tmp_path, monkeypatch, background):
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    made = made_run(tmp_path / "run", "llama", "clip", "lora", background=background)
    export(made, tmp_path / "out")
    export(made, tmp_path / "peft", to="peft")
    for folder in ("out", "peft"):
        card = (tmp_path / folder / "README.md").read_text()
        assert f"Transparent pictures were put on {background} (`--background`)" in card
    begin = start.find(tmp_path / "out", lora=True, device="cpu", console=Console())
    assert begin.manifest["sources"]["background"] == colour(background)
    assert hf_llava.load(str(tmp_path / "out"), "cpu").transform("pad").background == colour(background)
