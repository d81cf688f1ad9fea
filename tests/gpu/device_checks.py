"""Everything that must be seen on a card: each command that runs a model, the kernels, a step of each family.

`CHECKS` is one list for two tests. `tests/gpu` runs it on a GPU (`pytest -m gpu`), and
`tests/gpu/test_devices.py` on a pretended one. A check is a function of a `Workshop`, which trains what it
needs on first demand, in a very small world, and keeps it for the later ones.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import run
from tiny import (
    DECODERS,
    adapted,
    llm_folder,
    target_space,
    tiny_assembled,
    tiny_batch,
    tiny_llava,
    tower_folder,
)
from tiny_trainer import failing, trainer

from basic_lite import chat
from basic_lite.bench.step import compare_steps, measure_steps
from basic_lite.data.world import world as data_world_world
from basic_lite.data.world.dataset import world_in, write_world
from basic_lite.data.world.world import held_out_scenes
from basic_lite.experiments import measure
from basic_lite.experiments.measure import inspect_model
from basic_lite.method.fit import fit_target
from basic_lite.method.supervision import BasicSupervision
from basic_lite.models import devices
from basic_lite.models.checkpoint import load_run

SIZES = {"captions": 40, "conversations": 40, "questions": 7}
"""Of the embedded world."""

FIRST = (
    "stage1",
    "--model",
    "tiny",
    "--workers",
    0,
    "--max-steps",
    1,
    "--global-batch",
    8,
    "--micro-batch",
    4,
)
SECOND = ("stage2", "--workers", 0, "--max-steps", 1, "--global-batch", 8, "--micro-batch", 4)

RUNS: dict[str, tuple] = {
    "stage1": (*FIRST, "--bits", 16),
    "stage1-4bit": (*FIRST, "--bits", 4),
    "stage1-translated": (*FIRST, "--bits", 4, "--target", "translated"),
    "lora": (*SECOND, "--lora", "--start", "stage1"),
    "lora-4bit": (*SECOND, "--lora", "--start", "stage1-4bit", "--optimizer", "paged-adamw-8bit"),
    "whole": (*SECOND, "--start", "stage1"),
    "stage1-tiles": (*FIRST, "--bits", 4, "--tiles", 4),
    "lora-tiles": (*SECOND, "--lora", "--start", "stage1-tiles"),
}
"""Run folder -> the command that makes it; `--start` names another one."""


@dataclass
class Workshop:
    """A folder with runs of the embedded model.

    Attributes:
        folder: where commands run.
    """

    folder: Path

    @property
    def device(self) -> str:
        return devices.choose_device()

    def run(self, *words: object) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data_world_world, "SCALE", SIZES)
            return run(*words, cwd=self.folder).stdout

    def of(self, name: str) -> Path:
        """Return a run's folder; trains it if it is not there."""
        words = RUNS[name]
        if not (self.folder / name / "manifest.json").is_file():
            shutil.rmtree(self.folder / name, ignore_errors=True)  # an earlier check broke off
            if "--start" in words:
                self.of(words[words.index("--start") + 1])
            self.run(*words, "--out", name)
        return self.folder / name

    def train(self, *words: object, out: str) -> list[dict]:
        """Train anew and return the lines of the log."""
        self.run(*words, "--out", out, "--overwrite", "--logging-steps", 1)
        return [json.loads(line) for line in (self.folder / out / "log.jsonl").read_text().splitlines()]

    def picture(self) -> Path:
        self.of("stage1")  # has drawn the world
        return self.world() / json.loads(world_in(self.world()).stage1.read_text())[0]["image"]

    def world(self) -> Path:
        folder = self.folder / "drawn"
        if not folder.is_dir():
            write_world(folder, **SIZES)
        return folder


Check = Callable[[Workshop], None]
CHECKS: dict[str, Check] = {}
"""What is typed, or what is looked at -> the check."""

GPU_ONLY: set[str] = set()
"""Checks of what a pretended GPU has not: other processes, and kernels."""


def check(name: str, *, pretended: bool = True) -> Callable[[Check], Check]:
    def note(function: Check) -> Check:
        assert name not in CHECKS
        CHECKS[name] = function
        if not pretended:
            GPU_ONLY.add(name)
        return function

    return note


for _name, _words in RUNS.items():
    check(
        " ".join(map(str, _words)).replace("--workers 0 --max-steps 1 --global-batch 8 --micro-batch 4 ", "")
    )(lambda shop, name=_name: shop.of(name))

for _options in (
    ("--target", "centred"),
    ("--no-basic",),
    ("--importance", "uniform"),
    ("--sds-text", "skip"),
    ("--no-recompute", "--rows-per-chunk", 32),
    ("--fit", "auto"),
    ("--intervention", "noise=0.5"),
    ("--intervention", "shuffled"),
    ("--intervention", "teacher=random"),
    ("--intervention", "teacher=tiny-decoder"),
):

    @check("stage1 " + " ".join(map(str, _options)))
    def trains(shop: Workshop, options: tuple = _options) -> None:
        (line,) = shop.train(*FIRST, *options, out="again")
        assert all(line[name] is not None for name in ("loss", "grad_norm"))


@check("stage2 --lora --target translated (with the maps of stage 1)")
def second_translated(shop: Workshop) -> None:
    shop.of("stage1-translated")
    shop.train(*SECOND, "--lora", "--start", "stage1-translated", "--target", "translated", out="again")


@check("stage2 --lora --resume")
def resumes(shop: Workshop) -> None:
    shop.of("stage1-4bit")
    words = [
        *SECOND,
        "--lora",
        "--start",
        "stage1-4bit",
        "--save-steps",
        1,
        "--optimizer",
        "paged-adamw-8bit",
    ]
    words[words.index("--max-steps") + 1] = 2
    shop.train(*words, out="resumed")
    folder = shop.folder / "resumed"
    shutil.rmtree(folder / "checkpoint-2")
    for path in folder.glob("*"):  # as if it had been killed in its second step
        if path.name in ("manifest.json", "projector.safetensors", "adapter_model.safetensors"):
            path.unlink()
    shop.run(*words, "--out", "resumed", "--resume")
    assert json.loads((folder / "manifest.json").read_text())["finished"]


@check("both stages of a gemma2 in 4 bits")
def capped_stages(shop: Workshop) -> None:
    data = world_in(shop.world())
    parts = ("--llm", llm_folder("gemma2"), "--tower", tower_folder(), "--bits", 4, *FIRST[3:])
    more = ("--images", shop.world())
    for line in (
        *shop.train("stage1", *parts, "--data", data.stage1, *more, out="capped"),
        *shop.train(*SECOND, "--lora", "--start", "capped", "--data", data.stage2, *more, out="capped-2"),
    ):
        assert line["loss"] > 0


@check("a step that runs out of memory is split")
def splits(shop: Workshop) -> None:
    model = adapted(tiny_llava()).to(shop.device)
    made = trainer(shop.folder / "split", model, batch=4, use_cpu=shop.device == "cpu", max_steps=1)
    failing(model, 2, "backward")
    made.train()
    assert made.splitter.limit == 2


for _decoder in (*DECODERS, "gemma2"):

    @check(f"two steps of a {_decoder}")
    def steps(shop: Workshop, decoder: str = _decoder) -> None:
        model = adapted(tiny_llava(decoder)).to(shop.device)
        made = trainer(shop.folder / decoder, model, use_cpu=shop.device == "cpu", max_steps=2)
        made.train()
        assert made.state.global_step == 2


for _kind in ("raw", "centred", "translated"):

    @check(f"BasicSupervision in a loop of one's own, {_kind} target")
    def loop(shop: Workshop, kind: str = _kind) -> None:
        model = tiny_llava().to(shop.device)
        # The space lies on the CPU, as one that was loaded does.
        space = "raw" if kind == "raw" else target_space(kind)
        supervision = BasicSupervision(model, target=space)
        batch = {name: value.to(shop.device) for name, value in tiny_batch("left").items()}
        with supervision:
            loss = model(**batch).loss
        (loss + supervision.loss()).backward()
        assert model.model.multi_modal_projector.linear_1.weight.grad.isfinite().all()


@check("fit_target for a loop of one's own")
def fits(shop: Workshop) -> None:
    assembled = tiny_assembled()
    model = assembled.model.to(shop.device)
    texts = [f"{number} red boxes on a hill" for number in range(300)]
    space = fit_target(model, assembled.tokenizer, texts)
    supervision = BasicSupervision(model, target=space)
    with supervision:
        model(**{name: value.to(shop.device) for name, value in tiny_batch().items()})
    assert supervision.loss().isfinite()


for _name in ("lora", "lora-4bit", "whole", "lora-tiles"):

    @check(f"eval mmbench --run {_name}")
    def evaluates(shop: Workshop, name: str = _name) -> None:
        shop.of(name)
        shop.run("eval", "mmbench", "--run", name, "--limit", 2)


@check("compare")
def compares(shop: Workshop) -> None:
    for name in ("lora", "whole"):
        evaluates(shop, name)
    assert "questions" in shop.run("compare", "lora", "whole")


for _name in ("lora", "lora-4bit", "lora-tiles"):

    @check(f"chat {_name}")
    def chats(shop: Workshop, name: str = _name) -> None:
        shop.of(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO("what is this\nand what else\n"))
            shop.run("chat", name, "--image", shop.picture(), "--max-new-tokens", 4)


@check("chat --web (an answer that grows, on a thread of its own)")
def grows(shop: Workshop) -> None:
    talk = chat.Chat(load_run(shop.of("lora"), shop.device)[0], 4)
    talk.show(shop.picture())
    assert list(talk.say("what is this"))[-1]


for _words in (
    ("stage1",),
    ("lora",),
    ("lora-4bit", "--base", "dequantised"),
    ("lora", "--to", "peft"),
    ("lora", "--to", "gguf"),
):

    @check("export " + " ".join(_words))
    def exports(shop: Workshop, words: tuple = _words) -> None:
        shop.of(words[0])
        out = f"exported-{words[0]}-{words[-1]}"
        shop.run("export", words[0], out, *words[1:])
        assert [path for path in (shop.folder / out).iterdir() if path.suffix in (".safetensors", ".gguf")]


@check("analyze tokens --against")
def analyses_tokens(shop: Workshop) -> None:
    shop.of("lora-4bit")
    shop.of("stage1-4bit")
    shop.run(
        "analyze", "tokens", "lora-4bit", "--against", "stage1-4bit", "--limit", 2, "--max-new-tokens", 4
    )


for _bits in (4, 16):

    @check(f"analyze premise --bits {_bits}")
    def analyses_premise(shop: Workshop, bits: int = _bits) -> None:
        shop.run("analyze", "premise", "--model", "tiny", "--bits", bits, "--tokens", 64)


@check("ablate: what a run of the embedded world is measured by")
def measures_world(shop: Workshop) -> None:
    shop.of("stage1")
    assert measure.measure(shop.folder, "stage1", 0, world=str(shop.world()), scenes=2)


@check("ablate: what a run on own data is measured by")
def measures_rows(shop: Workshop) -> None:
    shop.of("stage1-4bit")
    rows = {"data": str(world_in(shop.world()).stage1), "images": str(shop.world()), "count": 3}
    (shop.folder / "by-rows").mkdir(exist_ok=True)
    if not (shop.folder / "by-rows/stage1").exists():
        shutil.copytree(shop.folder / "stage1-4bit", shop.folder / "by-rows/stage1")
    found = measure.measure(
        shop.folder / "by-rows", "stage1", 0, rows=rows | {"label": "rows", "words": (" red", " blue")}
    )
    assert all(len(one.values) == 3 for one in found)


@check("demo: what its twins look into")
def inspects(shop: Workshop) -> None:
    found = inspect_model(load_run(shop.of("lora"), shop.device)[0], held_out_scenes(3, 0), views=1)
    assert len(found.caption_loss) == 3


for _stage in (1, 2):

    @check(f"bench step --stage {_stage} (of a tiny model)")
    def benches(shop: Workshop, stage: int = _stage) -> None:
        assembled = tiny_assembled()
        assembled.model.to(shop.device)
        found = measure_steps(
            assembled,
            stage=stage,
            basic=True,
            micro_batch=2,
            text=8,
            rank=4,
            recompute=None,
            steps=1,
            warm=1,
            cap_gib=None,
        )
        assert found["device"] != "cpu" or shop.device == "cpu"


@check("bench step --against (of a tiny model)")
def bench_against(shop: Workshop) -> None:
    assembled = tiny_assembled()
    assembled.model.to(shop.device)
    found = compare_steps(
        assembled, stage=1, micro_batch=2, text=8, rank=4, recompute=None, steps=1, warm=1, cap_gib=None
    )
    assert len(found) == 4


@check("bench generate")
def bench_generates(shop: Workshop) -> None:
    shop.of("lora")
    data = world_in(shop.world()).mmbench["en"]
    assert "ratio" in shop.run("bench", "generate", "--run", "lora", "--data", data, "--limit", 4)


@check("bench sds", pretended=False)
def bench_sds(shop: Workshop) -> None:
    shop.run("bench", "sds", "--rows", 64, "--width", 128, "--vocabulary", 1000, "--repeats", 1)


@check("bench step --model gemma-2b --decoder-layers 1", pretended=False)
def bench_real(shop: Workshop) -> None:
    words = ("--decoder-layers", 1, "--micro-batch", 1, "--text", 16, "--steps", 1, "--warm", 1)
    assert "peak MiB" in shop.run("bench", "step", "--model", "gemma-2b", *words)


@check("doctor", pretended=False)
def doctor(shop: Workshop) -> None:
    shop.run("doctor")


@check("demo", pretended=False)
def demo(shop: Workshop) -> None:
    shop.run("demo", "--out", "demo", "--scenes", 4)
