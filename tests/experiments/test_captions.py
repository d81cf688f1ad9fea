"""Measuring on rows of a file, against one row at a time with the model's own loss."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_assembled

from basic_lite import BasicSupervision
from basic_lite.data.batches import Collator
from basic_lite.data.dataset import SupervisedRows
from basic_lite.data.readers import open_rows
from basic_lite.data.templates import TEMPLATES
from basic_lite.experiments.measure import rows_of_file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for number in range(7):
        picture = Image.effect_noise((30, 30), 40 + 20 * number).convert("RGB")
        picture.save(folder / f"{number}.png")
        said = ["red thing", "green one here", "blue", "white thing over there"][number % 4]
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": said}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    rows.append({"id": "text", "conversations": [{**t, "value": "no picture"} for t in turns]})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def test_every_figure_is_that_of_the_row_alone(data):
    assembled = tiny_assembled()
    measures = {m.name: m for m in rows_of_file(assembled, str(data / "rows.json"), str(data), 99, "rows")}
    assert {len(measure.values) for measure in measures.values()} == {7}
    opened, transform = open_rows(data / "rows.json", data), assembled.transform("crop")
    dataset = SupervisedRows(
        opened,
        template=TEMPLATES["plain"],
        tokenizer=assembled.tokenizer,
        transform=transform,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
    )
    collate = Collator(pad_token_id=assembled.pad_token_id, image_token_id=assembled.image_token_id)
    supervision = BasicSupervision(assembled.model)
    for row in range(7):
        batch = collate([dataset[row]])
        pixels = transform.normalise(batch["pixel_values"], torch.float32)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with torch.no_grad(), supervision:
            loss = assembled.model(**inputs, pixel_values=pixels, use_cache=False).loss
        seen = supervision.refinement
        cosine = F.cosine_similarity(seen.initial, seen.target, dim=-1).mean()
        wanted = {"caption_loss": loss, "cosine": cosine}
        wanted |= {name: supervision.terms[name].total for name in ("das", "sds")}
        for name, value in wanted.items():
            assert measures[name].values[row] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_rows_are_spread_evenly_over_the_file(data):
    few = rows_of_file(tiny_assembled(), str(data / "rows.json"), str(data), 3, "rows")[0].values
    every = rows_of_file(tiny_assembled(), str(data / "rows.json"), str(data), 99, "rows")[0].values
    assert few == pytest.approx([every[0], every[3], every[6]], rel=1e-5)


def test_a_file_without_pictures_is_refused(data, tmp_path):
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hello"}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": "0", "conversations": turns}]))
    with pytest.raises(ValueError, match="has no row with a picture"):
        rows_of_file(tiny_assembled(), str(tmp_path / "text.json"), None, 3, "rows")


def test_words_are_read_where_the_right_one_is_likeliest(data):
    """Every answer begins with one of four letters, a token each."""
    assembled = tiny_assembled()
    words = ("r", "g", "b", "w")
    found = rows_of_file(assembled, str(data / "rows.json"), str(data), 99, "rows", words=words)
    (read,) = (measure for measure in found if measure.name == "read")
    ids = assembled.tokenizer.convert_tokens_to_ids(list(words))
    transform = assembled.transform("crop")
    wanted = []
    for number in range(7):
        with Image.open(data / f"{number}.png") as picture:
            pixels = transform.normalise(transform(picture.convert("RGB"))[None], torch.float32)
        prompt = torch.tensor([[1, *[assembled.image_token_id] * assembled.tokens_per_image]])
        with torch.no_grad():
            logits = assembled.model(input_ids=prompt, pixel_values=pixels).logits[0, -1]
        wanted.append(100.0 * (max(range(4), key=lambda i: logits[ids[i]]) == number % 4))
    assert read.values == wanted
    assert 0 < sum(wanted) < 700, "all or nothing would tell nothing"
