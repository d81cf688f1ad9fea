"""Commands run as a user types them, and a small folder of data for them."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from tiny import llm_folder, tower_folder

from basic_lite.cli import main

COMMAND = [sys.executable, "-c", "from basic_lite.cli import main; main()"]


@dataclass
class Done:
    stdout: str
    stderr: str
    code: int


def run(*arguments: object, cwd: Path, expect: int | None = 0) -> Done:
    """Run a command in this process (starting Python and its imports anew costs seconds each time)."""
    output, errors, old = io.StringIO(), io.StringIO(), Path.cwd()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    os.chdir(cwd)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            patch.setattr(sys, "argv", ["basic-lite", *map(str, arguments)])
            patch.setenv("COLUMNS", "100")
            with pytest.raises(SystemExit) as left:
                main()
    finally:
        os.chdir(old)
    code = int(left.value.code or 0)
    assert expect in (code, None), output.getvalue() + errors.getvalue()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return Done(output.getvalue(), errors.getvalue(), code)


def interrupt_when(path: Path) -> None:
    """Send this process, once a file is there, what Ctrl-C would: SIGTERM, which is never ignored."""
    while not path.exists():
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)


def write_row(folder: Path) -> None:
    """Write `rows.json`, a question about `0.png`."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a red one"}]
    (folder / "rows.json").write_text(json.dumps([{"id": "a", "image": "0.png", "conversations": turns}]))


def make_world(folder: Path) -> Path:
    """Fill a folder with pictures, captions, instructions and a benchmark."""
    names = ["red", "green", "blue", "white"]
    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (250, 250, 250)}
    cells, captions, instructions = {}, [], []
    for number in range(16):
        name = names[number % 4]
        picture = Image.new("RGB", (30 + number, 40), colours[name])
        picture.save(folder / f"{number}.png")
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        cells[number] = base64.b64encode(buffer.getvalue()).decode()
        turns = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": f"a {name} one"},
        ]
        captions.append({"id": f"c{number}", "image": f"{number}.png", "conversations": turns})
        more = [{"from": "human", "value": "And the colour?"}, {"from": "gpt", "value": name}]
        instructions.append({"id": f"i{number}", "image": f"{number}.png", "conversations": turns + more})
    for number in range(4):
        turns = [{"from": "human", "value": "Say red."}, {"from": "gpt", "value": "red"}]
        instructions.append({"id": f"t{number}", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "instruct.json").write_text(json.dumps(instructions))
    columns = "index question hint A B C D answer category image source l2-category comment split".split()
    lines = ["\t".join(columns)]
    for question in range(3):
        for turn in range(4):
            order = names[turn:] + names[:turn]
            answer = "ABCD"[order.index(names[question])]
            cell = cells[question] if turn == 0 else str(question)
            row = [question + turn * 1_000_000, "Which colour?", "", *order, answer, "colour", cell]
            lines.append("\t".join(map(str, [*row, "made", "perception", "", "dev"])))
    (folder / "bench.tsv").write_text("\n".join(lines) + "\n")
    return folder


def stage1(world: Path, *more: object) -> list[object]:
    models = ["--llm", llm_folder(), "--tower", tower_folder(), "--precision", "fp32"]
    data = [] if "--data" in more else ["--data", world / "captions.json"]
    data += ["--global-batch", 4, "--micro-batch", 2, "--workers", 0]
    return ["stage1", *models, *data, "--logging-steps", 1, *more]


def stage2(world: Path, *more: object) -> list[object]:
    data = [] if "--data" in more else ["--data", world / "instruct.json"]
    data += ["--global-batch", 4, "--micro-batch", 2, "--workers", 0]
    return ["stage2", *data, "--logging-steps", 1, *more]


def settings_shown(text: str) -> dict[str, str]:
    """Return the table of settings that a stage prints."""
    pairs = (line.strip().rsplit("  ", 1) for line in text.splitlines() if "  " in line.strip())
    return {name.strip(): value for name, value in pairs}


def data_check(*arguments: object) -> tuple[int, str, str]:
    done = run("data", "check", *arguments, cwd=Path.cwd(), expect=None)
    return done.code, done.stdout, done.stderr
