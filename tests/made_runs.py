"""Finished runs of tiny models, without training."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_assembled

from basic_lite import files
from basic_lite.export import adapter, folder
from basic_lite.models import checkpoint, trainable


def made_run(out: Path, decoder: str, tower: str, kind: str, **settings: object) -> Path:
    """Leave a finished run (`stage1`, `lora` or `whole`) with trained tensors far from where they began."""
    assembled = tiny_assembled(decoder, tower, **settings)
    torch.manual_seed(1)
    if kind == "lora":
        trainable.train_adapters(assembled, trainable.Adapters(rank=4, alpha=8))
    elif kind == "whole":
        trainable.train_everything(assembled)
    else:
        trainable.train_projector(assembled)
    for name, parameter in assembled.model.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3 if "projector" in name else 0.05)
    stage, training = 1 if kind == "stage1" else 2, {"lora": kind == "lora"}
    data = {"path": "rows.json", "rows": 3}
    manifest = checkpoint.manifest_of(assembled, stage, {"basic": False}, data, training)
    write_run(assembled, out, manifest | {"finished": True})
    return out


def write_run(assembled, out: Path, manifest: dict) -> None:
    """Write what a run's folder holds."""
    out.mkdir(parents=True)
    if hasattr(assembled.model, "peft_config"):
        assembled.model.save_pretrained(out)
    else:
        checkpoint.save_projector(assembled.model, out / files.PROJECTOR)
        if manifest["stage"] == 2:
            checkpoint.save_decoder(assembled.model, out / files.DECODER)
    files.write_json(out / files.MANIFEST, manifest)


def export(
    run: Path,
    out: Path,
    base=None,
    dtype=None,
    shard=2**30,
    to="hf",
    old_gemma=False,
    quantise=None,
    class_token=None,
) -> dict:
    """Export a run as the command does."""
    plan = folder.plan(run, out, base, dtype, "cpu", shard, old_gemma, to, quantise, class_token)
    make = {"hf": folder.export_hf, "peft": adapter.export_peft}.get(to)
    if make is None:
        from basic_lite.export.gguf import export_gguf as make
    return make(plan)
