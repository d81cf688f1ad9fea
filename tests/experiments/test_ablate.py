"""`basic-lite ablate` as a user types it, in a very small world."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shlex
import threading
from pathlib import Path

import pytest
from command import interrupt_when, run
from embedded import needs_parts, small_world  # noqa: F401 (a fixture)
from PIL import Image
from tiny import llm_folder, tower_folder

import basic_lite

pytestmark = [needs_parts, pytest.mark.usefixtures("small_world")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "plans are layers, losses"),
        (["losses", "--seeds", "0"], "--seeds must be at least 1"),
        (["losses", "--jobs", "0"], "--jobs must be at least 1"),
        (["losses", "--variants", "both;x"], "no variant 'x'"),
        (["losses", "--foo", "3"], "stage1: No such option"),
        (["losses", "--das-weight", "2"], "sets --das-weight itself"),
        (["weights", "--layers", "9"], "layers must be between 1 and 8"),
        (["losses", "--model", "nothing"], "no model is named 'nothing'"),
        (["losses", "--data", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_a_user_can_have_wrong_is_said_before_any_work(words, said, tmp_path):
    assert said in run("ablate", *words, cwd=tmp_path, expect=2).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_plan_from_end_to_end(tmp_path):
    words = ["ablate", "losses", "--variants", "both", "--out", "a", "--jobs", "2", "--weighting", "linear"]
    words += ["--stage", "2", "--stage2", "--lora --max-steps 1 --global-batch 4", "--global-batch", "8"]
    words += ["--max-steps", "2"]
    said = run(*words, "--dry-run", cwd=tmp_path).stdout
    assert "to do: basic=False, seed 0" in said
    assert not list(tmp_path.iterdir())
    assert "runs: 2 of 2 done" in run(*words, cwd=tmp_path).stdout
    content = json.loads((tmp_path / "a/losses.json").read_text())
    assert list(content["variants"]) == ["none", "both"]
    stages = [f"{name}_stage{n}" for n in (1, 2) for name in ("caption_loss", "cosine", "meaningful")]
    assert [m["name"] for m in content["measures"]] == [*stages, "answers_en", "answers_zh"]
    for key, active in (("basic=False", False), ("default", True)):
        folder = tmp_path / "a/runs" / key / "seed-0"
        for stage, steps in ((1, 2), (2, 1)):
            manifest = json.loads((folder / f"stage{stage}/manifest.json").read_text())
            assert (manifest["steps"], manifest["method"]["basic"]) == (steps, active)
            assert not active or manifest["method"]["weighting"] == "linear"
            cosine = content["variants"]["both" if active else "none"][f"cosine_stage{stage}"]["mean"]
            inspected = json.loads((folder / f"stage{stage}/inspection.json").read_text())["cosine"]
            assert cosine == pytest.approx(sum(inspected) / len(inspected))
    assert "<svg" in (tmp_path / "a/losses.html").read_text()
    assert "| both |" in (tmp_path / "a/losses.md").read_text()

    manifest = tmp_path / "a/runs/default/seed-0/stage1/manifest.json"
    written = manifest.stat().st_mtime_ns
    assert "2 of 2 runs are done already" in run(*words, cwd=tmp_path).stdout
    assert manifest.stat().st_mtime_ns == written
    assert "made with another stage1" in run(*words[:-1], "3", cwd=tmp_path, expect=2).stderr


@pytest.fixture
def files(tmp_path):
    """Captions with pictures, and two questions with all their rotations."""
    folder = tmp_path / "files"
    folder.mkdir()
    names, rows, cells = ["red", "green", "blue", "white"], [], []
    for number in range(8):
        name, buffer = names[number % 4], io.BytesIO()
        picture = Image.new("RGB", (30 + number, 40), name)
        picture.save(folder / f"{number}.png")
        picture.save(buffer, "PNG")
        cells.append(base64.b64encode(buffer.getvalue()).decode())
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"a {name} one"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(rows))
    columns = "index question hint A B C D answer category image source l2-category comment split".split()
    lines = [columns]
    for question, turn in itertools.product(range(2), range(4)):
        order = names[turn:] + names[:turn]
        answer, cell = "ABCD"[order.index(names[question])], str(question) if turn else cells[question]
        row = [question + turn * 1_000_000, "Which colour?", "", *order, answer, "colour", cell]
        lines.append([*row, "made", "perception", "", "dev"])
    (folder / "bench.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return folder


def documented() -> list[str]:
    """Return the words of the command for real small parts, as the package's page has it."""
    page = Path(basic_lite.__file__).with_name("experiments") / "README.md"
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    (command,) = [
        block for block in blocks if "--tune" in block and "--answer-by mutual-information" in block
    ]
    return shlex.split(command.replace("\\\n", " "))[1:]


@pytest.mark.parametrize(
    ("rows", "said"),
    [(None, "nowhere.json"), ([{"id": "0", "conversations": []}], "has no row with a picture")],
)
def test_a_file_to_measure_on_is_opened_before_any_work(rows, said, files, tmp_path):
    measured = tmp_path / "nowhere.json"
    if rows is not None:
        measured.write_text(json.dumps(rows))
    words = ["ablate", "losses", "--data", files / "captions.json", "--images", files, "--max-steps", "1"]
    words += ["--measure-data", measured, "--global-batch", "4", "--out", "a"]
    assert said in run(*words, cwd=tmp_path, expect=2).stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_the_one_command_for_real_parts_goes_on_after_a_signal(files, tmp_path):
    """The documented words with tiny parts: rates, variants, curves, and a choice by its options' words."""
    words = documented()
    own = {"--llm": llm_folder(), "--tower": tower_folder(), "--image-size": 28, "--variants": "individual"}
    own |= {"--data": files / "captions.json", "--images": files, "--measure-data": files / "captions.json"}
    own |= {"--eval-data": files / "bench.tsv", "--seeds": 1, "--max-steps": 2, "--workers": 0}
    own |= {"--global-batch": 4, "--micro-batch": 4, "--out": tmp_path / "a", "--jobs": 2}
    for option, value in own.items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    first = tmp_path / "a-tune/runs/basic=False_learning_rate=0.0001/seed-0/measured-stage1.json"
    waiting = threading.Thread(target=interrupt_when, args=[first], daemon=True)
    waiting.start()
    assert "the same command goes on" in run(*words, cwd=tmp_path, expect=130).stdout
    waiting.join()
    assert not (tmp_path / "a").exists()
    said = run(*words, cwd=tmp_path).stdout
    assert "of 5 runs are done already" in said
    (rate,) = re.findall(r"Learning rate (\S+): of .*0.0001, .*, 0.01.* the one that gives plain", said)
    assert "Measuring along the way took" in said
    content = json.loads((tmp_path / "a/target.json").read_text())
    assert list(content["variants"]) == ["plain", "individual"]
    assert content["setup"]["stage1"]["learning_rate"] == float(rate)
    assert content["setup"]["mmbench answers"] == "mutual-information"
    assert {m["name"]: m["over"] for m in content["measures"]} == {
        **dict.fromkeys(("caption_loss", "cosine", "das", "sds"), "rows of captions.json"),
        "mmbench": "questions",
    }
    assert content["curves"]["plain"]["caption_loss"]["samples"] == [4, 8]
    asked = tmp_path / "a/runs/target=individual/seed-0/stage1/eval/mmbench/predictions.jsonl"
    letters = {json.loads(line)["text"] for line in asked.read_text().splitlines() if '"text"' in line}
    assert letters <= set("ABCD"), "a letter for every question: the likelihood of its words chose it"
