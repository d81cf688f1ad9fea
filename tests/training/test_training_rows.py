"""Which rows a training reads, and in which order: through the command, on a mix of both modalities."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from command import run
from PIL import Image
from tiny import llm_folder, tower_folder

from basic_lite.training.trainer import BasicTrainer


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    """Rows with a picture and rows without, of which those without have the longer texts; row 5 is broken."""
    Image.new("RGB", (30, 40), "teal").save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    rows = []
    for number in range(40):
        image = number % 3 > 0
        # 24 bytes, hence tokens, of text more in rows without a picture, against 36 patches.
        question, answer = "Say" + " it" * (number % 5), "yes " * (2 + number % 7 - 6 * image + 6)
        turns = [{"from": "human", "value": "<image>\n" * image + question}, {"from": "gpt", "value": answer}]
        row = {"id": f"r{number}", "conversations": turns}
        rows.append(row | {"image": "broken.png" if number == 5 else "a.png"} if image else row)
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    (tmp_path / "captions.json").write_text(json.dumps([row for row in rows if "image" in row]))
    return tmp_path


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], torch.Size, int]]:
    """Row numbers, shape and pictures of every batch that is trained on."""
    seen: list[tuple[list[int], torch.Size, int]] = []
    real = BasicTrainer.compute_loss

    def compute_loss(
        self: BasicTrainer, model: torch.nn.Module, inputs: dict, *more: object, **named: object
    ):
        seen.append((list(inputs["rows"]), inputs["input_ids"].shape, inputs["layout"].images))
        return real(self, model, inputs, *more, **named)

    monkeypatch.setattr(BasicTrainer, "compute_loss", compute_loss)
    return seen


def stage2(mix: Path, *more: object) -> None:
    data = ["--data", mix / "mix.json", "--global-batch", 4, "--micro-batch", 2, "--workers", 0]
    run("stage2", *data, "--bad-budget", 0.1, "--logging-steps", 1, *more, cwd=mix)


@pytest.fixture
def stage1(mix: Path, batches: list) -> None:
    models = ["--llm", llm_folder(), "--tower", tower_folder(), "--precision", "fp32", "--bits", 16]
    models += ["--image-size", 48]
    data = ["--data", mix / "captions.json", "--global-batch", 4, "--micro-batch", 2, "--workers", 0]
    run("stage1", *models, *data, "--bad-budget", 0.1, "--max-steps", 1, cwd=mix)
    batches.clear()


@pytest.mark.usefixtures("stage1")
def test_the_largest_batch_comes_first_and_bad_rows_never_do(mix, batches):
    stage2(mix, "--epochs", 2, "--lora", "--rank", 2)
    epochs = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    for epoch in epochs:
        assert epoch[0][1].numel() == max(shape.numel() for _, shape, _ in epoch)
        assert epoch[0][2] == 2  # with the pictures' tokens it is one of these
        assert sorted(number for rows, _, _ in epoch for number in rows) == [*range(5), *range(6, 40)]
    assert [rows for rows, _, _ in epochs[0]] != [rows for rows, _, _ in epochs[1]]
    line = json.loads((mix / "runs/stage2/bad.jsonl").read_text())
    assert (line["row"], line["code"]) == (5, "undecodable_image")
    assert json.loads((mix / "runs/stage2/manifest.json").read_text())["rows"]["left_out"] == 1


@pytest.mark.usefixtures("stage1")
def test_a_resumed_run_keeps_its_rows_whatever_is_found_later(mix, batches):
    stage2(mix, "--lora", "--rank", 2, "--out", "whole", "--save-steps", 5)
    whole = list(batches)
    shutil.copytree(mix / "whole", mix / "broken")
    for name in ("manifest.json", "checkpoint-10"):
        path = mix / "broken" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [path.name for path in (mix / "broken").glob("checkpoint-*")] == ["checkpoint-5"]
    shutil.copy(mix / "a.png", mix / "broken.png")  # repaired, and a check would find nothing
    batches.clear()
    stage2(mix, "--lora", "--rank", 2, "--out", "broken", "--save-steps", 5, "--resume")
    assert batches == whole[10:]
    names = ("adapter_model.safetensors", "projector.safetensors")
    names = [name for name in names if (mix / "whole" / name).is_file()]
    assert names
    assert all((mix / "whole" / n).read_bytes() == (mix / "broken" / n).read_bytes() for n in names)


def test_rows_that_do_not_fit_are_known_before_a_weight_is_read(mix):
    """A 7B takes minutes to load: what the tokenizer can tell is told before."""
    llm = Path(shutil.copytree(llm_folder(), mix / "llm"))
    (llm / "model.safetensors").write_bytes(b"not to be opened")
    models = ["--llm", llm, "--tower", tower_folder(), "--precision", "fp32", "--bits", 16]
    command = ["stage1", *models, "--data", mix / "captions.json", "--bad-budget", 0.1, "--workers", 0]
    errors = run(*command, "--max-length", 8, cwd=mix, expect=2).stderr
    assert "26 of 26 rows of" in errors
    assert "cuts an image block" in errors
    assert "no weights can be loaded" in run(*command, cwd=mix, expect=2).stderr  # the next thing, else


@pytest.mark.usefixtures("stage1")
def test_linked_folders_are_read_on_demand(mix, batches):
    (mix / "elsewhere").mkdir()
    for name in ("a.png", "broken.png"):
        (mix / name).rename(mix / "elsewhere" / name)
    (mix / "images").mkdir()
    (mix / "images/coco").symlink_to(mix / "elsewhere", target_is_directory=True)
    rows = json.loads((mix / "captions.json").read_text())
    for row in rows:
        row["image"] = "coco/a.png"
    (mix / "mix.json").write_text(json.dumps(rows))
    data = ("--data", mix / "mix.json", "--images", mix / "images", "--max-steps", 1, "--workers", 0)
    batch = ("--global-batch", 4, "--micro-batch", 2, "--lora", "--rank", 2)
    refused = run("stage2", *data, *batch, cwd=mix, expect=2)
    assert "26 path_outside_root" in refused.stderr
    assert "by a link; --follow-links allows it" in refused.stderr
    run("stage2", *data, *batch, "--follow-links", cwd=mix)
    assert [images for _, _, images in batches] == [2, 2]


@pytest.mark.usefixtures("stage1")
def test_rated_rows_of_a_data_set(mix, batches):
    ratings = [f"{name}_min" for name in ("relevance", "formatting")]
    picture = {"bytes": (mix / "a.png").read_bytes(), "path": None}
    rows = [
        {"images": [picture], "texts": [{"user": "What?", "assistant": f"a {n}"}], "source": "made"}
        | dict.fromkeys(ratings, 1 + n % 5)
        for n in range(20)
    ]
    made = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    made.save_to_disk(mix / "rated")
    data = ("--data", mix / "rated", "--workers", 0, "--global-batch", 4, "--micro-batch", 2)
    run("stage2", *data, "--lora", "--rank", 2, "--min-rating", 4, cwd=mix)
    manifest = json.loads((mix / "runs/stage2/manifest.json").read_text())
    assert manifest["data"]["rows"] == sum(images for _, _, images in batches) == 8
    assert manifest["training"]["min_rating"] == 4
    refused = run("stage2", "--data", mix / "mix.json", "--min-rating", 4, "--out", "x", cwd=mix, expect=2)
    assert "has no ratings" in refused.stderr
