from __future__ import annotations

import random

import pytest
import torch

from basic_lite.data.world.render import render
from basic_lite.data.world.scenes import COLOURS, HELD_OUT, SHAPES, Scene, sample_scene
from parts.answering import exam, probe_decoder, probe_shallow
from parts.build import _save_half, read_decoder
from parts.corpus import ANSWER, CAPTION, Corpus, Mixture, is_reserved, words_of
from parts.pretrain_decoder import Lesson, blur, train_decoder
from parts.pretrain_tower import SHOWN, album, recolour, train_tower
from parts.vocabulary import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(seed=0, scenes=400)


def test_every_attribute_is_one_token_in_both_languages(tokenizer, training_scenes, held_out_scenes):
    for scene in training_scenes + held_out_scenes:
        for thing in scene.things:
            for language in ("en", "zh"):
                for word in words_of(thing, language, random.Random(0)):
                    assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word


def test_rows_mark_answers_and_end_turns(tokenizer):
    corpus = Corpus(tokenizer, 1)
    corpus.mixture = Mixture(blurred=0.0, plain=0.0)
    for _ in range(20):
        row = corpus.row()
        assert len(row.ids) == len(row.part)
        text = tokenizer.decode(row.ids)
        assert text.startswith("<s><|im_start|>user\n")
        spoken = [i for i, p in zip(row.ids, row.part, strict=True) if p in (ANSWER, CAPTION)]
        said = [turn.split("<|im_end|>")[0] for turn in text.split("<|im_start|>assistant\n")[1:]]
        assert tokenizer.decode(spoken) == "".join(f"{answer}<|im_end|>" for answer in said)


def test_plain_rows_end_in_a_caption_and_repeat_when_told(tokenizer):
    corpus = Corpus(tokenizer, 1)
    corpus.mixture = Mixture(blurred=0.0, plain=1.0, repeated=1.0)
    row = corpus.row()
    context = tokenizer.decode(row.ids[slice(*row.context)])
    assert (
        tokenizer.decode([i for i, p in zip(row.ids, row.part, strict=True) if p == CAPTION])
        == context + "\n"
    )


def test_blurred_positions_hold_words_of_one_thing(tokenizer):
    corpus = Corpus(tokenizer, 2)
    corpus.mixture = Mixture(blurred=1.0)
    row = corpus.row()
    assert row.context[1] - row.context[0] == len(row.bags)
    assert all(len(set(bag)) == len(bag) <= 5 for bag in row.bags)


def test_reserved_scenes_are_asked_about_and_never_read(tokenizer):
    corpus = Corpus(tokenizer, 3)
    corpus.mixture = Mixture(most=2)
    read = [Scene(tuple(corpus.row().told), "dots", 0) for _ in range(300)]
    assert not any(is_reserved(scene) for scene in read)
    assert {thing.pair for scene in read for thing in scene.things} >= HELD_OUT
    asked = [scene for scene, _ in exam(14, "en", seed=0, wanted=is_reserved)]
    assert all(is_reserved(Scene(scene.things[::-1], "waves", 1)) for scene in asked)
    assert 0.1 < sum(is_reserved(sample_scene(corpus.rng)) for _ in range(2000)) / 2000 < 0.15


def test_a_blurred_word_is_nearest_to_its_words():
    torch.manual_seed(0)
    table = torch.randn(50, 128)
    words = torch.zeros(30, 50)
    for i in range(30):
        words[i, [i, i + 10]] = 1.0
    cosine = torch.nn.functional.cosine_similarity(blur(words, table)[:, None], table[None], dim=-1)
    best = cosine.argmax(1)
    assert sum(int(b) in (i, i + 10) for i, b in enumerate(best)) >= 28


def test_training_repeats_from_its_seed_and_probes_read_it(tokenizer, tmp_path):
    one, other = (train_decoder(Lesson(tokenizer, seed=3, steps=2, rows=2)) for _ in range(2))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    tokenizer.save_pretrained(tmp_path)
    _save_half(one, tmp_path)
    model, read = read_decoder(tmp_path)
    figures = probe_decoder(model, read, questions=7, seed=0) | probe_shallow(model, read, seed=0, scenes=3)
    assert all(-100 <= value <= 100 for value in figures.values())
    assert {"en", "zh", "zh colour", "shallow mean"} <= figures.keys()


def test_tower_training_runs():
    losses = []
    train_tower(seed=0, steps=2, pictures=8, rows=4, progress=lambda step, values: losses.append(values))
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(list(values.values()))).all() for values in losses)


@pytest.mark.parametrize("held_out", [False, True])
def test_album_holds_the_truth_of_its_pictures(held_out):
    book = album(4, seed=1, held_out=held_out)
    rng = random.Random(1)
    for i in range(4):
        scene = sample_scene(rng, held_out)
        picture = render(scene)
        assert book.pixels[i].permute(1, 2, 0).contiguous().numpy().tobytes() == picture.image.tobytes()
        for patch, (index, share) in enumerate(zip(picture.thing, picture.share, strict=True)):
            if share >= SHOWN:
                thing = scene.things[index]
                assert COLOURS[book.labels["colour"][i, patch]] == thing.colour
                assert SHAPES[book.labels["shape"][i, patch]] == thing.shape
                assert book.held_out[i, patch] == (thing.pair in HELD_OUT)
            else:
                assert book.labels["colour"][i, patch] == -100
                assert book.shown[i, patch].isnan() if share > 0 else book.shown[i, patch] == 0


def test_recolouring_turns_colours_and_leaves_the_rest():
    torch.manual_seed(0)
    pixels = album(16, seed=2).pixels.float()
    changed, chosen = recolour(pixels)
    assert 0 < chosen.sum() < 16
    assert torch.equal(changed[~chosen], pixels[~chosen])
    assert all(not torch.equal(a, b) for a, b in zip(changed[chosen], pixels[chosen], strict=True))
    assert changed.min() >= 0
    assert changed.max() <= 255
