"""What a command prints is its own: other libraries' loggers, warnings and bars go to the run's file."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from command import run, stage1, stage2
from talkative import speak, talkative
from torch import nn

from basic_lite import console
from basic_lite.training.callbacks import Metrics
from basic_lite.training.guards import Splitter

WAYS = ("bare logger", "early handler", "late handler", "warning", "renamed method")


@pytest.mark.slow
def test_no_command_prints_lines_of_others(world, tmp_path, monkeypatch):
    heard = talkative(monkeypatch)
    bench = ("--data", world / "bench.tsv", "--limit", 1)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    commands = {
        "stage1": stage1(world, "--max-steps", 1),
        "stage2": stage2(world, "--lora", "--rank", 2, "--max-steps", 1),
        "eval": ["eval", "mmbench", *bench],
        "export": ["export", "runs/stage2", "out", "--base", "dequantised"],
        "chat": ["chat", "runs/stage2", "--max-new-tokens", 2],
        "plan": ["plan", "--model", "gemma-2b"],
        "doctor": ["doctor"],
    }
    for name, arguments in commands.items():
        done = run(*arguments, cwd=tmp_path)
        assert done.stderr == "", name
        assert "FOREIGN" not in done.stdout, name
        assert "it/s" not in done.stdout, name
    assert heard.getvalue() == ""
    for folder in ("runs/stage1", "runs/stage2", "runs/stage2/eval/mmbench"):
        said = (tmp_path / folder / console.OTHER_LOG).read_text()
        for way in WAYS:
            assert f"FOREIGN {way}" in said, (folder, way)
    assert not list((tmp_path / "out").glob("*.log")), "an export is for others"
    assert logging.getLogger("early").handlers, "what was taken from a library is given back"
    assert not logging.getLogger("early").propagate


@pytest.mark.slow
def test_a_process_of_its_own_is_as_quiet(world, tmp_path):
    """With real libraries, imported as the command goes on."""
    code = (
        "import pytest, talkative, basic_lite.cli as cli\n"
        "talkative.talkative(pytest.MonkeyPatch())\n"
        "cli.main()"
    )
    arguments = [sys.executable, "-c", code, *map(str, stage1(world, "--max-steps", 1))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "FOREIGN" not in done.stdout
    assert "FOREIGN late handler" in (tmp_path / "runs/stage1" / console.OTHER_LOG).read_text()


def test_our_own_warnings_are_heard(capsys):
    splitter = Splitter(nn.Linear(1, 1), Metrics())
    with console.aside():
        splitter._halve(4, 100)
        speak()
    assert splitter.limit == 2
    assert capsys.readouterr().err.startswith("out of memory with 4 rows at a time")


def test_outside_a_command_nothing_is_changed(tmp_path):
    before = list(logging.getLogger().handlers), warnings.showwarning, logging.getLoggerClass()
    with console.aside():
        console.write_into(tmp_path / "run")
    assert (list(logging.getLogger().handlers), warnings.showwarning, logging.getLoggerClass()) == before
    assert not (tmp_path / "run").exists(), "nothing was said"
    console.write_into(tmp_path)
    logging.getLogger("somebody").warning("nothing")
    assert not list(tmp_path.iterdir())
