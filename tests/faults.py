"""Break a run in every way that users do, and print what it said and what was lost.

python tests/faults.py            # a Markdown table; exit code 1 if anything was lost or printed a traceback
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from kills import write_rows
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import llm_folder, tower_folder

from basic_lite import files
from basic_lite.cli import main
from basic_lite.data.pictures import ImageTransform
from basic_lite.training.trainer import BasicTrainer


@dataclass
class Fault:
    """One way to break a run.

    Attributes:
        name: what is broken.
        command: what the user types then, in a copy of the laboratory.
        says: words of the line that must be printed.
        code: exit code.
        inject: breaks it.
        during: a patch that is active while the command runs.
        changes: whether the command goes on and writes; else it must leave every file as it was.
    """

    name: str
    command: list[str]
    says: str
    code: int = 2
    inject: Callable[[Path], None] = lambda lab: None
    during: Callable[[Path], contextlib.AbstractContextManager] = lambda lab: contextlib.nullcontext()
    changes: bool = False


def command(folder: Path, *arguments: object) -> tuple[int, str]:
    """Run a command in this process; return its exit code and all that it printed."""
    output, old = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with (
            patch.object(sys, "argv", ["basic-lite", *map(str, arguments)]),
            patch.dict(os.environ, {"COLUMNS": "200", "HF_HUB_OFFLINE": "1"}),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            try:
                main()
            except SystemExit as left:
                return int(left.code or 0), output.getvalue()
            except BaseException as error:
                return 99, f"{output.getvalue()}\nTraceback: {type(error).__name__}: {error}"
    finally:
        os.chdir(old)
    return 0, output.getvalue()


ONE = "stage1 --llm llm --tower tower --precision fp32 --bits 16 --data captions.json --global-batch 2 "
ONE = [*ONE.split(), *"--micro-batch 2 --workers 0 --logging-steps 1 --max-steps 4 --save-steps 2".split()]
GO_ON = [*ONE, "--out", "runs/stopped", "--resume"]
TWO = "stage2 --lora --rank 4 --data captions.json --global-batch 2 --micro-batch 2 --workers 0 --max-steps 2"
TWO = [*TWO.split(), "--out", "runs/new"]
NEW = [*ONE, "--out", "runs/new"]
EXPORT = ["export", "runs/stage2", "out"]


def laboratory(folder: Path) -> Path:
    """Make models, data, a finished run of each stage, and one that was stopped after two of four steps."""
    shutil.copytree(llm_folder(), folder / "llm")
    shutil.copytree(tower_folder(), folder / "tower")
    write_rows(folder)
    for arguments in (ONE, [*TWO[:-1], "runs/stage2"]):
        code, text = command(folder, *arguments)
        assert code == 0, text
    stopped = folder / "runs/stopped"
    shutil.copytree(folder / "runs/stage1/checkpoint-2", stopped / "checkpoint-2")
    log = (folder / "runs/stage1/log.jsonl").read_text().splitlines(keepends=True)
    (stopped / "log.jsonl").write_text("".join(log[:3]))
    return folder


def edit(path: str, **changes: object) -> Callable[[Path], None]:
    """Change keys of a JSON file."""

    def inject(lab: Path) -> None:
        content = json.loads((lab / path).read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            place[last] = value
        (lab / path).write_text(json.dumps(content))

    return inject


def cut(path: str, keep: float = 0.5) -> Callable[[Path], None]:
    """Keep only the first part of a file."""

    def inject(lab: Path) -> None:
        data = (lab / path).read_bytes()
        (lab / path).write_bytes(data[: int(len(data) * keep)])

    return inject


def flipped(path: str) -> Callable[[Path], None]:
    """Flip two bytes in the middle of a file, and set its dates back."""

    def inject(lab: Path) -> None:
        data, times = bytearray((lab / path).read_bytes()), (lab / path).stat()
        for place in (len(data) // 2, len(data) // 2 + 5):
            data[place] ^= 0x11
        (lab / path).write_bytes(data)
        os.utime(lab / path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return inject


def both(*injections: Callable[[Path], None]) -> Callable[[Path], None]:
    """Do one after the other."""

    def inject(lab: Path) -> None:
        for injection in injections:
            injection(lab)

    return inject


def old(folder: str, injection: Callable[[Path], None]) -> Callable[[Path], None]:
    """Take the hashes out of a manifest, as of a version that wrote none, and break something."""

    def inject(lab: Path) -> None:
        path = lab / folder / files.MANIFEST
        content = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in ("weights", "state")}))

    return both(inject, injection)


def bench(path: str) -> Callable[[Path], None]:
    """Write a benchmark of one question."""
    head = "index\tquestion\tA\tB\tC\tD\tanswer\tcategory\tl2-category\tsplit\timage"

    def inject(lab: Path) -> None:
        picture = base64.b64encode((lab / "0.png").read_bytes()).decode()
        (lab / path).write_text(
            f"{head}\n1\tWhat?\tred\tblue\tgrey\tpink\tA\tcolour\tcolour\tdev\t{picture}\n"
        )

    return inject


def gone(path: str) -> Callable[[Path], None]:
    """Remove a file or folder."""
    return lambda lab: shutil.rmtree(lab / path) if (lab / path).is_dir() else (lab / path).unlink()


def rewrite(path: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    """Change the tensors of a file."""
    return lambda lab: save_file(change(load_file(lab / path)), lab / path, metadata={"format": "pt"})


def rows(change: Callable[[list], object]) -> Callable[[Path], None]:
    """Change the annotation file."""

    def inject(lab: Path) -> None:
        content = json.loads((lab / "captions.json").read_text())
        change(content)
        (lab / "captions.json").write_text(json.dumps(content))

    return inject


@contextlib.contextmanager
def poisoned(*steps: int) -> Iterator[None]:
    """Make the pictures of some steps infinite."""
    whole, count = ImageTransform.normalise, [0]

    def normalise(self: ImageTransform, pixels: torch.Tensor, dtype: torch.dtype = torch.float32):
        count[0] += 1
        found = whole(self, pixels, dtype)
        return found / 0 if count[0] in steps else found

    with patch.object(ImageTransform, "normalise", normalise):
        yield


@contextlib.contextmanager
def full_disk(after_steps: int) -> Iterator[None]:
    """Refuse every write of weights once so many steps are done."""
    whole = BasicTrainer._save_weights

    def save(self: BasicTrainer, folder: Path, *given: object) -> None:
        if self.state.global_step >= after_steps:  # as safetensors says it on a disk that is really full
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        whole(self, folder, *given)

    with patch.object(BasicTrainer, "_save_weights", save):
        yield


@contextlib.contextmanager
def full_disk_for_torch() -> Iterator[None]:
    """Let torch fail to write Adam's state."""
    with patch(
        "torch.save",
        side_effect=RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ):
        yield


@contextlib.contextmanager
def signalled(number: int) -> Iterator[None]:
    """Send this process a signal in the second step."""
    whole = BasicTrainer.training_step

    def step(self: BasicTrainer, *args: object) -> torch.Tensor:
        if self.state.global_step == 1:
            os.kill(os.getpid(), number)
        return whole(self, *args)

    with patch.object(BasicTrainer, "training_step", step):
        yield


def no_weights_read() -> contextlib.AbstractContextManager:
    """Make the loading of a decoder's weights an error: what is refused is refused before."""
    return patch(
        "basic_lite.models.llava.load_decoder_alone", side_effect=AssertionError("weights were read")
    )


BEFORE = {"during": lambda lab: no_weights_read()}
MANIFEST = "runs/stopped/checkpoint-2/manifest.json"


def refused(name: str, says: str, inject: Callable[[Path], None]) -> Fault:
    """A stopped run that `--resume` refuses before it reads a weight."""
    return Fault(f"resume: {name}", GO_ON, says, inject=inject, **BEFORE)


FAULTS = [
    # What is resumed is what was started.
    refused("data changed", "another data", rows(lambda r: r[0].update(id="x"))),
    Fault("resume: other learning rate", [*GO_ON, "--learning-rate", "0.5"], "another training", **BEFORE),
    Fault("resume: other seed", [*GO_ON, "--seed", "9"], "another training", **BEFORE),
    Fault("resume: other template", [*GO_ON, "--template", "gemma_instruct"], "another sources", **BEFORE),
    Fault("resume: other bits", [*GO_ON, "--bits", "4"], "another sources", **BEFORE),
    refused("LLM replaced", "another llm", edit("llm/config.json", rope_theta=5.0)),
    refused("tower replaced", "another tower", edit("tower/config.json", x=1)),
    refused(
        "other embedding convention",
        "another embedding convention",
        edit(MANIFEST, method__embedding_space="scaled"),
    ),
    refused("manifest of a newer version", "format 9", edit(MANIFEST, format=9)),
    refused("manifest cut off", "cannot be read", cut(MANIFEST)),
    refused(
        "optimizer state cut off",
        "checkpoint-2/optimizer.pt is damaged",
        cut("runs/stopped/checkpoint-2/optimizer.pt"),
    ),
    refused(
        "a byte of the optimizer state of an older run has changed",
        "optimizer.pt is damaged",
        old("runs/stopped/checkpoint-2", flipped("runs/stopped/checkpoint-2/optimizer.pt")),
    ),
    Fault(
        "resume: optimizer state cut off, no hashes",
        GO_ON,
        "remove checkpoint-2, and --resume goes on from the one before",
        inject=old("runs/stopped/checkpoint-2", cut("runs/stopped/checkpoint-2/optimizer.pt")),
    ),
    refused(
        "two bytes of Adam's moments flipped",
        "optimizer.pt is damaged",
        flipped("runs/stopped/checkpoint-2/optimizer.pt"),
    ),
    refused(
        "two bytes of the projector flipped",
        "remove runs/stopped/checkpoint-2, and --resume goes on from the checkpoint before",
        flipped("runs/stopped/checkpoint-2/projector.safetensors"),
    ),
    refused(
        "the projector is missing",
        "checkpoint-2/projector.safetensors is missing",
        gone("runs/stopped/checkpoint-2/projector.safetensors"),
    ),
    Fault(
        "resume: projector cut off, no hashes",
        GO_ON,
        "is no projector of this model",
        inject=old("runs/stopped/checkpoint-2", cut("runs/stopped/checkpoint-2/projector.safetensors")),
    ),
    Fault("resume: nothing to resume", [*NEW, "--resume"], "no complete checkpoint", **BEFORE),
    Fault("resume: finished already", [*ONE, "--resume"], "is finished", **BEFORE),
    Fault(
        "resume: a save was killed, its draft is there",
        GO_ON,
        "The projector is in",
        0,
        lambda lab: shutil.copytree(
            lab / "runs/stopped/checkpoint-2", lab / "runs/stopped/.checkpoint-4.part"
        ),
        changes=True,
    ),
    Fault(
        "resume: the newest checkpoint is incomplete",
        GO_ON,
        "The projector is in",
        0,
        lambda lab: (lab / "runs/stopped/checkpoint-3").mkdir(),
        changes=True,
    ),
    # The folder and the disk.
    Fault("start: the folder holds a run", ONE, "already holds a run", **BEFORE),
    Fault(
        "start: a file where the folder should be",
        [*ONE, "--out", "captions.json/run"],
        "cannot be written to",
        **BEFORE,
    ),
    Fault(
        "start: read-only disk",
        NEW,
        "cannot be written to",
        during=lambda lab: patch("os.access", side_effect=lambda path, mode: mode != os.W_OK),
    ),
    Fault(
        "start: too little disk for the checkpoints",
        NEW,
        "are free. Free some",
        during=lambda lab: patch("shutil.disk_usage", return_value=shutil._ntuple_diskusage(1, 1, 1000)),
        changes=True,
    ),
    Fault(
        "start: the first save fails",
        NEW,
        "cannot be written to",
        during=lambda lab: full_disk(0),
        changes=True,
    ),
    Fault("run: the disk fills up", GO_ON, "No space left", 1, during=lambda lab: full_disk(4), changes=True),
    Fault(
        "run: the disk fills up while Adam's state is written",
        GO_ON,
        "could not be written ([enforce fail",
        1,
        during=lambda lab: full_disk_for_torch(),
        changes=True,
    ),
    Fault(
        "run: SIGTERM", NEW, "--resume goes on", 0, during=lambda lab: signalled(signal.SIGTERM), changes=True
    ),
    Fault(
        "run: Ctrl-C", NEW, "--resume goes on", 0, during=lambda lab: signalled(signal.SIGINT), changes=True
    ),
    Fault(
        "run: one step is not finite",
        NEW,
        "The projector is in",
        0,
        during=lambda lab: poisoned(2),
        changes=True,
    ),
    # The parts.
    Fault("parts: no LLM there", [*NEW, "--llm", "nowhere"], "no language model can be loaded", **BEFORE),
    Fault("parts: no tower there", [*NEW, "--tower", "nowhere"], "no vision tower can be loaded", **BEFORE),
    Fault(
        "parts: the LLM has no weights", NEW, "no weights can be loaded", inject=gone("llm/model.safetensors")
    ),
    Fault("parts: the LLM's weights are cut off", NEW, "llm", inject=cut("llm/model.safetensors")),
    Fault(
        "parts: the tower has no image settings",
        NEW,
        "preprocessor_config.json",
        inject=gone("tower/preprocessor_config.json"),
    ),
    Fault(
        "parts: a template of another family", [*NEW, "--template", "gemma_instruct"], "choose the template"
    ),
    # The data.
    Fault("data: no such file", [*NEW, "--data", "none.json"], "none.json", **BEFORE),
    Fault("data: the file is cut off", NEW, "captions.json", inject=cut("captions.json"), **BEFORE),
    Fault(
        "data: an empty answer",
        NEW,
        "empty",
        inject=rows(lambda r: r[3]["conversations"][1].update(value="")),
        **BEFORE,
    ),
    Fault("data: a picture is missing", NEW, "missing_image", inject=gone("3.png"), **BEFORE),
    Fault(
        "data: a picture is cut off, the budget allows it",
        [*NEW, "--bad-budget", "0.5"],
        "The projector is in",
        0,
        cut("3.png"),
        changes=True,
    ),
    Fault(
        "parts: the LLM's weights lack a tensor",
        NEW,
        "lack 1 tensors, first: model.norm.weight",
        inject=rewrite(
            "llm/model.safetensors", lambda s: {k: v for k, v in s.items() if k != "model.norm.weight"}
        ),
    ),
    # Between the stages, and out of the house.
    Fault("stage 2: no stage 1 there", [*TWO, "--start", "runs/none"], "holds no run", **BEFORE),
    Fault(
        "stage 2: stage 1 is not finished",
        [*TWO, "--start", "runs/stopped/checkpoint-2"],
        "is not finished",
        **BEFORE,
    ),
    Fault(
        "stage 2: the LLM is another one now",
        TWO,
        "another llm",
        inject=edit("llm/config.json", rope_theta=5.0),
        **BEFORE,
    ),
    Fault(
        "stage 2: two bytes of the projector flipped",
        TWO,
        "copy runs/stage1/checkpoint-4/projector.safetensors over it, which is whole",
        inject=flipped("runs/stage1/projector.safetensors"),
        **BEFORE,
    ),
    Fault(
        "stage 2: the projector is damaged, no hashes",
        TWO,
        "is no projector",
        inject=old("runs/stage1", cut("runs/stage1/projector.safetensors")),
    ),
    Fault(
        "eval: two bytes of the adapters flipped",
        [
            "eval",
            "mmbench",
            "--run",
            "runs/stage2",
            "--data",
            "bench.tsv",
            "--any-size",
            "--step",
            "generate",
        ],
        "runs/stage2/adapter_model.safetensors is not what the run wrote",
        inject=both(flipped("runs/stage2/adapter_model.safetensors"), bench("bench.tsv")),
        **BEFORE,
    ),
    Fault(
        "chat: two bytes of the adapters flipped",
        ["chat", "runs/stage2"],
        "runs/stage2/adapter_model.safetensors is not what the run wrote",
        inject=flipped("runs/stage2/adapter_model.safetensors"),
        **BEFORE,
    ),
    Fault(
        "analyze: two bytes of the adapters flipped",
        ["analyze", "tokens", "runs/stage2", "--images", "."],
        "runs/stage2/adapter_model.safetensors is not what the run wrote",
        inject=flipped("runs/stage2/adapter_model.safetensors"),
        **BEFORE,
    ),
    Fault(
        "export: two bytes of the adapters flipped",
        EXPORT,
        "runs/stage2/adapter_model.safetensors is not what the run wrote",
        inject=flipped("runs/stage2/adapter_model.safetensors"),
        **BEFORE,
    ),
    Fault("export: the folder exists", ["export", "runs/stage2", "llm"], "exists already", **BEFORE),
    Fault(
        "export: adapters cut off, no hashes",
        EXPORT,
        "adapter_model",
        inject=old("runs/stage2", cut("runs/stage2/adapter_model.safetensors")),
    ),
    Fault(
        "export: an adapter is missing, no hashes",
        EXPORT,
        "layers.3.mlp.down_proj",
        inject=old(
            "runs/stage2",
            rewrite(
                "runs/stage2/adapter_model.safetensors",
                lambda s: {k: v for k, v in s.items() if "layers.3.mlp.down_proj" not in k},
            ),
        ),
    ),
]
FAULTS += [
    Fault(
        "run: three steps in a row are not finite",
        [*ONE, "--max-steps", "8", "--out", "runs/new"],
        "3 steps in a row",
        1,
        during=lambda lab: poisoned(4, 5, 6),
        changes=True,
    )
]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of the runs."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def try_fault(fault: Fault, made: Path, lab: Path) -> tuple[str, str, list[str]]:
    """Break a copy of the laboratory; return what was printed, what was lost, and what was wrong about it."""
    shutil.copytree(made, lab)
    fault.inject(lab)
    before = contents(lab / "runs")
    with fault.during(lab):
        code, text = command(lab, *fault.command)
    after, wrong = contents(lab / "runs"), []
    said = [line for line in text.splitlines() if line.strip()]
    line = next((found for found in reversed(said) if fault.says in found), said[-1] if said else "")
    if fault.says not in line:
        wrong.append(f"did not say {fault.says!r}: {text[-1500:]}")
    if code != fault.code:
        wrong.append(f"exit code {code}, not {fault.code}")
    if "Traceback" in text:
        wrong.append("a traceback")
    lost = [name for name, data in before.items() if after.get(name) != data]
    if fault.changes:  # a run that goes on prunes and logs; what was good before must still be whole
        lost = [name for name in lost if "stopped" not in name]
        ends = [path for path in (lab / "runs").iterdir() if files.checkpoints(path)]
        for path in ends:
            newest = files.checkpoints(path)[-1]
            state = (
                load_file(newest / "projector.safetensors")
                if (newest / "projector.safetensors").is_file()
                else {}
            )
            if not all(torch.isfinite(tensor).all() for tensor in state.values()):
                lost.append(f"{newest} is not finite")
        lost += [
            str(path)
            for path in (lab / "runs").rglob(".*")
            if path.name.startswith(".checkpoint") and code == 0
        ]
    elif set(after) != set(before):
        wrong.append(f"files appeared: {sorted(set(after) - set(before))[:3]}")
    return line.strip(), ", ".join(lost) or "nothing", wrong


if __name__ == "__main__":
    failed = 0
    print("| fault | exit | printed | lost |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        built = laboratory(Path(temporary) / "made")
        for number, fault in enumerate(FAULTS):
            printed, lost, wrong = try_fault(fault, built, Path(temporary) / str(number))
            failed += bool(wrong) or lost != "nothing"
            print(f"| {fault.name} | {fault.code} | {printed.replace('|', '/')[:160]} | {lost} |", flush=True)
            for line in wrong:
                print(f"WRONG: {line}", file=sys.stderr)
    print(f"\n{len(FAULTS)} faults, {failed} not as they should be")
    sys.exit(failed > 0)
