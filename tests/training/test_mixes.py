"""Several `--data` with weights, through the command: what a run draws, records, resumes and refuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from command import run, settings_shown, stage1, stage2
from PIL import Image

from basic_lite.files import file_hash, read_manifest


@pytest.fixture
def others(world, tmp_path):
    """Eight more captions, of pictures that have the first ones' names in another folder."""
    (tmp_path / "elsewhere").mkdir()
    for number in range(8):
        Image.new("RGB", (20, 20 + number), "black").save(tmp_path / "elsewhere" / f"{number}.png")
    rows = json.loads((world / "captions.json").read_text())[:8]
    (tmp_path / "more.json").write_text(json.dumps([row | {"id": f"m{row['id']}"} for row in rows]))
    return tmp_path / "more.json"


def test_a_mix_is_drawn_recorded_and_resumed(world, tmp_path, others, drawn):
    images = ("--images", world, "--images", tmp_path / "elsewhere")
    more = (
        "--data",
        world / "captions.json",
        "--data",
        f"{others}:0.5",
        *images,
        "--bits",
        16,
        "--epochs",
        2,
        "--save-steps",
        3,
    )
    done = run(*stage1(world, *more, "--out", "whole"), cwd=tmp_path)
    whole = list(drawn)
    shown = settings_shown(done.stdout)
    assert shown["optimizer steps"] == "10"  # 16 + 4 rows an epoch
    epochs = [Counter(row for rows in part for row in rows) for part in (whole[:10], whole[10:])]
    assert all(counts[row] == 1 for counts in epochs for row in range(16))
    halves = [{row for row in counts if row >= 16} for counts in epochs]
    assert sorted(halves[0] | halves[1]) == list(range(16, 24))
    assert [len(half) for half in halves] == [4, 4]
    data = read_manifest(tmp_path / "whole")["data"]
    assert data["path"] == f"{world / 'captions.json'}, {others}:0.5"
    assert data["rows"] == 24
    assert data["sets"] == [
        {"path": str(world / "captions.json"), "sha256": file_hash(world / "captions.json")}
        | {"rows": 16, "weight": 1.0},
        {"path": str(others), "sha256": file_hash(others), "rows": 8, "weight": 0.5},
    ]

    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (tmp_path / "broken/manifest.json").unlink()
    shutil.rmtree(tmp_path / "broken/checkpoint-10")
    drawn.clear()
    run(*stage1(world, *more, "--out", "broken", "--resume"), cwd=tmp_path)
    assert drawn == whole[18:]
    ends = [file_hash(tmp_path / name / "projector.safetensors") for name in ("broken", "whole")]
    assert ends[0] == ends[1]

    (tmp_path / "broken/manifest.json").unlink()
    shutil.rmtree(tmp_path / "broken/checkpoint-10")
    other = [f"{others}:0.75" if value == f"{others}:0.5" else value for value in more]
    refused = run(*stage1(world, *other, "--out", "broken", "--resume"), cwd=tmp_path, expect=2).stderr
    assert refused.count("\n") == 1
    assert "was started with another data" in refused
    assert "'weight': 0.5" in refused
    assert "'weight': 0.75" in refused


def test_stage_2_groups_the_whole_mix(world, tmp_path, stage1_run, others, drawn):
    """Rows of both files share batches, by modality and length; the held-out ones are of both."""
    more = (
        "--data",
        world / "instruct.json",
        "--data",
        f"{others}:2",
        "--images",
        world,
        "--images",
        tmp_path / "elsewhere",
        "--lora",
    )
    run(*stage2(world, *more, "--rank", 2, "--start", stage1_run, "--val-share", "10%"), cwd=tmp_path)
    manifest = read_manifest(tmp_path / "runs/stage2")
    assert manifest["data"]["rows"] == 28
    assert manifest["data"]["held_out"]["rows"] == 3
    counts = Counter(row for rows in drawn for row in rows)
    assert len(counts) == 25
    assert all(count == (2 if row >= 20 else 1) for row, count in counts.items())
    assert any(min(rows) < 16 and max(rows) >= 20 for rows in drawn)
    assert all(len({16 <= row < 20 for row in rows}) == 1 for rows in drawn)  # those have no picture


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--data", "none.json"), "--data none.json does not exist"),
        (("--data", "{others}:0"), "a weight must be above 0 and at most 100, got 0"),
        (("--images", "{world}", "--images", "{world}"), "2 --images for 1 --data: give one for all"),
        (("--data", "{world}/captions.json:2"), "is given twice: a weight repeats its rows"),
        (
            ("--data", "{others}", "--images", "{world}", "--images", "-", "--val-data", "{others}"),
            "each --data has an image folder of its own: add --val-images for",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(world, tmp_path, others, given, reason):
    given = [text.format(world=world, others=others) for text in given]
    refused = run(*stage1(world, "--data", world / "captions.json", *given), cwd=tmp_path, expect=2).stderr
    assert refused.count("\n") == 1
    assert reason in refused
