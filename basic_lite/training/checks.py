"""Checks between a command and its first step, the cheap ones first."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import PretrainedConfig, TrainerState
from transformers.integrations.integration_utils import get_available_reporting_integrations

from basic_lite import files
from basic_lite.console import OTHER_LOG, rank_and_count
from basic_lite.data import hub
from basic_lite.data.batches import ORDER
from basic_lite.data.checks import check_budget, check_rows, unfit_findings
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.findings import note_lines
from basic_lite.data.mix import check_source, named_sources
from basic_lite.data.readers import JSON_FILES, Rows, row_files
from basic_lite.data.rows import WHITE, Finding
from basic_lite.data.stream import Stream, check_beginning
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.tiles import picture_sizes
from basic_lite.data.world import world
from basic_lite.export.weights import Adapters as SavedAdapters
from basic_lite.export.weights import base_decoder
from basic_lite.memory.available import check_whole_decoder_fits
from basic_lite.method.targets import INDIVIDUAL, supervised_layers
from basic_lite.models import checkpoint, zoo
from basic_lite.models.devices import choose_device
from basic_lite.models.llava import Outline, Sources, check_pool, outline, read_config, tiling_for
from basic_lite.models.parts import parts_of
from basic_lite.models.tower import check_tower_layer, vision_config
from basic_lite.models.trainable import Adapters
from basic_lite.training import teacher
from basic_lite.training.guards import DUMP
from basic_lite.training.plan import Plan
from basic_lite.training.settings import Data, Method, Settings
from basic_lite.training.start import Start
from basic_lite.training.trainer import BasicTrainer
from basic_lite.training.validation import HeldOut, History, check_held_out

BYTES_PER_PARAMETER: int = 12  # of a checkpoint: an fp32 weight and Adam's two fp32 moments

REHEARSAL: str = ".rehearsal"  # folder of the save that is tried before the first step; removed at once

BAD_ROWS: str = "bad.jsonl"  # rows that were replaced while training, one JSON object each, in the run folder


def check_disk(out: Path, model: nn.Module, keep: int) -> None:
    """Raise ValueError unless the checkpoints that a run keeps fit, and one more while it is written."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = trained * (BYTES_PER_PARAMETER * (keep + 1) + 4)
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"{out} needs {needed / 1e9:.2f} GB for {keep} checkpoints, one more while it is written, and "
            f"the result; {free / 1e9:.2f} GB are free. Free some, take another --out, or lower --keep"
        )


def rehearse(trainer: BasicTrainer, out: Path) -> None:
    """Save, read back, and for adapters merge one matrix, before the first step."""
    folder = out / REHEARSAL
    shutil.rmtree(folder, ignore_errors=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    small = sum(p.numel() for p in trained.values()) < 5e8  # a second copy fits: not of a whole decoder
    before = {name: p.detach().cpu().clone() for name, p in trained.items()} if small else {}
    try:
        try:
            trainer.save_weights(folder)
        except OSError as error:
            raise ValueError(f"{out} cannot be written to: {error}; choose another --out") from error
        trainer.load_weights(folder)
        for name, value in before.items():
            assert torch.equal(trained[name].detach().cpu(), value), f"{name} changed by a save and a reload"
        if (folder / files.ADAPTER).is_file():
            _merge_one(model, folder, trainer.manifest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _merge_one(model: nn.Module, folder: Path, manifest: dict | None) -> None:
    """Merge one matrix as the export does, and check that every adapter has its place in the base's files."""
    if manifest is None:
        return
    adapters = SavedAdapters(folder)
    tied = parts_of(model).llava.config.tie_word_embeddings
    merged = None
    for entry in base_decoder(manifest["sources"]["llm"], manifest["llm"]["revision"], tied):
        changed = adapters.merge(entry)
        if changed is not entry and merged is None:
            merged = changed.read()
            assert merged.dtype == torch.float32, "adapters are added in fp32"
            assert bool(torch.isfinite(merged).all()), f"{entry.name} is not finite after a merge"
    adapters.check_all_used()


def shards_asked_for(whole_decoder: bool = False) -> int:
    """Return over how many processes `accelerate launch` asks to cut the decoder's layers; refuse other cuts.

    Where accelerate finds its variable for FSDP it would wrap the whole model, and transformers would load it
    without weights: it is removed here (see `distributed`).
    """
    sharded = "ACCELERATE_USE_FSDP"
    plain = (
        "start with `accelerate launch --multi_gpu --num_processes N`, whatever `accelerate config` stored"
    )
    others = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
    for variable, name in others.items():
        if _is_on(variable):
            raise ValueError(
                f"accelerate launch asks for {name}, which cuts the whole model; here it is whole on each "
                f"card, or the decoder's layers alone are cut (--use_fsdp): {plain}"
            )
    if not _is_on(sharded):
        return 1
    if whole_decoder:
        raise ValueError(
            "accelerate launch asks for FSDP, which cuts a frozen decoder's layers with their adapters, and "
            f"not a decoder that is trained whole: add --lora, or {plain}"
        )
    if _is_on("FSDP_OFFLOAD_PARAMS"):
        raise ValueError(
            "accelerate launch asks for FSDP with weights on the host, which is not done here: leave "
            "--fsdp_offload_params out, whatever `accelerate config` stored"
        )
    del os.environ[sharded]
    return rank_and_count()[1]


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def check_sources(sources: Sources, settings: Settings) -> PretrainedConfig:
    """Check the parts' configurations before any weight is read; return the decoder's.

    Raises ValueError if a part is missing or not supported, k is out of range, or a whole decoder cannot fit.
    """
    check_stream(settings)
    config = read_config(sources.llm, "language model")
    zoo.family_of(config.model_type, sources.llm)
    supervised_layers(config, settings.method.layers)
    tower = vision_config(read_config(sources.tower, "vision tower"))
    zoo.tower_family_of(tower.model_type, sources.tower)
    check_tower_layer(sources.tower_layer, tower)
    check_pool(sources, tower)
    if tiling_for(sources, tower) is not None and settings.method.intervention != "none":
        raise ValueError(
            f"--intervention {settings.method.intervention} needs pictures of one square; leave --tiles out"
        )
    if sources.tiles > 1 and settings.method.kind == "individual":
        raise ValueError("--target individual compares pictures patch by patch; leave --tiles out")
    known = get_available_reporting_integrations()
    if settings.run.report_to not in ("none", *known):
        raise ValueError(
            f"--report-to {settings.run.report_to} is not installed here; "
            f"known here: {', '.join(known) or 'none'}"
        )
    if settings.shards > 1 and sources.bits == 8:
        raise ValueError("bitsandbytes' 8-bit layers cannot be cut (--use_fsdp); take --bits 4 or --bits 16")
    if settings.stage == 2 and not settings.lora:
        check_whole_decoder_fits(config, choose_device())
    return config


def check_stream(settings: Settings) -> None:
    """Refuse what needs the number of rows."""
    data = settings.data
    if not data.stream:
        return
    source, *others = data.sources
    if others or source.weight != 1:
        raise ValueError("--stream reads one --data without a weight: weights need the number of rows")
    if settings.max_steps <= 0:
        raise ValueError("--stream does not know how many rows there are: say where to stop with --max-steps")
    if settings.validation.val_share is not None:
        raise ValueError("--val-share needs the number of rows; with --stream give --val-data FILE")
    path, intervention = source.path, settings.method.intervention
    if any(file.name.endswith(JSON_FILES) for file in row_files(path)):
        raise ValueError(f"{path} is read row by row anyway, and shuffled as a whole: leave --stream out")
    if intervention != "none":
        raise ValueError(f"--intervention {intervention} needs rows by number: leave --stream out")
    if rank_and_count()[1] > 1:
        raise ValueError(
            "--stream is read by one process; start without `accelerate launch`, or leave it out"
        )


def check_folder(decided: Plan) -> Path | None:
    """Check that a run may use its folder, and return the checkpoint to resume from; changes nothing."""
    out, resume, overwrite = decided.settings.out, decided.settings.run.resume, decided.settings.run.overwrite
    if resume:
        checkpoints = files.checkpoints(out)
        if files.is_finished(out) and not (checkpoints and _has_steps_left(decided, checkpoints[-1])):
            raise ValueError(
                f"{out} is finished; nothing is left to resume (a larger --max-steps or --epochs lengthens "
                "it)"
            )
        if not checkpoints:
            raise ValueError(f"{out} holds no complete checkpoint to resume from; start without --resume")
        files.check_archives(checkpoints[-1])
        return checkpoints[-1]
    if rank_and_count()[0] > 0:
        return None  # the first process may have begun to write already
    if not overwrite and _leftovers(out):
        raise ValueError(
            f"{out} already holds a run; go on with --resume, start again with --overwrite, or choose "
            "another --out"
        )
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{out} cannot be written to ({existing} is in the way); choose another --out")
    return None


def _has_steps_left(decided: Plan, last: Path) -> bool:
    """Whether a finished run is to be lengthened, or a lengthened one was stopped."""
    return int(last.name.rpartition("-")[2]) > files.read_manifest(last.parent)["steps"] or lengthened(
        decided, last
    )


def lengthened(decided: Plan, resume: Path) -> bool:
    """Return whether a finished run is to go on to more steps, which `--stop-after` must not have ended."""
    settings, then = decided.settings, files.read_manifest(resume)["training"]
    if not files.is_finished(resume.parent):
        return False
    if (settings.max_steps, settings.epochs) == (then["max_steps"], then["epochs"]):
        return False
    assert isinstance(decided.steps, int), "the rows of a run that goes on are known"
    state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
    if decided.steps <= state.max_steps:
        return False
    if History.of(state.log_history).is_over(settings.validation.stop_after):
        again = "in another --out" if settings.stage == 1 else "go on from it with --start in another --out"
        raise ValueError(
            f"{resume.parent} was ended at step {state.global_step} by --stop-after, which more steps do not "
            f"change; start again with --overwrite, or {again}"
        )
    return True


@contextmanager
def claimed(decided: Plan) -> Iterator[Path | None]:
    """Hold a run's folder until the run ends, and give the checkpoint to go on from; see `check_folder`."""
    with files.held(decided.settings.out):
        yield check_folder(decided)


def _leftovers(out: Path) -> list[Path]:
    """Return what an earlier run left in its folder (evaluations stay)."""
    names = (
        files.MANIFEST,
        files.CHECKED,
        files.PROJECTOR,
        files.DECODER,
        files.TOWER,
        "log.jsonl",
        BAD_ROWS,
        teacher.FILE,
        DUMP,
        "adapter_*",
    )
    return [*files.checkpoints(out), *(path for name in names for path in out.glob(name))]


def clear(out: Path) -> None:
    for path in _leftovers(out):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / OTHER_LOG).unlink(missing_ok=True)  # alone it is no run: it may be all that a failed start left
    out.mkdir(parents=True, exist_ok=True)


def training_files(stage: int, llm: str, data: Data, out: Path, console: Console, draw: bool) -> Data:
    """Find a stage's annotation file and image root: the user's, the embedded world's, or the hub's.

    The embedded decoder's world lies beside `out`; `draw` draws one that is missing.
    """
    if data.stream and not data.data:
        raise ValueError("--stream reads a data set of your own: add --data HUB_ID")
    if data.data:
        for source in data.sources:
            check_source(source)
        return data
    if not world.is_embedded(llm):
        path, images = hub.fetch(stage, data.images)
        return replace(data, data=[path], images=images)
    drawn = world.world_beside(out, console.print if draw else None)
    console.print(
        f"Offline, in the embedded world ({drawn.images}): drawn scenes, a decoder of 1.4 M parameters."
    )
    return replace(data, data=[str(drawn.stage1 if stage == 1 else drawn.stage2)], images=[str(drawn.images)])


def bound_to_passes(method: Method) -> str:
    """Return the option by which a loss depends on which rows share a pass; empty where it does not."""
    if method.intervention.split("=")[0] in ("noise", "shuffled"):
        return f"--intervention {method.intervention}"
    return f"--target {INDIVIDUAL}" if method.basic and method.kind == INDIVIDUAL else ""


@dataclass(frozen=True)
class Passes:
    """How the rows of an optimizer step are put through the model; the update does not depend on it."""

    order_rows: int  # rows of a pass, over all processes, when the run began: its order is made for them
    micro_batch: int  # rows of a pass in one process
    processes: int  # that share the rows
    workers: int  # that prepare them

    @classmethod
    def of(cls, settings: Settings, then: dict | None = None) -> Passes:
        """Return those of settings, in the order of the run that is resumed (`then`, its manifest)."""
        processes = rank_and_count()[1]
        rows = settings.micro_batch * processes
        now = cls(rows, settings.micro_batch, processes, settings.data.processes)
        if then is None:
            return now
        before = now.before(then)
        made = replace(now, order_rows=before.order_rows)
        changed = rows != before.micro_batch * before.processes
        bound = bound_to_passes(settings.method)
        if changed and bound:
            raise ValueError(
                f"{bound} depends on which rows share a pass: resume with --micro-batch "
                f"{before.micro_batch} and {before.processes} processes"
            )
        if processes > 1 and made.loaded != rows:
            raise ValueError(
                f"over {processes} processes a run goes on with {made.order_rows} rows per pass or more, "
                f"a multiple; got {processes} x {settings.micro_batch}: choose another --micro-batch"
            )
        return made

    @property
    def loaded(self) -> int:
        """Rows that are loaded together, over all processes: a multiple of the order's and of a pass's.

        They are the same as ever; where a pass is smaller, they are split in training.
        """
        return math.lcm(self.order_rows, self.micro_batch * self.processes)

    def before(self, then: dict) -> Passes:
        """Return those before the run was resumed; an older manifest has the micro-batch alone."""
        rows = then["training"]["micro_batch"]
        known = asdict(self) | {"micro_batch": rows, "order_rows": rows * self.processes}
        return Passes(**known | then.get("passes", {}))

    def changes(self, then: dict) -> dict[str, list[int]]:
        """Return what a resumed run changes: name -> before and now."""
        before, names = self.before(then), ("micro_batch", "processes", "workers")
        pairs = {name: [getattr(before, name), getattr(self, name)] for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def changes_line(changes: dict[str, list[int]], dropout: float, bits: int) -> str:
    """Describe `Passes.changes`, and what in the numbers depends on them."""
    parts = ", ".join(
        f"{name.replace('_', '-')} {now} ({old} before)" for name, (old, now) in changes.items()
    )
    line = f"going on with {parts}: the same rows and the same loss in every step"
    if not {"micro_batch", "processes"} & set(changes):
        return line
    other = [f"adapters' dropout of {dropout} draws other masks"] if dropout else []
    other += ["8-bit layers round by what shares a pass"] if bits == 8 else []
    return f"{line}, up to rounding" + (f"; {' and '.join(other)}" if other else "")


def check_before_loading(
    sources: Sources, decided: Plan, resume: Path | None, console: Console, start: Start | None = None
) -> None:
    """Look through the rows, whose faults are noted, and at the run to start from or to go on with.

    Raises ValueError as `check_resumable`, `Start.check` and `outline`, and if too many rows are bad for the
    budget: those whose pictures do not fit, too, which takes the tokenizer and no weights.
    """
    settings, rows = decided.settings, decided.rows
    assert rows is not None, "a dry run loads nothing"
    if resume is not None:
        check_resumable(sources, decided, resume, start)
    elif start is not None:
        start.check()
    known = outline(sources)
    template = TEMPLATES["plain"] if settings.stage == 1 else known.template
    text = known.text_encoder(template, known.longest(settings.data.max_length))
    if isinstance(rows, Stream):
        for line in check_beginning(rows, settings.stage) if resume is None else []:
            console.print(line)
    else:
        _choose_rows(rows, text, known, settings, console, resume is not None)
    assert isinstance(decided.steps, int), "only a dry run does not know them"
    if line := check_held_out(decided.held_out, rows, settings, decided.steps, text):
        console.print(line)
    if settings.stage == 2:
        console.print(f"conversations are written in the template {template.name}")


def _choose_rows(
    rows: Rows, text: TextEncoder, known: Outline, settings: Settings, console: Console, resumed: bool
) -> None:
    """Leave out what cannot be trained on; in a resumed run what was left out before, whatever is seen."""
    rows.faults = check_rows(rows, settings.stage, say=console.print)
    check_budget(rows, settings.data.bad_budget, settings.stage)
    if known.tiling is not None:
        console.print("Tiles go by the pictures' sizes: read once, and kept beside the data.")
        rows.sizes = picture_sizes(rows, max(settings.data.processes, 1), known.sources.exif)
    if resumed:
        lines = files.read_log(settings.out / BAD_ROWS)
        rows.faults = [Finding(**line) for line in lines if "replaced_by" not in line]
        return
    rows.faults = [*rows.faults, *unfit_findings(rows, text)]
    check_budget(rows, settings.data.bad_budget, settings.stage)
    for line in note_lines(rows):
        console.print(line)


def check_resumable(sources: Sources, decided: Plan, resume: Path, start: Start | None = None) -> None:
    """Refuse to resume a run with other inputs or from damaged files; the error names which.

    What only the loaded model tells counts as unchanged here, and is compared when it is there.
    """
    then = files.read_manifest(resume)
    if then["data"].get("order") != ORDER:
        raise ValueError(
            f"the run in {resume.parent} was begun by a basic-lite that puts rows in another order "
            f"({then['versions'].get('basic-lite')}): finish it with that one, or start again with "
            "--overwrite"
        )
    settings, rows = decided.settings, decided.rows
    assert rows is not None, "a dry run resumes nothing"
    known = {
        "stage": settings.stage,
        "sources": checkpoint.named(sources),
        "data": then["data"] | {"held_out": None} | data_of(settings, rows, decided.held_out),
        "training": hyperparameters(settings),
    }
    check_same_run(then | known, then, resume, longer=lengthened(decided, resume))
    if decided.adapters is not None:
        _check_adapters(decided.adapters, resume)
    if start is not None:
        _check_start(start, then.get("from") or {}, resume)
    checkpoint.check_parts(sources, then)
    Passes.of(settings, then)
    if rank_and_count()[0] == 0:
        files.check_files(resume, "weights", "state")


def _check_adapters(adapters: Adapters, resume: Path) -> None:
    """Refuse other adapters than a checkpoint's, of which PEFT keeps the settings beside the weights."""
    then = checkpoint.adapter_config(resume)
    for name, had in (("rank", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout")):
        if getattr(adapters, name) != then[had]:
            raise ValueError(
                f"the run in {resume.parent} was started with --{name} {then[had]}, now "
                f"{getattr(adapters, name)}; resume with the same settings, or start again with --overwrite"
            )


def _check_start(start: Start, then: dict[str, str], resume: Path) -> None:
    """Refuse another start than a run's, by the hashes of its files: it may lie elsewhere now."""
    if any(then.get(name) not in (None, sha) for name, sha in start.hashes.items()):
        was = next(source for name, source in then.items() if name not in start.hashes)
        raise ValueError(
            f"the run in {resume.parent} was started from {was}, and --start {start.source} holds other "
            "weights: name the folder that it was started from, or start again with --overwrite"
        )


def check_same_run(now: dict, then: dict, resume: Path, longer: bool = False) -> None:
    """Refuse to go on with other settings than the checkpoint's, but for the micro-batch; says what differs.

    A run that goes on to more steps, a `longer` one, may also differ in their number.
    """
    # May be others; of the micro-batch see `Passes`.
    free = {"micro_batch", *(("epochs", "max_steps", "val_steps") if longer else ())} & set(now["training"])
    then = then | {"training": then["training"] | {name: now["training"][name] for name in free}}
    # What older versions did not write was this.
    then["sources"] = {"exif": "ignore", "background": WHITE} | then["sources"]
    for key in ("stage", "sources", "llm", "tower", "template", "image_size", "method", "data", "training"):
        old, new = then[key], now[key]
        if key == "data" and _content(old) == _content(new):
            continue  # perhaps moved
        if isinstance(old, dict):  # what an older version did not write counts as `None`
            names = [name for name in old | new if old.get(name) != new.get(name)]
            old, new = ({name: side.get(name) for name in names} for side in (old, new))
        if old != new:
            raise ValueError(
                f"the run in {resume.parent} was started with another {key}: {old}, now {new}; "
                "resume with the same settings, or start again with --overwrite"
            )


def _content(data: Any) -> Any:
    """Return what a manifest says of data without the files' places: their hashes tell what they hold."""
    if isinstance(data, dict):
        return {name: _content(value) for name, value in data.items() if name != "path" and value is not None}
    return [_content(part) for part in data] if isinstance(data, list) else data


def data_of(settings: Settings, rows: Rows | Stream, held_out: HeldOut | None = None) -> dict[str, object]:
    """Return what a manifest says of the data."""
    sources = settings.data.sources
    data: dict[str, object] = {"path": named_sources(sources), "sha256": rows.sha256}
    data |= {"stream": True} if isinstance(rows, Stream) else {"rows": len(rows)}
    data |= {"order": ORDER}
    if isinstance(rows, Rows) and rows.parts[0] is not rows:
        data["sets"] = [
            {"path": str(source.path), "sha256": part.sha256, "rows": len(part), "weight": source.weight}
            for source, part in zip(sources, rows.parts, strict=True)
        ]
    return data if held_out is None else data | {"held_out": held_out.identity()}


def hyperparameters(settings: Settings) -> dict[str, object]:
    """Return the settings that a resumed run must share, but for the micro-batch (see `Passes`)."""
    measured: dict[str, object] = {}
    if settings.validation.on:
        measured = {"val_steps": settings.validation.val_steps, "stop_after": settings.validation.stop_after}
    if settings.tower.on:
        measured |= asdict(settings.tower)
    return measured | {
        "aspect": settings.aspect,
        "learning_rate": settings.learning_rate,
        "projector_learning_rate": settings.projector_learning_rate,
        "global_batch": settings.global_batch,
        "micro_batch": settings.micro_batch,
        "epochs": settings.epochs,
        "max_steps": settings.max_steps,
        "max_length": settings.data.max_length,
        "group": settings.group,
        "lora": settings.lora,
        "optimizer": settings.optimizer,
        "bad_budget": settings.data.bad_budget,
        "min_rating": settings.data.min_rating,
        "seed": settings.run.seed,
    }
