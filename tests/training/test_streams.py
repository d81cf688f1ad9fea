"""`--stream`: shards that are read as training goes on; the hub is a folder, behind the hub's own loader."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pytest
from command import run, settings_shown, stage1, stage2
from data.made_rows import write_tar
from PIL import Image

from basic_lite.data import stream as streams
from basic_lite.data.readers import open_rows
from basic_lite.data.stream import Position, Stream
from basic_lite.files import file_hash, read_manifest

HUB_ID = "somebody/shards"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(streams, "BLOCK", 5)
    monkeypatch.setattr(streams, "LEAST", 20)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def png(number: int) -> bytes:
    whole = io.BytesIO()
    Image.new("RGB", (20 + number, 30), (number * 9, 90, 200)).save(whole, "PNG")
    return whole.getvalue()


def turns(number: int) -> list[dict]:
    said = "a red one " * (1 + number % 3)
    return [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": said.strip()}]


def rows_of(numbers: range) -> list[dict]:
    picture = [{"bytes": png(number), "path": None} for number in numbers]
    rows = [{"id": f"r{n}", "image": picture[n - numbers.start], "conversations": turns(n)} for n in numbers]
    return rows


def parquet(folder: Path, shards: int = 3, each: int = 7) -> Path:
    folder.mkdir()
    for shard in range(shards):
        made = datasets.Dataset.from_list(rows_of(range(shard * each, (shard + 1) * each)))
        made.cast_column("image", datasets.Image()).to_parquet(folder / f"train-{shard}.parquet")
    return folder


def webdataset(folder: Path, shards: int = 3, each: int = 7) -> Path:
    folder.mkdir()
    for shard in range(shards):
        members = {}
        for n in range(shard * each, (shard + 1) * each):
            members[f"r{n}.png"] = png(n)
            members[f"r{n}.json"] = json.dumps({"conversations": turns(n)}).encode()
        write_tar(folder / f"{shard}.tar", members)
    return folder


@pytest.fixture(params=[parquet, webdataset])
def shards(request, tmp_path: Path) -> Path:
    return request.param(tmp_path / "shards")


@pytest.fixture
def hub(shards, monkeypatch):
    """A hub whose loader reads the folder as it would read the hub's files: one after another."""
    real, asked = datasets.load_dataset, []

    def load_dataset(name, config=None, **how):
        if name != HUB_ID:
            return real(name, config, **how)
        assert how["streaming"]
        asked.append(name)
        kind = "parquet" if list(shards.glob("*.parquet")) else "webdataset"
        return real(kind, data_files=sorted(map(str, shards.iterdir())), **how)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def ids(stream: Stream, seed: int, blocks: int, begin: Position | None = None) -> list[list[str]]:
    read = stream.blocks(seed, begin or Position())
    return [[stream.parse(row).id for row in next(read)[1]] for _ in range(blocks)]


def test_blocks_go_through_all_shards_and_go_on_where_they_were(shards):
    """21 rows in blocks of 5 and one of 1, pass after pass, the shards in another order each time."""
    stream = Stream(shards)
    seen = ids(stream, 3, 10)
    assert [len(block) for block in seen] == [5, 5, 5, 5, 1] * 2
    for one_pass in (seen[:5], seen[5:]):
        assert Counter(name for block in one_pass for name in block) == Counter(f"r{n}" for n in range(21))
    assert seen[:5] != seen[5:]
    assert ids(stream, 4, 5) != seen[:5]
    read = stream.blocks(3, Position())
    for number in range(9):
        start, _ = next(read)
        assert ids(Stream(shards), 3, 10 - number, start) == seen[number:]
        assert start.number == sum(map(len, seen[:number]))
    kinds = {type(image.data) for sample in stream.beginning(3) for image in sample.images}
    assert kinds == {bytes}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_is_resumed_to_the_same_bytes(hub, world, tmp_path, drawn, workers):
    more = (
        "--data",
        HUB_ID,
        "--stream",
        "--bits",
        16,
        "--max-steps",
        7,
        "--save-steps",
        3,
        "--workers",
        workers,
    )
    done = run(*stage1(world, *more, "--out", "whole"), cwd=tmp_path)
    assert hub
    assert settings_shown(done.stdout)["optimizer steps"] == "7"
    whole = list(drawn)
    numbers = [row for rows in whole for row in rows]
    assert sorted(numbers[:20]) != numbers[:20]
    assert len(set(numbers)) == 28  # 21 of the first pass and 7 of the next
    assert set(numbers[:20]) <= set(range(21))
    data = read_manifest(tmp_path / "whole")["data"]
    assert data["path"] == HUB_ID
    assert data["stream"] is True
    counts = {"seen": 28, "truncated": 0, "replaced": 0, "left_out": 0}
    assert read_manifest(tmp_path / "whole")["rows"] == counts
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (tmp_path / "broken/manifest.json").unlink()
    shutil.rmtree(tmp_path / "broken/checkpoint-7")
    drawn.clear()
    resumed = ("--out", "broken", "--resume")
    run(*stage1(world, *more, *resumed), cwd=tmp_path)
    assert drawn == whole[12:]
    ends = [file_hash(tmp_path / name / "projector.safetensors") for name in ("broken", "whole")]
    assert ends[0] == ends[1]


def test_a_step_has_the_same_rows_whatever_the_micro_batch(shards, world, tmp_path, drawn, stage1_run):
    """In stage 2 the longest rows of a step come first."""
    more = ("--data", shards, "--stream", "--lora", "--rank", 2, "--start", stage1_run, "--max-steps", 3)
    steps = []
    for micro in (1, 2, 4):
        run(*stage2(world, *more, "--out", f"out{micro}", "--micro-batch", micro), cwd=tmp_path)
        steps.append([drawn[at : at + 4 // micro] for at in range(0, len(drawn), 4 // micro)])
        drawn.clear()
    flat = [[[row for rows in step for row in rows] for step in run_] for run_ in steps]
    assert flat[0] == flat[1] == flat[2]
    stream = Stream(shards)
    order = [name for block in ids(stream, 0, 2) for name in block]
    lengths = [int(name[1:]) % 3 for name in order]
    for step in flat[0][:1]:
        assert [lengths[row] for row in step] == sorted((lengths[row] for row in step), reverse=True)


def test_bad_rows_of_a_stream(tmp_path, world):
    """One without an answer is left out, one with a broken picture replaced by another of its batch."""
    rows = rows_of(range(12))
    rows[3]["conversations"][1]["value"] = " "
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:50]
    (tmp_path / "bad").mkdir()
    made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "bad/train-0.parquet")
    more = ("--data", tmp_path / "bad", "--stream", "--bits", 16, "--max-steps", 3, "--global-batch", 4)
    refused = run(*stage1(world, *more, "--bad-budget", 0.05), cwd=tmp_path, expect=2).stderr
    assert refused.count("\n") == 1
    assert "rows of the stream turned out bad, more than the allowed 5.0%" in refused
    shutil.rmtree(tmp_path / "runs")
    run(*stage1(world, *more, "--bad-budget", 0.2), cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/stage1/bad.jsonl").read_text().splitlines()]
    codes = {(line["code"], "replaced_by" in line) for line in lines}
    assert codes == {("empty_answer", False), ("undecodable_image", True)}
    counts = read_manifest(tmp_path / "runs/stage1")["rows"]
    assert counts["replaced"] == 1
    assert counts["left_out"] in (1, 2)  # a second time in the second pass, if it is reached
    assert counts["seen"] == 11


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((), "say where to stop with --max-steps"),
        (("--max-steps", 2, "--val-share", "10%"), "with --stream give --val-data FILE"),
        (("--max-steps", 2, "--data", "{world}/captions.json"), "--stream reads one --data without a weight"),
    ],
)
def test_what_a_stream_cannot_is_refused_in_one_line(tmp_path, world, given, reason):
    shards = parquet(tmp_path / "shards", 1, 2)
    given = [str(value).format(world=world) for value in given]
    refused = run(*stage1(world, "--data", shards, "--stream", *given), cwd=tmp_path, expect=2).stderr
    assert refused.count("\n") == 1
    assert reason in refused


def test_what_is_no_stream_is_refused_in_one_line(tmp_path, world):
    weighted = f"{parquet(tmp_path / 'shards', 1, 2)}:0.5"
    odd = tmp_path / "odd"
    odd.mkdir()
    datasets.Dataset.from_list([{"prompt": "Hi", "reply": "you"}] * 3).to_parquet(odd / "a.parquet")
    for data, reason in (
        (world / "captions.json", "is read row by row anyway"),
        (weighted, "--stream reads one --data without a weight"),
        (odd, "3 of the first 3 rows of"),
        ("nobody/nothing", "no data set at nobody/nothing"),
    ):
        more = ("--data", data, "--stream", "--max-steps", 2)
        refused = run(*stage1(world, *more), cwd=tmp_path, expect=2).stderr
        assert refused.count("\n") == 1
        assert reason in refused


def test_shards_of_the_hub_that_are_loaded_whole(tmp_path):
    """`datasets` makes columns of a shard's members: the same rows as those of the shards themselves."""
    folder = webdataset(tmp_path / "shards")
    stored = datasets.load_dataset("webdataset", data_files=[str(folder / "0.tar")], split="train")
    stored.save_to_disk(tmp_path / "saved")
    whole, direct = open_rows(tmp_path / "saved"), open_rows(folder / "0.tar")
    assert [sample.id for sample in whole] == [sample.id for sample in direct]
    assert [sample.turns for sample in whole] == [sample.turns for sample in direct]
    assert [s.images[0].data for s in whole] == [s.images[0].data for s in direct]
    assert whole.index.images.tolist() == [1] * 7
