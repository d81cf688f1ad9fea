"""The shipped parts load as ordinary Hugging Face folders and do what their cards say, in a small sample."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from embedded import needs_parts
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from basic_lite.data.world.parts import DECODER, PARTS, TOWER
from basic_lite.data.world.render import SIDE, render
from basic_lite.files import file_hash
from parts import answering, build
from parts.answering import probe_decoder
from parts.build import read_decoder
from parts.pretrain_decoder import Lesson
from parts.pretrain_tower import normalise, probe_tower
from parts.vocabulary import train_tokenizer

pytestmark = needs_parts


def test_parts_are_small_enough_to_ship():
    files = [path for path in PARTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".jinja"}


@pytest.mark.parametrize(("folder", "loader"), [(DECODER, AutoModelForCausalLM), (TOWER, AutoModel)])
def test_parts_load_by_their_configs_in_fp32(folder, loader):
    model = loader.from_pretrained(folder, local_files_only=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")


def test_tokenizer_has_the_marks_of_chatml_and_keeps_any_text():
    tokenizer = AutoTokenizer.from_pretrained(DECODER, local_files_only=True)
    config = AutoConfig.from_pretrained(DECODER, local_files_only=True)
    assert len(tokenizer) == config.vocab_size
    for mark in ("<s>", "<pad>", "<|im_start|>", "<|im_end|>", "<image>"):
        assert len(tokenizer.encode(mark, add_special_tokens=False)) == 1
    for text in (
        "A large red star is at the top left.",
        "左上角有一个大的红色星形。",
        "Zürich, 1 < 2\n\tok?",
    ):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_image_processor_gives_what_the_tower_was_trained_on(training_scenes):
    processor = AutoImageProcessor.from_pretrained(TOWER, local_files_only=True)
    picture = render(training_scenes[0]).image
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    expected = torch.tensor(list(picture.tobytes()), dtype=torch.uint8).view(1, SIDE, SIDE, 3)
    assert torch.allclose(pixels, normalise(expected.permute(0, 3, 1, 2)), atol=1e-5)


def test_the_decoder_answers_about_descriptions_it_never_read():
    figures = probe_decoder(*read_decoder(DECODER), questions=56, seed=11)
    # Guessing gives a third. Of 56 questions per language one more wrong is 1.8 %.
    assert min(figures["en"], figures["zh"]) >= 85, figures


def test_the_tower_shows_colour_and_shape_at_the_patches():
    tower = AutoModel.from_pretrained(TOWER, local_files_only=True)
    figures = probe_tower(tower, seed=12, pictures=160)
    assert figures["colour"] >= 90, figures
    assert figures["shape"] >= 80, figures  # a probe on 160 pictures is worse than the card's on 1,000


@pytest.mark.parametrize(
    ("folder", "names", "floor"),
    [(DECODER, ("en", "zh"), 90), (TOWER, ("colour", "shape"), 90)],
)
def test_the_recorded_figures_do_not_fall(folder, names, floor):
    probe = json.loads((folder / "probe.json").read_text(encoding="utf-8"))["probe"]
    assert all(probe[name] >= floor for name in names), probe


def test_the_second_course_goes_on_from_what_the_first_one_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "probe_decoder", lambda *given, **named: {"en": 0.0, "zh": 0.0})
    monkeypatch.setattr(answering, "probe_shallow", lambda *given, **named: {})
    monkeypatch.setattr(build, "train_tokenizer", lambda seed: train_tokenizer(seed, scenes=100))
    lesson = partial(Lesson, rows=2)
    monkeypatch.setattr(build, "Lesson", lesson)
    steps = []
    said = lambda step, values: steps.append(step)  # noqa: E731
    build.build_decoder(tmp_path / "whole", 0, 2, "cpu", said, finish=1)
    assert steps == [0, 1, 2]
    build.build_decoder(tmp_path / "first", 0, 2, "cpu", said)
    _, tokenizer = read_decoder(tmp_path / "first")
    build._save_half(build.finish_written(tmp_path / "first", lesson(tokenizer, seed=1, steps=1)), tmp_path)
    assert file_hash(tmp_path / "whole/model.safetensors") == file_hash(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "whole/probe.json").read_text())["steps"] == 3
