"""Everything that must be seen on a card: each command that runs a model, the kernels, a step of each family.

`CHECKS` is one list for two tests. `tests/gpu` runs it on a GPU (`pytest -m gpu`), and
`tests/gpu/test_devices.py` on a pretended one. A check is a function of a `Workshop`, which trains what it
needs on first demand, in a very small world, and keeps it for the later ones.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bench.start import measure_starts
from command import run
from tiny import (
    DECODERS,
    IMAGE_TOKEN,
    adapted,
    llm_folder,
    target_space,
    tiny_assembled,
    tiny_batch,
    tiny_llava,
    tower_folder,
)
from tiny_trainer import failing, trainer
from torch import nn

from basic_lite import chat
from basic_lite.bench.step import Step, compare_steps, measure_steps
from basic_lite.data.layout import layout_of
from basic_lite.data.world import world as data_world_world
from basic_lite.data.world.dataset import world_in, write_world
from basic_lite.data.world.signs import write_signs
from basic_lite.data.world.world import held_out_scenes
from basic_lite.experiments import curves, measure
from basic_lite.experiments.measure import inspect_model
from basic_lite.method.chunks import Chunk
from basic_lite.method.fit import fit_target
from basic_lite.method.losses import semantic_distribution
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.types import Refinement, Window
from basic_lite.models import decoder_layer, devices
from basic_lite.models.adapters import group_adapters
from basic_lite.models.checkpoint import load_run
from basic_lite.models.decoder_layer import keep_dequantised, streamline
from basic_lite.models.devices import recompute_layers
from basic_lite.models.parts import parts_of
from basic_lite.models.projector import split_product

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
    "lora-tower": (*SECOND, "--lora", "--start", "stage1-4bit", "--train-tower"),
    "lora-tower-lora": (*SECOND, "--lora", "--start", "stage1", "--tower-lora", 4),
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
    ("--no-fused-kernels",),
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


HELD_OUT = ("--val-share", "10%", "--val-steps", 1, "--val-samples", 2, "--keep", "best")

for _options in (
    ("stage1", "--model", "tiny", "--bits", 4),
    ("stage2", "--lora", "--start", "stage1-4bit"),
    ("stage2", "--start", "stage1"),
    ("stage2", "--lora", "--start", "stage1-tiles"),
):

    @check(" ".join(map(str, (*_options, "--val-share --keep best"))))
    def validates(shop: Workshop, options: tuple = _options) -> None:
        """Losses, both terms, what patches name, answers, and the best checkpoint's weights."""
        if "--start" in options:
            shop.of(options[-1])
        *_, last = shop.train(*options, *SECOND[1:], *HELD_OUT, out="validated")
        measured = {name: value for name, value in last.items() if name.startswith("val_")}
        assert len(measured) == 8, measured
        assert all(value is not None for value in measured.values()), measured
        assert len(last["samples"]) == 2
        manifest = json.loads((shop.folder / "validated/manifest.json").read_text())
        assert manifest["validation"]["best"] is not None


@check("stage1 --along (the curves of an ablation)")
def measures_along(shop: Workshop) -> None:
    rows = {"data": str(world_in(shop.world()).stage1), "images": str(shop.world()), "count": 4}
    for what in ({"world": str(shop.world()), "scenes": 4}, {"rows": rows | {"label": "rows"}}):
        shop.train(*FIRST, "--along", json.dumps(what | {"seed": 0}), out="along")
        points = curves.read(shop.folder / "along")
        assert points
        assert all(measure.values for measure in points[-1].measures)


@check("a run is read by the host, not by a GPU that peft chooses")
def reads_on_the_host(shop: Workshop) -> None:
    shop.of("lora-4bit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.peft_model.infer_device", lambda: pytest.fail("the first GPU is chosen"))
        model = load_run(shop.folder / "lora-4bit", shop.device)[0].model
    assert {parameter.device.type for parameter in model.parameters()} == {shop.device}


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


@check("L_sds in tiles of the vocabulary")
def walks_in_tiles(shop: Workshop) -> None:
    """Value and gradient in bf16 and fp32 as those of whole rows, within what each precision rounds."""
    generator = torch.Generator().manual_seed(0)
    vectors, table = torch.randn(3, 37, 64, generator=generator), torch.randn(9_000, 64, generator=generator)
    importance, image = (torch.rand(37, generator=generator).to(shop.device), torch.zeros(37).long())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 4e-3)):
        results = []
        for chunk in (Chunk(16, 9_000), Chunk(16, 4_000), Chunk(37, 1_000)):
            initial = vectors[0].to(shop.device, dtype).requires_grad_()
            target = (vectors[0] + 0.1 * vectors[1]).to(shop.device, dtype).float()
            seen = Refinement(initial, target, importance, image.to(shop.device), 1)
            total = semantic_distribution(seen, table.to(shop.device, dtype), chunk).total
            total.backward()
            results.append((total.detach(), initial.grad.float()))
        for value, gradient in results[1:]:
            assert abs(value - results[0][0]) <= 1e-4 * results[0][0]
            assert (gradient - results[0][1]).norm() <= tolerance * results[0][1].norm()


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


for _name in ("lora", "lora-4bit", "whole", "lora-tiles", "lora-tower", "lora-tower-lora"):

    @check(f"eval mmbench --run {_name}")
    def evaluates(shop: Workshop, name: str = _name) -> None:
        shop.of(name)
        shop.run("eval", "mmbench", "--run", name, "--limit", 2)


@check("compare")
def compares(shop: Workshop) -> None:
    for name in ("lora", "whole"):
        evaluates(shop, name)
    assert "questions" in shop.run("compare", "lora", "whole")


for _name in ("lora", "lora-4bit", "lora-tiles", "lora-tower", "lora-tower-lora"):

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
    assert "".join(talk.say("what is this")).strip()  # its last piece may be empty


for _words in (
    ("stage1",),
    ("lora",),
    ("lora-4bit", "--base", "dequantised"),
    ("lora-tower", "--base", "dequantised"),
    ("lora-tower-lora",),
    ("lora", "--to", "peft"),
    ("lora", "--to", "gguf"),
):

    @check("export " + " ".join(_words))
    def exports(shop: Workshop, words: tuple = _words) -> None:
        shop.of(words[0])
        out = f"exported-{words[0]}-{words[-1]}"
        shop.run("export", words[0], out, *words[1:])
        assert [path for path in (shop.folder / out).iterdir() if path.suffix in (".safetensors", ".gguf")]


for _run in ("lora-4bit", "lora-tiles"):

    @check(f"eval mmbench --model (what export made of {_run})")
    def evaluates_folder(shop: Workshop, run: str = _run) -> None:
        shop.of(run)
        data = world_in(shop.world()).mmbench["en"]
        if not (shop.folder / f"folder-{run}").is_dir():
            shop.run("export", run, f"folder-{run}", "--base", "dequantised")
        shop.run("eval", "mmbench", "--model", f"folder-{run}", "--data", data, "--limit", 2)


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
    signs = shop.folder / "signs"
    if not signs.is_dir():
        write_signs(signs, 0, captions=3, held_out=3)
    found = measure.measure(shop.folder / "by-rows", "stage1", 0, rows=rows | {"label": "rows"})
    found += measure.measure(shop.folder / "by-rows", "stage1", 0, signs=str(signs), scenes=3)
    assert {"loss", "read"} <= {one.name.removeprefix("caption_") for one in found}
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
        found = measure_steps(assembled, Step(stage, micro_batch=2, text=8, rank=4, steps=1, warm=1))
        assert found["device"] != "cpu" or shop.device == "cpu"


for _stage in (1, 2):

    @check("bench step --against (of a tiny model)" if _stage == 1 else "bench step --stage 2 --against")
    def bench_against(shop: Workshop, stage: int = _stage) -> None:
        assembled = tiny_assembled()
        assembled.model.to(shop.device)
        found = compare_steps(assembled, Step(stage, micro_batch=2, text=8, rank=4, steps=1, warm=1))
        assert len(found) == (4 if stage == 1 else 5)  # with Unsloth's line, measured or not


def gradients_of(shop: Workshop, model: nn.Module, **settings: object) -> dict[str, torch.Tensor]:
    made = trainer(shop.folder / "gradients", model, use_cpu=shop.device == "cpu", **settings)
    made.create_optimizer()
    batch = {name: value.to(shop.device) for name, value in tiny_batch().items()}
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    made.transform = None
    made.training_step(made.model, batch | {"layout": layout}, Window(17, 5))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


for _decoder, _again in itertools.product(("llama", "gemma", "phi3"), (0, None)):

    @check(f"gradients of layers in few operations, {_decoder}, {'kept' if _again == 0 else 'run again'}")
    def streamlines(shop: Workshop, decoder: str = _decoder, again: int | None = _again) -> None:
        targets = r".*language_model.*_proj"
        found = []
        for grouped in (False, True):  # Liger's modules are in either way
            model = adapted(tiny_llava(decoder), target_modules=targets).to(shop.device)
            recompute_layers(parts_of(model).decoder, again)
            found.append(gradients_of(shop, model, grouped_adapters=grouped))
        kinds = [type(layer).__module__ for layer in parts_of(model).decoder.layers]
        assert kinds[:3] == ["basic_lite.models.decoder_layer"] * 3
        for name, gradient in found[0].items():
            assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@check("layers held dequantised give the same bits")
def holds(shop: Workshop) -> None:
    found, passes = [], []
    begin = decoder_layer._Pass.begin
    for count in (0, 2):
        shop.of("lora-4bit")
        model = load_run(shop.folder / "lora-4bit", shop.device)[0].model
        decoder = parts_of(model).decoder
        model.train()
        for parameter in parts_of(model).llava.multi_modal_projector.parameters():
            parameter.requires_grad_(True)
        group_adapters(decoder.layers)
        assert streamline(decoder) == len(decoder.layers) - 1
        half = decoder.dtype == torch.bfloat16  # on a GPU; then as the trainer has it, under autocast
        assert keep_dequantised(decoder, count, decoder.dtype) == count
        x = torch.randn(2, 9, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
        x = x.to(shop.device, decoder.dtype).requires_grad_()
        torch.manual_seed(0)  # of the adapters' masks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                decoder_layer._Pass, "begin", lambda run, *a, **k: passes.append(run) or begin(run, *a, **k)
            )
            with torch.autocast(shop.device, torch.bfloat16, enabled=half):
                states = decoder(inputs_embeds=x, use_cache=False).last_hidden_state
            states.float().square().sum().backward()
        found.append(x.grad)
    assert len(passes) >= 2 * (len(decoder.layers) - 1), "PEFT's own layers ran"
    assert torch.equal(*found)


@check("the projector's fp32 products made of bf16 ones")
def splits_products(shop: Workshop) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=generator).to(shop.device) for size in ((64, 1024), (1024, 96)))
    truth = x.double() @ weight.double()
    assert (split_product(x, weight).double() - truth).norm() < 1e-5 * truth.norm()


@check("python -m bench.start_command (two starts of a 7B; 18 GB of disk)", pretended=False)
def starts(shop: Workshop) -> None:
    try:
        first, second = measure_starts("vicuna-7b", shop.device, None if shop.device == "cuda" else 1)
    except ValueError as error:
        if "GB are free" not in str(error):
            raise
        pytest.skip(str(error))  # the disk is too small
    assert second["seconds"] < first["seconds"]


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
    shop.run("demo", "--out", "demo", "--scenes", 8)
