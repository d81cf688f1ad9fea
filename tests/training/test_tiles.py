"""Runs with tiles, from the command to the answers of benchmark, chat and analysis."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import make_world, run, settings_shown, stage1, stage2
from PIL import Image
from processes import finish, launch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import llm_folder, tiny_assembled, tower_folder

from basic_lite import chat, files
from basic_lite.analysis.inspection import InspectionSettings, inspect_layers
from basic_lite.analysis.samples import Sample
from basic_lite.data import tiles
from basic_lite.data.checks import check_data, unfit_findings
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.readers import open_rows
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.tiles import Block, Tiling
from basic_lite.models import quantised
from basic_lite.models.checkpoint import load_run
from basic_lite.models.llava import Sources

SIZES = [(48, 24), (24, 48), (52, 47), (90, 31), (300, 7), (20, 30)]
"""Width and height."""


@pytest.fixture(scope="module")
def sized(tmp_path_factory):
    """The small folder of data with pictures of several shapes, some rows with two of them."""
    world = make_world(tmp_path_factory.mktemp("sized"))
    for number in range(16):
        path = world / f"{number}.png"
        Image.open(path).resize(SIZES[number % len(SIZES)]).save(path)
    rows = json.loads((world / "instruct.json").read_text())
    for row in rows[:4]:
        row["image"] = [row["image"], "5.png"]
        row["conversations"][0]["value"] = "<image>\n<image>\nWhat is it?"
    (world / "instruct.json").write_text(json.dumps(rows))
    lines = [line.split("\t") for line in (world / "bench.tsv").read_text().splitlines()]
    cell = lines[0].index("image")
    for number, line in enumerate(lines[1:]):
        if len(line[cell]) > 9:  # a picture, not the number of the question that has it
            line[cell] = base64.b64encode((world / f"{number // 4}.png").read_bytes()).decode()
    (world / "bench.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return world


@pytest.fixture(scope="module")
def trained(sized, tmp_path_factory):
    """Both stages, three and two steps, with tiles and in 4 bits."""
    folder = tmp_path_factory.mktemp("trained")
    more = ("--max-steps", 3, "--save-steps", 2, "--tiles", 4)
    said = run(*stage1(sized, *more, "--val-share", "20%"), cwd=folder).stdout
    run(*stage2(sized, "--lora", "--max-steps", 2, "--rank", 4), cwd=folder)
    return folder, said


def test_a_run_says_its_tiles_and_stage_2_takes_them_over(trained):
    folder, said = trained
    assert settings_shown(said)["tiles"] == "4"
    for stage in ("stage1", "stage2"):
        manifest = files.read_manifest(folder / "runs" / stage)
        assert manifest["sources"]["tiles"] == 4
        assert manifest["grids"] == [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]
        assert manifest["finished"]
        assert manifest["rows"]["replaced"] == manifest["rows"]["left_out"] == 0
    newlines = []
    for path, name in (
        ("stage1/projector.safetensors", "multi_modal_projector.image_newline"),
        ("stage2/adapter_model.safetensors", "base_model.model.model.multi_modal_projector.image_newline"),
    ):
        with safe_open(folder / "runs" / path, "pt") as file:
            newlines.append(file.get_tensor(name))
    assert not torch.equal(*newlines)  # it is trained in both stages
    lines = (folder / "runs/stage1/log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row.get("das", row.get("val_das")) > 0 for row in rows)
    assert any(row.get("val_cosine") is not None for row in rows)


def test_a_resumed_run_ends_with_the_same_bytes(sized, trained, tmp_path):
    whole = trained[0] / "runs/stage1"
    out = tmp_path / "runs/stage1"
    shutil.copytree(whole, out)
    for path in (*out.glob("*.safetensors"), out / files.MANIFEST, out / "checkpoint-3"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    more = ("--max-steps", 3, "--save-steps", 2, "--resume", "--val-share", "20%")
    refused = run(*stage1(sized, *more, "--tiles", 2), cwd=tmp_path, expect=2).stderr
    assert "started with another sources: {'tiles': 4}, now {'tiles': 2}" in refused
    refused = run(*stage1(sized, *more), cwd=tmp_path, expect=2).stderr
    assert "started with another sources: {'tiles': 4}, now {'tiles': None}" in refused
    run(*stage1(sized, *more, "--tiles", 4), cwd=tmp_path)
    assert files.file_hash(out / files.PROJECTOR) == files.file_hash(whole / files.PROJECTOR)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_exported_folder_begins_as_the_run_it_came_from(sized, tmp_path, monkeypatch):
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    run(*stage1(sized, "--bits", 16, "--tiles", 4, "--max-steps", 2), cwd=tmp_path)
    first, newline = "runs/stage1", "multi_modal_projector.image_newline"
    run("export", first, "whole", "--dtype", "fp32", cwd=tmp_path)
    base = ("--lora", "--rank", 4, "--dropout", 0, "--bits", 16, "--save-steps", 1, "--learning-rate", 1e-3)
    for name, start in (("run", first), ("model", "whole")):
        made = stage2(sized, *base, "--max-steps", 2, "--start", start, "--out", name)
        said = run(*made, cwd=tmp_path).stdout
        assert settings_shown(said)["tiles"] == "4"
    for ours, theirs in zip(log_of(tmp_path / "model"), log_of(tmp_path / "run"), strict=True):
        for key in ("loss", "lm", "das", "sds", "grad_norm"):
            assert (ours[key] or 0.0) == pytest.approx(theirs[key] or 0.0, rel=1e-5), key
    manifest = files.read_manifest(tmp_path / "model")
    assert (manifest["from"]["model"], manifest["sources"]["tiles"]) == ("whole", 4)
    # Lengthened, and exported again: with the newline that it has learnt, and the start's grids.
    made[made.index("--max-steps") + 1] = 3
    assert "lengthened from 2 to 3 steps" in " ".join(run(*made, "--resume", cwd=tmp_path).stdout.split())
    run("export", "model", "again", "--dtype", "fp32", cwd=tmp_path)
    assert json.loads((tmp_path / "again/export.json").read_text())["parity"]["gap"] < 1e-4
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "again")]
    assert configs[0]["image_grid_pinpoints"] == configs[1]["image_grid_pinpoints"]
    then, trained_on, now = (
        load_file(tmp_path / path)[name]
        for path, name in (
            ("whole/model.safetensors", "image_newline"),
            ("model/adapter_model.safetensors", f"base_model.model.model.{newline}"),
            ("again/model.safetensors", "image_newline"),
        )
    )
    assert torch.equal(trained_on, now)
    assert 0 < (now - then).abs().max() < 0.1


def test_grids_of_another_version_are_refused(trained, tmp_path):
    out = shutil.copytree(trained[0] / "runs/stage1", tmp_path / "run")
    manifest = json.loads((out / files.MANIFEST).read_text())
    (out / files.MANIFEST).write_text(json.dumps(manifest | {"grids": [[1, 2]]}))
    with pytest.raises(ValueError, match=r"trained with tiles in the grids \[\[1, 2\]\], and this version"):
        load_run(out)


def test_a_benchmark_in_any_batch_gets_the_same_answers(sized, trained, short_answers):
    folder, answers = trained[0], []
    base = ("eval", "mmbench", "--run", "runs/stage2", "--data", sized / "bench.tsv", "--any-size")
    for size in (1, 5):
        out = folder / f"answers-{size}"
        run(*base, "--batch-size", size, "--limit", 2, "--out", out, cwd=folder)
        (path,) = out.rglob("*.jsonl")
        lines = map(json.loads, path.read_text().splitlines())
        answers.append({line["question_id"]: line for line in lines})
    assert answers[0] == answers[1]
    assert len(answers[0]) == 8  # two questions, in four orders of their choices
    run(*base, "--answer-by", "likelihood", "--limit", 1, "--out", folder / "letters", cwd=folder)


@pytest.mark.slow
def test_an_exported_folder_answers_as_the_run(sized, trained, short_answers, tmp_path):
    texts, source = [], trained[0] / "runs/stage2"
    base = ("eval", "mmbench", "--data", sized / "bench.tsv", "--any-size", "--limit", 2, "--out")
    run("export", source, "whole", "--dtype", "fp32", "--base", "dequantised", cwd=tmp_path)
    for named in (("--run", source), ("--model", "whole")):
        out = tmp_path / named[0].strip("-")
        run(*base, out, *named, "--batch-size", 3, cwd=tmp_path)
        lines = map(json.loads, next(out.rglob("*.jsonl")).read_text().splitlines())
        texts.append({line["question_id"]: line["text"] for line in lines})
    assert texts[0] == texts[1]
    assert len(texts[0]) == 8


def test_a_chat_shows_pictures_of_different_grids(sized, trained, monkeypatch):
    assembled, _ = load_run(trained[0] / "runs/stage2")
    rows, real = [], chat.one_row
    monkeypatch.setattr(chat, "one_row", lambda *given: rows.append(real(*given)) or rows[-1])
    talk = chat.Chat(assembled, max_new_tokens=3)
    talk.show(sized / "0.png")
    talk.show(sized / "2.png")
    assert isinstance("".join(talk.say("What differs?")), str)
    assert [len(picture.pixels) for picture in talk.shown] == [3, 5]
    assert rows[0]["image_sizes"].tolist() == [[24, 48], [47, 52]]
    assert int((rows[0]["input_ids"] == assembled.image_token_id).sum()) == (9 + 3 * 7) + (9 + 6 * 7)


def test_an_analysis_matches_every_patch_and_no_newline(sized, trained):
    assembled, _ = load_run(trained[0] / "runs/stage1")
    samples = [
        Sample(f"{number}", lambda number=number: Image.open(sized / f"{number}.png"), "What?", "a red one")
        for number in (0, 2, 3)
    ]
    settings = InspectionSettings(TEMPLATES["plain"], "crop", max_new_tokens=2)
    results = inspect_layers(assembled, samples, [None] * 3, settings)
    assert [depth.patches for depth in results.depths] == [27 + 45 + 36] * len(results.depths)
    assert [len(tokens) for tokens in results.views[0][0]] == [9] * len(results.depths)


def test_lengths_are_those_of_the_encoded_rows(sized):
    """What batches are grouped by, and what is too long, is known before a picture is decoded."""
    assembled = tiny_assembled(tiles=4)
    rows = open_rows(sized / "instruct.json")
    rows.sizes = tiles.picture_sizes(rows)
    ids = (assembled.tokenizer, assembled.image_token_id, assembled.tokens_per_image)
    encoder = TextEncoder(assembled.template, *ids, None, assembled.tiling)
    dataset = assembled.supervised(rows, assembled.template, assembled.transform("pad"), max_length=None)
    counted = encoder.image_tokens(rows).tolist()
    items = [dataset[row] for row in range(len(rows))]
    assert counted == [item["input_ids"].count(assembled.image_token_id) for item in items]
    assert len(set(counted)) > 4
    assert counted[-1] == 0
    ends = [len(ids) - ids[::-1].index(3) if 3 in ids else 0 for ids in (item["input_ids"] for item in items)]
    too_long = [row for row, end in enumerate(ends) if end > 60]
    assert 0 < len(too_long) < len(rows)
    unfit = unfit_findings(rows, replace(encoder, max_length=60))
    assert [finding.row for finding in unfit if "cuts an image block" in finding.detail] == too_long
    assert [rows.sizes_of(row) for row in range(5)] == [
        [list(size) for size in item["sizes"]] for item in items[:5]
    ]


def test_the_check_finds_the_rows_that_are_too_long_with_tiles(sized, tmp_path):
    """With the tokenizer the very rows that training cuts; without it, by estimates."""
    assembled = tiny_assembled(tiles=4)
    rows = open_rows(sized / "instruct.json")
    rows.sizes = tiles.picture_sizes(rows)
    dataset = assembled.supervised(rows, assembled.template, assembled.transform("pad"), max_length=None)
    lengths = [len(dataset[row]["input_ids"]) for row in range(len(rows))]
    limit = max(lengths) - 1
    given = {"pictures": None, "max_length": limit, "tokens_per_image": 9, "tiling": assembled.tiling}
    encoder = replace(assembled.text_encoder(assembled.template, limit), tiling=None)
    found = check_data(rows, encoder=encoder, **given)
    cut = {finding.row for finding in found if finding.code == "too_long"}
    assert cut == {row for row, length in enumerate(lengths) if length > limit}
    estimated = check_data(rows, **given | {"max_length": 48})  # 51 tokens are a picture of four tiles
    assert 2 in {finding.row for finding in estimated if finding.code == "no_supervision"}
    command = ("data", "check", sized / "instruct.json", "--tiles", 4, "--tower", tower_folder())
    assert "20 rows in" in run(*command, "--images", sized, cwd=tmp_path).stdout
    refused = run(*command, cwd=tmp_path, expect=2).stderr
    assert "error: --tiles go by the pictures' sizes: add --images FOLDER" in refused


def test_the_check_counts_joined_patches_as_training_does(sized, tmp_path):
    assembled = tiny_assembled(tiles=4, image_size=32, pool=2)
    rows = open_rows(sized / "instruct.json")
    rows.sizes = tiles.picture_sizes(rows)
    dataset = assembled.supervised(rows, assembled.template, assembled.transform("pad"), max_length=None)
    lengths = [len(dataset[row]["input_ids"]) for row in range(len(rows))]
    limit = sorted(lengths)[-4]
    assert limit < max(lengths)
    more = assembled.tiling.largest().tokens - assembled.tokens_per_image  # which tiles may take on top
    command = ("data", "check", sized / "instruct.json", "--images", sized, "--report", "found.json")
    command += ("--tower", tower_folder(), "--tokenizer", llm_folder(), "--max-length", limit - more)
    pooled = ("--tiles", 4, "--pool", 2, "--image-size", 32)
    run(*command, *pooled, cwd=tmp_path, expect=1)
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    cut = {row["row"] for row in found if row["code"] in ("too_long", "no_supervision")}
    assert cut == {row for row, length in enumerate(lengths) if length > limit}
    said = run(*command, *pooled[:4], cwd=tmp_path, expect=2).stderr
    assert "has 3 a side at 24 pixels: add --image-size 32, or leave --pool out" in said


@pytest.mark.slow
def test_two_processes_with_tiles_make_the_update_of_one(sized, tmp_path):
    more = ("--bits", 16, "--tiles", 4, "--sds-text", "skip", "--max-steps", 3)
    run(*stage1(sized, *more, "--micro-batch", 4, "--out", "one"), cwd=tmp_path)
    finish(launch(stage1(sized, *more, "--out", "two"), tmp_path))
    one, two = (load_file(tmp_path / name / "projector.safetensors") for name in ("one", "two"))
    assert len(one) == 5
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    logs = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").open()] for n in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        for key in ("lm", "das", "sds", "cosine", "grad_norm"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4), key


def test_sizes_are_read_once_and_kept(sized, monkeypatch, tmp_path):
    shutil.copytree(sized, tmp_path / "data")
    (tmp_path / "data/7.png").write_bytes(b"no picture")
    first = tiles.picture_sizes(open_rows(tmp_path / "data/captions.json"))
    assert first.tolist() == [
        [0, 0] if row == 7 else [*reversed(SIZES[row % len(SIZES)])] for row in range(16)
    ]
    monkeypatch.setattr(tiles, "picture_size", None)
    again = tiles.picture_sizes(open_rows(tmp_path / "data/captions.json"))
    assert np.array_equal(first, again)


@pytest.mark.parametrize(("most", "grids"), [(2, 2), (3, 4), (4, 5), (9, 12), (12, 14)])
def test_grids_and_the_largest_block(most, grids):
    tiling = Tiling.up_to(most, 336, 14)
    assert len(tiling.grids) == len(set(tiling.grids)) == grids
    assert all(2 <= rows * columns <= most for rows, columns in tiling.grids)
    sizes = [(height, width) for height in range(100, 2000, 171) for width in range(100, 2000, 173)]
    exact = [(rows * 336, columns * 336) for rows, columns in tiling.grids]
    largest = max((tiling.block(size) for size in sizes + exact), key=lambda block: block.tokens)
    assert tiling.largest() == largest
    if most == 4:
        assert largest == Block(576, 48, 48, 5)
        assert largest.tokens == 576 + 48 * 49


def test_a_tower_that_is_not_square_is_refused_before_weights_are_read(sized, tmp_path):
    odd = shutil.copytree(tower_folder(), tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"patch_size": [8, 4]}))
    for path in odd.glob("*.safetensors"):
        path.unlink()
    arguments = stage1(sized, "--tiles", 4)
    arguments[arguments.index("--tower") + 1] = odd
    refused = run(*arguments, cwd=tmp_path, expect=2).stderr
    assert refused.count("\n") == 1
    assert "--tiles takes a tower of square pictures and patches" in refused


def test_a_tower_of_any_size_works_at_its_own(sized, tmp_path):
    arguments = stage1(sized, "--tiles", 4, "--image-size", 32)
    arguments[arguments.index("--tower") + 1] = tower_folder("dinov2")
    refused = run(*arguments, cwd=tmp_path, expect=2).stderr
    assert "with --tiles a tower of this kind works at its own size: add --image-size 24" in refused


def test_more_tokens_than_the_decoder_has_positions_are_refused(sized, tmp_path):
    refused = run(*stage1(sized, "--tiles", 16), cwd=tmp_path, expect=2).stderr
    assert "a picture of --tiles 16 takes up to 165 tokens, and the decoder was made for 128" in refused


def test_no_tiles_at_all_are_refused():
    with pytest.raises(ValueError, match="tiles must be 1"):
        Sources("llm", "tower", tiles=0)
