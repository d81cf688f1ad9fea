"""The sessions of recipes/README.md run from top to bottom, on tiny parts in place of the named ones."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from command import make_world, run
from made_runs import export, made_run
from tiny import llm_folder, tower_folder

from basic_lite.models import quantised

PAGE = (Path(__file__).parents[1] / "recipes" / "README.md").read_text(encoding="utf-8")
SESSIONS = {
    section.splitlines()[0]: [
        line for block in re.findall(r"```bash\n(.*?)```", section, re.S) for line in block.splitlines()
    ]
    for section in PAGE.split("\n## ")[1:]
}
"""Commands by heading."""


HUB_ID, LLAVA_15 = "llava-hf/llava-1.5-7b-hf", "llava-1.5"
"""A LLaVA on the hub, and the folder of a tiny one that stands for it."""


def tiny(words: list[str]) -> list[object]:
    """Put tiny parts, one step and the made data where a command has the published ones."""
    name, *rest = words
    given = {
        word: rest[place + 1]
        for place, word in enumerate(rest)
        if word.startswith("--") and rest[place + 1 :]
    }
    for option in ("--model", "--tower", "--epochs"):
        if option in given and name in ("stage1", "stage2", "analyze"):
            at = rest.index(option)
            del rest[at : at + 2]
    if HUB_ID in rest:
        rest[rest.index(HUB_ID)] = LLAVA_15
        rest += ["--bits", 16] if name == "stage2" else []  # random weights in 4 bits are others
    if name == "analyze":
        return [name, *rest, "--llm", llm_folder(), "--bits", 16, "--tokens", 64, "--layers", 2]
    if name == "stage1":
        rest += ["--llm", llm_folder(), "--tower", tower_folder(), "--bits", 16, "--precision", "fp32"]
    if name in ("stage1", "stage2"):
        if "--data" not in given:
            rest += ["--data", {"stage1": "captions.json", "stage2": "conversations.json"}[name]]
            rest += ["--images", "pictures"]
        rest += ["--max-steps", 1, "--global-batch", 2, "--workers", 0]
    if name == "eval":
        rest += [] if "--data" in given else ["--data", "coco_pope_random.json", "--images", "pictures"]
        rest += ["--any-size"]
    return [name, *rest]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder that holds the files that the page names."""
    made = make_world(tmp_path)
    export(made_run(tmp_path / "made", "llama", "clip", "stage1"), tmp_path / LLAVA_15)
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    (made / "pictures").mkdir()
    for picture in made.glob("*.png"):
        picture.rename(made / "pictures" / picture.name)
    (made / "instruct.json").rename(made / "conversations.json")
    (made / "bench.tsv").rename(made / "mmbench_dev_cn_20231003.tsv")
    shutil.copy(made / "pictures/1.png", made / "cat.jpg")
    rows = [
        {"question_id": n, "image": f"{n}.png", "text": "Is there a cat?", "label": ["yes", "no"][n % 2]}
        for n in range(4)
    ]
    (made / "coco_pope_random.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return made


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("session", SESSIONS)
def test_a_session_runs_from_top_to_bottom(house, monkeypatch, session):
    """What several processes do to a command is training/test_processes.py's question; here each is one."""
    for line in SESSIONS[session]:
        command = re.sub(
            r"^(basic-lite|accelerate launch --multi_gpu --num_processes 2 -m basic_lite) ", "", line
        )
        assert command != line
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\n"))
        run(*tiny(shlex.split(command)), cwd=house)
    for folder in re.findall(r"(runs/\w+|my-\w+)", "\n".join(SESSIONS[session])):
        assert (house / folder).is_dir(), folder


def test_every_section_is_a_session():
    assert all(SESSIONS.values())
    assert list(SESSIONS) == [
        "A card of 8 GB",
        "A card of 24 GB",
        "My 5,000 pictures",
        "From LLaVA-1.5",
        "Chinese",
        "Several cards",
    ]
