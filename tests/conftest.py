"""For every test: no hub, no cache, one thread, and of what hypothesis draws the same examples each time."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub fails at once
os.environ["BASIC_LITE_CACHE"] = "off"  # nothing is left in the home of who runs the tests
# bitsandbytes decorates fallback kernels with torch.compile, whose import takes each process over a second.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import functools
import gc
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer.main
import typer.testing
from hypothesis import settings

from basic_lite.data import workers
from basic_lite.data.world.scenes import Scene, sample_scene

# A gate that fails by chance fails somebody else's change; `--hypothesis-profile default` draws anew.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# A shell without job control starts background jobs deaf to Ctrl-C, and with them all processes of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # again, whatever the test before has set; fixtures of modules come earlier


def pytest_collection_finish() -> None:
    """Spare the collector what was imported: a million objects, looked at in every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _what_a_process_does_once():
    """Build the command line's parser once, and leave what was imported frozen: `shared_heap` would thaw it.

    What is replaced here runs as it is in processes of their own, and in tests/data/test_workers.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        parser = functools.cache(typer.main.get_command)
        patch.setattr(typer.main, "get_command", parser)
        patch.setattr(typer.testing, "_get_command", parser)
        nothing = SimpleNamespace(collect=lambda: 0, freeze=lambda: None, unfreeze=lambda: None)
        patch.setattr(workers, "gc", nothing)
        yield
    gc.unfreeze()  # else libraries complain at the end of what they leave


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, captions, instructions and a benchmark."""
    from command import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of stage 1, trained once for all tests; they take copies (`stage1_run`)."""
    from command import make_world, run, stage1

    folder = tmp_path_factory.mktemp("trained")
    run(*stage1(make_world(folder), "--max-steps", 1, "--bits", 16), cwd=folder)
    return folder / "runs/stage1"


@pytest.fixture
def stage1_run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run at `runs/stage1` below `tmp_path`."""
    return Path(shutil.copytree(trained_run, tmp_path / "runs/stage1"))


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut answers off at 16 tokens: a model of one step rarely stops by itself before a benchmark's 1,024."""
    from basic_lite.evaluation import answer

    greedily = answer.greedily
    monkeypatch.setattr(answer, "greedily", lambda stops, pad, most: greedily(stops, pad, min(most, 16)))


@pytest.fixture(scope="session")
def training_scenes() -> list[Scene]:
    rng = random.Random(5)
    return [sample_scene(rng) for _ in range(150)]


@pytest.fixture(scope="session")
def held_out_scenes() -> list[Scene]:
    rng = random.Random(6)
    return [sample_scene(rng, held_out=True) for _ in range(150)]
