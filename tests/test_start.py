"""`basic-lite` without a command says what there is, in eight lines, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from basic_lite.recipes import start
from command import run as command

from basic_lite import files

METHOD = {"embedding_space": files.EMBEDDING_SPACE}


def run(folder: Path, stage: int, finished: bool, age: float = 0.0) -> None:
    manifest = {"format": files.FORMAT, "stage": stage, "finished": finished, "method": METHOD}
    folder.mkdir(parents=True)
    files.write_json(folder / files.MANIFEST, manifest)
    os.utime(folder / files.MANIFEST, (1e9 - age, 1e9 - age))


def shown(folder: Path) -> dict[str, str]:
    text = command(cwd=folder).stdout
    assert len(text.splitlines()) == 8
    return dict(line.split(maxsplit=1) for line in text.splitlines() if line)


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Return a function that pretends cards of these names."""

    def pretend(*names: str) -> None:
        root = tmp_path / "driver"
        for number, name in enumerate(names):
            (root / str(number)).mkdir(parents=True)
            (root / str(number) / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n")
        monkeypatch.setattr(start, "CARDS", root)

    return pretend


def test_an_empty_folder_without_a_card(tmp_path, card):
    card()
    here = tmp_path / "here"
    here.mkdir()
    page = shown(here)
    assert page["Runs"] == "none in this folder"
    assert page["Device"].startswith("no NVIDIA card seen")
    assert page["Next"].startswith("basic-lite demo")
    assert f"{os.cpu_count()} cores" in page["Machine"]


def test_cards_are_counted(tmp_path, card):
    card("NVIDIA H100", "NVIDIA H100", "NVIDIA L4")
    page = shown(tmp_path)
    assert page["Device"] == "2 x NVIDIA H100, NVIDIA L4"
    assert page["Next"].startswith("basic-lite plan --model gemma-2b")


@pytest.mark.parametrize(
    ("stage", "finished", "evaluated", "expected"),
    [
        (1, False, False, "basic-lite stage1 --out runs/new --resume"),
        (1, True, False, "basic-lite stage2 --lora --start runs/new "),
        (2, False, False, "basic-lite stage2 --out runs/new --resume"),
        (2, True, False, "basic-lite eval mmbench --run runs/new"),
        (2, True, True, "basic-lite chat runs/new"),
    ],
)
def test_the_next_command_follows_the_newest_run(tmp_path, stage, finished, evaluated, expected):
    run(tmp_path / "runs/new", stage, finished)
    run(tmp_path / "old", 1, True, age=100)
    if evaluated:
        files.write_json(tmp_path / "runs/new/eval/mmbench/results.json", {})
    page = shown(tmp_path)
    unfinished = "" if finished else ", not finished"
    assert page["Runs"] == f"runs/new (stage {stage}{unfinished}), old (stage 1)"
    assert page["Next"].startswith(expected)


def test_folders_that_the_commands_know_are_not_named(tmp_path):
    run(tmp_path / "runs/stage1", 1, True)
    assert shown(tmp_path)["Next"].startswith("basic-lite stage2 --lora ")
    assert "--start" not in shown(tmp_path)["Next"]
    run(tmp_path / "runs/stage2", 2, False, age=-10)
    assert shown(tmp_path)["Next"].startswith("basic-lite stage2 --resume ")


def test_many_runs_and_one_that_cannot_be_read(tmp_path):
    for number in range(4):
        run(tmp_path / f"runs/{number}", 2, True, age=10 + number)
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken" / files.MANIFEST).write_text("{")
    page = shown(tmp_path)
    assert page["Runs"] == "runs/broken (cannot be read), runs/0 (stage 2), runs/1 (stage 2) and 2 more"
    assert page["Next"].startswith("basic-lite eval mmbench --run runs/0")


def test_the_page_needs_no_heavy_library(tmp_path):
    code = (
        "import sys; sys.argv = ['basic-lite']\nfrom basic_lite.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
