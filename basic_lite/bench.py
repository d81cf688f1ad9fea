"""Measure training steps of models of real size: speed and memory, with random weights and rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainingArguments

from basic_lite.bench_baselines import measure_baseline
from basic_lite.capture import parts_of
from basic_lite.data.images import ImageTransform
from basic_lite.devices import recompute_layers
from basic_lite.modeling import Assembled
from basic_lite.objective import Objective
from basic_lite.synthetic import RandomRows
from basic_lite.trainable import Adapters, train_adapters, train_projector
from basic_lite.trainer import BasicTrainer


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


def compare_steps(assembled: Assembled, **settings: object) -> list[dict[str, object]]:
    """Measure, in one process and in turn, our step and the two that others would take.

    Args:
        assembled: from `synthetic.random_model`.
        settings: of `measure_steps`, without `basic`.

    Returns:
        One row each: name, samples per second, peak MiB on a GPU, ratio to the documented plain step.
    """
    shared = {name: settings[name] for name in ("micro_batch", "text", "steps", "warm") if name in settings}
    runs: dict[str, Callable[[], dict]] = {
        "basic_lite, BASIC": lambda: measure_steps(assembled, basic=True, **settings),
        "basic_lite, plain": lambda: measure_steps(assembled, basic=False, prepared=True, **settings),
        "transformers and peft, plain": lambda: measure_baseline(assembled, naive=False, **shared),
        "the same, BASIC by whole maps and logits": lambda: measure_baseline(assembled, naive=True, **shared),
    }
    on_gpu = parts_of(assembled.model).embedding.is_cuda
    found: list[dict[str, object]] = []
    for name, run in runs.items():
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            facts = run()
        except (torch.OutOfMemoryError, ValueError) as error:
            if isinstance(error, ValueError) and "out of memory" not in str(error):
                raise
            found.append({"name": name, "why not": "out of memory"})
            continue
        speed = facts.get("samples/s", facts.get("samples/s (median)"))
        found.append({"name": name, "samples/s": speed, "peak MiB": facts["peak MiB"] if on_gpu else None})
    base = next((r.get("samples/s") for r in found if r["name"] == "transformers and peft, plain"), None)
    for row in found:
        if base and row.get("samples/s"):
            row["ratio"] = round(row["samples/s"] / base, 3)
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
) -> dict[str, object]:
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

    Raises:
        ValueError: If a cap is asked for where there is no GPU.
    """
    parts, tokens = parts_of(assembled.model), assembled.tokens_per_image
    device = parts.embedding.device
    emulate_card(cap_gib, device.type)
    if not prepared:
        if stage == 1:
            train_projector(assembled)
        else:
            train_adapters(assembled, Adapters(rank, 2 * rank, 0.05))
        recompute_layers(parts.decoder, recompute)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = RandomRows(
        (steps + warm) * micro_batch, tokens, text, parts.decoder.config.vocab_size, assembled.image_size
    )
    with tempfile.TemporaryDirectory() as scratch:
        args = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=micro_batch,
            max_steps=steps + warm,
            bf16=assembled.sources.dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        half = (0.5, 0.5, 0.5)
        trainer = BasicTrainer(
            assembled.model,
            args,
            objective=Objective() if basic else Objective(0, 0),
            transform=ImageTransform(size=assembled.image_size, mean=half, std=half, aspect="squash"),
            train_dataset=rows,
            data_collator=assembled.collator(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        log = [json.loads(line) for line in (Path(scratch) / "log.jsonl").read_text().splitlines()]
    speeds = sorted(row["samples_per_second"] for row in log[warm:])
    return {
        "model": assembled.sources.llm,
        "stage": stage,
        "BASIC": "on" if basic else "off",
        "tokens per row": 1 + tokens + text,
        "micro-batch": micro_batch,
        "layers recomputed": len(parts.decoder.layers) if recompute is None else recompute,
        "samples/s (median)": speeds[len(speeds) // 2],
        "peak MiB": log[-1]["peak_mib"],
        "loss": f"{log[0]['loss']:.3f} to {log[-1]['loss']:.3f}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
