"""Kill a tiny run at random moments, resume it each time, and compare its end with a run left alone.

    python tests/kills.py --kills 100 [--seed 0]

Prints one line per kill: after how many seconds, at which step, what was left, and in the end whether the
bytes are the same.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from forked import Forked
from PIL import Image
from tiny import llm_folder, tower_folder

from basic_lite.files import MANIFEST, checkpoints, file_hash

COMMAND = [sys.executable, "-c", "from basic_lite.cli import main; main()"]


def write_rows(folder: Path, count: int = 8) -> Path:
    """Write captioned pictures and return the annotation file."""
    rows = []
    for number in range(count):
        Image.new("RGB", (24 + number, 24), (30 * number, 90, 200)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"number {number}"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    path = folder / "captions.json"
    path.write_text(json.dumps(rows))
    return path


def command(data: Path, out: Path, steps: int) -> list[str]:
    """Return a stage-1 run that saves in every step."""
    more = ["--bits", 16, "--global-batch", 2, "--micro-batch", 2, "--workers", 0, "--logging-steps", 1]
    more += ["--max-steps", steps, "--save-steps", 1, "--keep", 2, "--out", out, "--data", data]
    parts = ["--llm", llm_folder(), "--tower", tower_folder(), "--precision", "fp32"]
    return [*COMMAND, "stage1", *map(str, parts + more)]


def lines(out: Path) -> int:
    """Return how many steps a run has logged."""
    log = out / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


def kill_once(arguments: list[str], out: Path, rng: random.Random) -> str | None:
    """Start a command and kill it at a random moment of its steps and saves; `None` if it ended before."""
    process, begun = Forked(arguments, out.parent), lines(out)
    while process.poll() is None and lines(out) == begun:  # importing and loading takes longest: not that
        time.sleep(0.002)
    moment = rng.uniform(0, 0.12)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run failed by itself: {process.communicate()[0][-2000:]}")
    drafts = [path.name for path in out.iterdir() if path.name.startswith(".")]
    found = checkpoints(out)
    return f"{moment:.3f} s into its steps: {found[-1].name if found else 'no checkpoint'}" + (
        f", half-written {', '.join(drafts)}" if drafts else ""
    )


def kill_and_resume(folder: Path, kills: int, seed: int, tell=print) -> tuple[str, str, int]:
    """Kill a run `kills` times, let it end, and run another in one go.

    Returns:
        The hashes of both projectors, and how many kills fell into a save.
    """
    rng, data, inside = random.Random(seed), write_rows(folder), 0
    steps = 4 + 12 * kills
    out, whole, done = folder / "killed", folder / "whole", 0
    while done < kills:
        resumable = bool(checkpoints(out))
        flag = ["--resume"] if resumable else ["--overwrite"]
        said = kill_once([*command(data, out, steps), *flag], out, rng)
        if said is None:
            raise SystemExit("the run ended before it was killed often enough: raise its steps")
        done, inside = done + 1, inside + ("half-written" in said)
        tell(f"kill {done}: {said}")
    for target, flag in ((out, "--resume"), (whole, "--overwrite")):
        given = [flag] if flag != "--resume" or checkpoints(out) else ["--overwrite"]
        process = Forked([*command(data, target, steps), *given], folder)
        said = process.communicate()[0]
        if process.returncode:
            raise SystemExit(said[-2000:])
        assert json.loads((target / MANIFEST).read_text())["finished"]
        assert not [path for path in target.iterdir() if path.name.startswith(".")], "a draft was left"
        assert [json.loads(line)["step"] for line in (target / "log.jsonl").open()] == list(
            range(1, steps + 1)
        )
    ends = [file_hash(target / "projector.safetensors") for target in (out, whole)]
    return *ends, inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        killed, left_alone, inside = kill_and_resume(Path(temporary), wanted.kills, wanted.seed)
    print(f"{wanted.kills} kills, {inside} of them inside a save; same bytes: {killed == left_alone}")
    sys.exit(killed != left_alone)
