"""Measure training steps of models of real size: speed and memory, with random weights and rows."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PrinterCallback

from basic_lite.bench_baselines import arguments_of, measure_baseline
from basic_lite.capture import parts_of
from basic_lite.data.images import ImageTransform
from basic_lite.devices import recompute_layers
from basic_lite.modeling import Assembled
from basic_lite.objective import Objective
from basic_lite.synthetic import RandomRows
from basic_lite.trainable import Adapters, train_adapters, train_projector
from basic_lite.trainer import BasicTrainer

Facts = dict[str, object]


def emulate_card(cap_gib: float | None, device: str) -> None:
    """Let this process have no more of a GPU's memory than a smaller card has; `None` changes nothing.

    Raises:
        ValueError: If a cap is asked for where there is no GPU.
    """
    if cap_gib is None:
        return
    if device != "cuda":
        raise ValueError("--cap emulates a card on a GPU; there is none here")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(cap_gib * 2**30 / total, 1.0))


def release_memory() -> None:
    """Forget what earlier measurements left to the collector, and start a GPU's peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def set_recomputed(assembled: Assembled, count: int | None) -> None:
    """Let the first `count` decoder layers run again in backward, whatever was set before; `None` for all."""
    decoder = parts_of(assembled.model).decoder
    for layer in decoder.layers:
        layer.gradient_checkpointing = False
    recompute_layers(decoder, count)


def compare_steps(
    assembled: Assembled, *, rounds: int = 1, naive: bool = True, baseline: bool = True, **settings: object
) -> list[Facts]:
    """Measure, in one process and in turn, our step and the two that others would take.

    Args:
        assembled: from `synthetic.random_model`.
        rounds: how often each has its turn, so that a slow minute of the machine meets them all.
        naive: also BASIC written plainly.
        baseline: also the plain step of transformers and peft.
        settings: of `measure_steps`, without `basic`.

    Returns:
        One row each: name, median samples per second over all rounds, highest peak in MiB (on a GPU), and
        the seconds of its step over those of our plain one and of the documented plain one.
    """
    shared = {name: settings[name] for name in ("micro_batch", "text", "steps", "warm") if name in settings}
    ours, theirs = "basic_lite, plain", "transformers and peft, plain"
    runs: dict[str, Callable[[bool], Facts]] = {
        "basic_lite, BASIC": lambda again: measure_steps(assembled, basic=True, prepared=again, **settings),
        ours: lambda again: measure_steps(assembled, basic=False, prepared=True, **settings),
    }
    if baseline:
        runs[theirs] = lambda again: measure_baseline(assembled, naive=False, **shared)
    if naive:
        runs["the same, BASIC by whole maps and logits"] = lambda again: measure_baseline(
            assembled, naive=True, **shared
        )
    on_gpu = parts_of(assembled.model).embedding.is_cuda
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = dict.fromkeys(runs, 0.0)
    failed: set[str] = set()
    for turn in range(rounds):
        for name, run in runs.items():
            if name in failed:
                continue
            release_memory()
            try:
                facts = run(turn > 0)
            except (torch.OutOfMemoryError, ValueError) as error:
                if isinstance(error, ValueError) and "out of memory" not in str(error):
                    raise
                failed.add(name)
                continue
            speeds[name] += facts["speeds"]
            peaks[name] = max(peaks[name], facts["peak MiB"] or 0.0)
    medians = {name: statistics.median(speeds[name]) for name in runs if name not in failed}
    found: list[Facts] = []
    for name in runs:
        if name in failed:
            found.append({"name": name, "why not": "out of memory"})
            continue
        row: Facts = {"name": name, "samples/s": round(medians[name], 4)}
        row["peak MiB"] = peaks[name] if on_gpu else None
        for base, column in ((ours, "time / our plain"), (theirs, "time / documented plain")):
            row[column] = round(medians[base] / medians[name], 3) if base in medians else None
        found.append(row)
    return found


def measure_steps(
    assembled: Assembled,
    *,
    stage: int,
    micro_batch: int,
    text: int,
    rank: int,
    recompute: int | None,
    basic: bool,
    steps: int,
    cap_gib: float | None,
    warm: int = 2,
    prepared: bool = False,
    optimizer: str = "adamw",
) -> Facts:
    """Train on random rows and say how fast it was and how much memory it took.

    Args:
        assembled: from `synthetic.random_model`.
        stage: 1 trains the projector, 2 adapters and projector.
        micro_batch: rows per step.
        text: text tokens per row.
        rank: of the adapters.
        recompute: decoder layers, the first ones, that run again in backward; `None` for all.
        basic: with BASIC's terms or without.
        steps: measured steps.
        cap_gib: memory of the card to emulate; `None` for the card's own.
        warm: steps before them.
        prepared: the model was measured before and its parameters are set.
        optimizer: one of `optimizers.NAMES`.

    Raises:
        ValueError: If a cap is asked for where there is no GPU, or a step did not fit and was split.
    """
    parts, tokens = parts_of(assembled.model), assembled.tokens_per_image
    device = parts.embedding.device
    emulate_card(cap_gib, device.type)
    if not prepared:
        if stage == 1:
            train_projector(assembled)
        else:
            train_adapters(assembled, Adapters(rank, 2 * rank, 0.05))
    set_recomputed(assembled, recompute)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = RandomRows(
        (steps + warm) * micro_batch, tokens, text, parts.decoder.config.vocab_size, assembled.image_size
    )
    with tempfile.TemporaryDirectory() as scratch:
        args = arguments_of(assembled, scratch, micro_batch, steps + warm, logging_steps=1)
        half = (0.5, 0.5, 0.5)
        trainer = BasicTrainer(
            assembled.model,
            args,
            objective=Objective() if basic else Objective(0, 0),
            transform=ImageTransform(size=assembled.image_size, mean=half, std=half, aspect="squash"),
            train_dataset=rows,
            data_collator=assembled.collator(),
            optimizer_name=optimizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        log = [json.loads(line) for line in (Path(scratch) / "log.jsonl").read_text().splitlines()]
    if any("micro_batch" in row for row in log):
        raise ValueError(f"out of memory: micro-batch {micro_batch} was split")
    speeds = [row["samples_per_second"] for row in log[warm:]]
    return {
        "model": assembled.sources.llm,
        "stage": stage,
        "BASIC": "on" if basic else "off",
        "tokens per row": 1 + tokens + text,
        "micro-batch": micro_batch,
        "layers recomputed": len(parts.decoder.layers) if recompute is None else recompute,
        "samples/s (median)": statistics.median(speeds),
        "speeds": speeds,
        "peak MiB": log[-1]["peak_mib"],
        "loss": f"{log[0]['loss']:.3f} to {log[-1]['loss']:.3f}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
