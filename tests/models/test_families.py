"""Every family through both stages, as a user types them."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tiny import ALL_DECODERS, llm_folder, tower_folder
from typer.testing import CliRunner

from basic_lite.cli import app


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red one."}]
    found = []
    for number in range(4):
        Image.new("RGB", (30, 30), (200, number, 0)).save(folder / f"{number}.png")
        found.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(found))
    return folder


def basic_lite(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


@pytest.mark.parametrize("decoder", ALL_DECODERS)
def test_both_stages_train_it_in_four_bits(tmp_path, rows, decoder):
    data = ["--data", rows / "rows.json", "--images", rows, "--workers", 0, "--logging-steps", 1]
    pace = ["--global-batch", 2, "--micro-batch", 2, "--max-steps", 1]
    first, second = tmp_path / "one", tmp_path / "two"
    llm = ["--llm", llm_folder(decoder), "--tower", tower_folder(), "--bits", 4, "--precision", "fp32"]
    basic_lite("stage1", *llm, *data, *pace, "--no-quantised-copy", "--out", first)
    basic_lite("stage2", "--lora", "--rank", 4, "--start", first, *data, *pace, "--out", second)
    for folder in (first, second):
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert 0 < abs(log[0]["cosine"]) < 1
        assert json.loads((folder / "manifest.json").read_text())["finished"]
