from __future__ import annotations

import base64
import csv
import io
import json
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from basic_lite.data.world import dataset
from basic_lite.data.world.dataset import ROTATION, TSV_COLUMNS, World, benchmark, write_world
from basic_lite.data.world.grammar import LETTER_PROMPT
from basic_lite.data.world.lexicon import COLOUR_ZH, PLACE_ZH, SHAPE_ZH
from basic_lite.data.world.render import SIDE, render
from basic_lite.data.world.scenes import COLOURS, SHAPES, sample_scene
from basic_lite.files import file_hash


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def world(folder) -> World:
    return write_world(folder, seed=3, captions=12, conversations=24, questions=21)


def read_tsv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_same_seed_writes_the_same_bytes(world, folder, tmp_path):
    write_world(tmp_path, seed=3, captions=12, conversations=24, questions=21)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((folder / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_stage1_rows_are_captions_of_pictures(world):
    rows = json.loads(world.stage1.read_text(encoding="utf-8"))
    assert len(rows) == 12
    for row in rows:
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
        assert row["conversations"][0]["value"].count("<image>") == 1
        assert Image.open(world.images / row["image"]).size == (SIDE, SIDE)


@pytest.mark.parametrize("named", [2, 4])
def test_captions_may_leave_colours_and_shapes_out_that_pictures_show(named, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(dataset, "_draw", lambda folder, pictures: shown.extend(pictures.values()))
    made = write_world(tmp_path, seed=3, captions=120, conversations=0, questions=0, named=named)
    rows = json.loads(made.stage1.read_text(encoding="utf-8"))
    said = [re.findall(r"\w+|[^\x00-\x7f]", row["conversations"][1]["value"].lower()) for row in rows]
    for english, chinese in ((COLOURS, COLOUR_ZH), (SHAPES, SHAPE_ZH)):
        told = {name for words in said for name in english if name in words or chinese[name][0] in words}
        pictured = {
            thing.colour if english is COLOURS else thing.shape for scene in shown for thing in scene.things
        }
        assert len(told) == named
        assert pictured == set(english)
    assert len({row["image"] for row in rows}) == len(shown) == 120


def test_stage2_rows_alternate_and_carry_the_image_mark_once_first(world):
    rows = json.loads(world.stage2.read_text(encoding="utf-8"))
    assert sum("image" not in row for row in rows) == len(rows) // 8
    for row in rows:
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        marks = ["<image>" in turn["value"] for turn in row["conversations"]]
        assert marks == [("image" in row)] + [False] * (len(marks) - 1)
        assert "image" not in row or Image.open(world.images / row["image"]).size == (SIDE, SIDE)
    text = world.stage2.read_text(encoding="utf-8")
    assert all(prompt in text for prompt in LETTER_PROMPT.values())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_mmbench_is_circular(world, language):
    groups = defaultdict(dict)
    for row in read_tsv(world.mmbench[language]):
        assert tuple(row) == TSV_COLUMNS
        groups[int(row["index"]) % ROTATION][int(row["index"]) // ROTATION] = row
    assert len(groups) == 21
    for turns in groups.values():
        first = [turns[0][letter] for letter in "ABCD" if turns[0][letter]]
        assert set(turns) == set(range(len(first)))
        right = turns[0][turns[0]["answer"]]
        for k, row in turns.items():
            assert [row[letter] for letter in "ABCD" if row[letter]] == first[k:] + first[:k]
            assert row[row["answer"]] == right


def test_the_tsv_gives_back_pictures_and_answers(world):
    asked = benchmark("en", 21, seed=3)
    rows = {int(row["index"]): row for row in read_tsv(world.mmbench["en"])}
    for base, (scene, question) in enumerate(asked):
        row = rows[base]
        image = Image.open(io.BytesIO(base64.b64decode(row["image"])))
        assert image.tobytes() == render(scene).image.tobytes()
        assert (row["question"], row[row["answer"]]) == (question.text, question.answer)
        assert rows[base + ROTATION]["image"] == str(base)
        assert row["category"] == question.kind


def test_both_languages_ask_the_same(world):
    back = {v: k for table in (COLOUR_ZH, SHAPE_ZH) for k, v in table.items()}
    back |= {v: k for k, v in PLACE_ZH.items()}
    english, chinese = (read_tsv(world.mmbench[language]) for language in ("en", "zh"))
    for one, other in zip(english, chinese, strict=True):
        same = ("index", "answer", "category", "image", "l2-category")
        assert [one[c] for c in same] == [other[c] for c in same]
        if one["category"] in ("colour", "shape", "place"):
            assert [one[c] for c in "ABCD"] == [back.get(other[c], "") for c in "ABCD"]


def test_pictures_drawn_on_several_cores_are_the_same(tmp_path, monkeypatch):
    scenes = {f"{number}.png": sample_scene(random.Random(number)) for number in range(401)}
    dataset._draw(tmp_path, scenes)
    assert len(list(tmp_path.iterdir())) == 401
    monkeypatch.setattr(dataset, "cores", lambda: 1)
    (tmp_path / "alone").mkdir()
    few = dict(list(scenes.items())[::80])
    dataset._draw(tmp_path / "alone", few)
    for name in few:
        assert file_hash(tmp_path / name) == file_hash(tmp_path / "alone" / name)
