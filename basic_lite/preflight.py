"""What would end a run late is found early: other inputs, a full disk, a save or a merge that fails."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from basic_lite import run_folder
from basic_lite.capture import parts_of
from basic_lite.export.weights import Adapters, base_decoder
from basic_lite.modeling import Sources, read_config
from basic_lite.tower import vision_config
from basic_lite.trainer import BasicTrainer

BYTES_PER_PARAMETER: int = 12
"""Of a checkpoint: an fp32 weight and Adam's two fp32 moments."""

REHEARSAL: str = ".rehearsal"
"""Folder of the save that is tried before the first step; removed at once."""


def check_parts(sources: Sources, manifest: dict) -> None:
    """Compare LLM and tower with the ones of a run, by their small files, before a weight is read.

    Raises:
        ValueError: If one is not the same.
    """
    configs = {
        "llm": read_config(sources.llm, "language model"),
        "tower": vision_config(read_config(sources.tower, "vision tower")),
    }
    for what, config in configs.items():
        now, then = run_folder.identity(getattr(sources, what), config), manifest[what]
        revisions = [side.get("revision") for side in (now, then)]
        if None in revisions and now.get("fingerprint") == then.get("fingerprint"):
            continue  # half of a two-sided configuration has no revision; the loaded part is compared later
        if now != then:
            raise ValueError(
                f"the run was trained on another {what} than {getattr(sources, what)} is now ({then} against "
                f"{now}); bring back the one it was trained on"
            )


def check_unchanged(sources: Sources, training: dict, data: dict, stage: int, folder: Path) -> None:
    """Compare a resumed run's inputs with the ones that it was started with, before a weight is read.

    What only the loaded model tells is compared again when it is there.

    Args:
        sources: of the model.
        training: hyperparameters, as the manifest has them.
        data: path, hash and number of rows.
        stage: 1 or 2.
        folder: the checkpoint.

    Raises:
        ValueError: Names what differs, and both values.
    """
    then = run_folder.read_manifest(folder)
    named = asdict(sources) | {"dtype": str(sources.dtype).removeprefix("torch.")}
    now = {"stage": {"stage": stage}, "sources": named, "training": training, "data": data}
    before = then | {"stage": {"stage": then["stage"]}}
    for key, values in now.items():
        differing = [name for name, value in values.items() if before[key].get(name) != value]
        if differing:
            old = {name: before[key].get(name) for name in differing}
            new = {name: values[name] for name in differing}
            raise ValueError(
                f"the run in {folder.parent} was started with another {key}: {old}, now {new}; resume with "
                "the same, or start again with --overwrite"
            )
    check_parts(sources, then)


def check_disk(out: Path, model: nn.Module, keep: int) -> None:
    """See that the checkpoints that a run keeps will fit, and one more while it is written.

    Raises:
        ValueError: If they will not; says how much is missing.
    """
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
    """Save, read back, and for adapters merge one matrix, before the first step is paid for.

    Raises:
        ValueError: If the folder cannot be written.
        AssertionError: If what is read is not what was written.
    """
    folder = out / REHEARSAL
    shutil.rmtree(folder, ignore_errors=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().cpu().clone() for name, p in trained.items()} if _small(trained) else {}
    try:
        try:
            trainer.save_weights(folder)
        except OSError as error:
            raise ValueError(f"{out} cannot be written to: {error}; choose another --out") from error
        trainer.load_weights(folder)
        for name, value in before.items():
            assert torch.equal(trained[name].detach().cpu(), value), f"{name} changed by a save and a reload"
        if (folder / run_folder.ADAPTER).is_file():
            _merge_one(model, folder, trainer.manifest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _small(trained: dict[str, nn.Parameter]) -> bool:
    """Whether a second copy of the trained weights may stand in memory: not of a whole decoder."""
    return sum(p.numel() for p in trained.values()) < 5e8


def _merge_one(model: nn.Module, folder: Path, manifest: dict | None) -> None:
    """Merge one matrix as the export does, and see that every adapter has its place in the base's files."""
    if manifest is None:
        return
    adapters = Adapters(folder)
    tied = parts_of(model).llava.config.tie_word_embeddings
    merged = None
    for entry in base_decoder(manifest["sources"]["llm"], manifest["llm"]["revision"], tied):
        found = adapters.merge(entry)
        if found is not entry and merged is None:
            merged = found.read()
            assert merged.dtype == torch.float32, "adapters are added in fp32"
            assert bool(torch.isfinite(merged).all()), f"{entry.name} is not finite after a merge"
    adapters.check_all_used()
