"""Measure training steps of models of real size: speed and memory, with random weights and rows.

`bench step --against` puts steps of others beside ours: LLaVA's plain one as transformers and PEFT document
it, in stage 2 also with Unsloth's LoRA layers, and BASIC written plainly.
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from basic_lite.bench import unsloth_layers
from basic_lite.bench.synthetic import RandomRows
from basic_lite.data.pictures import ImageTransform
from basic_lite.files import read_log
from basic_lite.memory.peak import Optimizer
from basic_lite.method.objective import Objective
from basic_lite.method.targets import layer_weights, supervised_layers
from basic_lite.method.types import DAS_WEIGHT, SDS_WEIGHT
from basic_lite.models import zoo
from basic_lite.models.decoder_layer import as_published
from basic_lite.models.devices import recompute_layers
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import layers_of, parts_of
from basic_lite.models.softcap import caps_attention
from basic_lite.models.trainable import (
    Adapters,
    draw_again_in_backward,
    keep_dropout,
    train_adapters,
    train_projector,
)
from basic_lite.training.trainer import BasicTrainer, stay_on_one_gpu

Facts = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What is trained in a measured step, and how."""

    stage: Literal[1, 2]  # 1 trains the projector, 2 adapters and projector
    micro_batch: int  # rows
    text: int  # tokens per row beside the picture's
    rank: int = zoo.RANK  # of the adapters
    recompute: int | None = None  # decoder layers, the first ones, that run again in backward; `None` for all
    steps: int = 20  # measured
    warm: int = 2  # before them
    cap_gib: float | None = None  # memory of the card to emulate; `None` for the card's own


def measure_steps(
    assembled: Assembled, step: Step, *, basic: bool = True, optimizer: Optimizer = "adamw"
) -> Facts:
    """Train on random rows, with BASIC's terms or without, and return how fast it was and its peak.

    A model that was measured before goes on with the adapters it has. Raises ValueError if a cap is asked for
    where there is no GPU, or a step did not fit and was split.
    """
    device = parts_of(assembled.model).embedding.device
    emulate_card(step.cap_gib, device.type)
    if step.stage == 1:
        train_projector(assembled)
    elif not isinstance(assembled.model, PeftModel):
        train_adapters(assembled, Adapters(step.rank, 2 * step.rank))
    set_recomputed(assembled, step.recompute)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch:
        random_rows_trainer(assembled, step, scratch, basic=basic, optimizer=optimizer).train()
        log = read_log(Path(scratch) / "log.jsonl")
    if any("micro_batch" in row for row in log):
        raise ValueError(f"out of memory: micro-batch {step.micro_batch} was split")
    speeds = [row["samples_per_second"] for row in log[step.warm :]]
    depth = len(layers_of(parts_of(assembled.model).decoder))
    return {
        "model": assembled.sources.llm,
        "stage": step.stage,
        "BASIC": "on" if basic else "off",
        "tokens per row": 1 + assembled.tokens_per_image + step.text,
        "micro-batch": step.micro_batch,
        "layers recomputed": depth if step.recompute is None else step.recompute,
        "samples/s (median)": statistics.median(speeds),
        "speeds": speeds,
        "peak MiB": log[-1]["peak_mib"],
        "loss": f"{log[0]['loss']:.3f} to {log[-1]['loss']:.3f}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }


def random_rows_trainer(
    assembled: Assembled, step: Step, scratch: str, *, basic: bool = True, optimizer: Optimizer = "adamw"
) -> BasicTrainer:
    """Return our trainer of a model whose trained parameters are set; it writes into the folder `scratch`."""
    trainer = BasicTrainer(
        assembled.model,
        _arguments(assembled, step, scratch, logging_steps=1),
        objective=Objective() if basic else Objective(0, 0),
        transform=_transform(assembled),
        optimizer_name=optimizer,
        train_dataset=_rows(assembled, step),
        data_collator=assembled.collator(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(assembled: Assembled, step: Step, scratch: str, **more: Any) -> TrainingArguments:
    """Return the arguments that ours and others' Trainers share: nothing is saved or reported."""
    args = TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=step.micro_batch,
        max_steps=step.warm + step.steps,
        bf16=assembled.sources.dtype == torch.bfloat16,
        use_cpu=parts_of(assembled.model).embedding.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    stay_on_one_gpu(args)
    return args


def _rows(assembled: Assembled, step: Step) -> RandomRows:
    count = (step.warm + step.steps) * step.micro_batch
    vocabulary = parts_of(assembled.model).decoder.config.vocab_size
    return RandomRows(count, assembled.tokens_per_image, step.text, vocabulary, assembled.image_size)


def _transform(assembled: Assembled) -> ImageTransform:
    half = (0.5, 0.5, 0.5)
    return ImageTransform(size=assembled.image_size, mean=half, std=half, aspect="squash")


def emulate_card(cap_gib: float | None, device: str) -> None:
    """Let this process have no more of a GPU's memory than a smaller card has; `None` changes nothing.

    Raises ValueError if a cap is asked for where there is no GPU.
    """
    if cap_gib is None:
        return
    if device != "cuda":
        raise ValueError("--cap emulates a card on a GPU; there is none here")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(cap_gib * 2**30 / total, 1.0))


def set_recomputed(assembled: Assembled, count: int | None) -> None:
    """Let the first `count` decoder layers run again in backward, whatever was set before; `None` for all."""
    decoder = parts_of(assembled.model).decoder
    for layer in layers_of(decoder):
        setattr(layer, "gradient_checkpointing", False)  # noqa: B010 (a Module's attributes are typed)
    recompute_layers(decoder, count)


def compare_steps(
    assembled: Assembled,
    step: Step,
    *,
    rounds: int = 1,  # how often each has its turn
    naive: bool = True,  # also BASIC written plainly
    baseline: bool = True,  # also the plain step of transformers and peft
    micro_batches: Sequence[int] = (),  # for the documented plain step to choose from, besides ours
) -> list[Facts]:
    """Measure, in one process and in shuffled turns, our step and those that others would take.

    The documented plain step is measured at its best (see `at_its_best`). In stage 2 it is measured with
    Unsloth's LoRA layers too where that is installed, after everything else: its import changes transformers
    and PEFT for the rest of the process.

    Returns:
        One row each: name, median samples per second over all rounds, highest peak in MiB (on a GPU), and
        the seconds of its step over those of our plain one and of the documented plain one, with the 95 %
        interval of that ratio. What cannot be measured says why.
    """
    ours, theirs = "basic_lite, plain", "transformers and peft, plain"
    run_if_it_fits(partial(measure_steps, assembled, replace(step, steps=1, warm=0)))  # warms up
    runs: dict[str, Callable[[], Facts]] = {
        "basic_lite, BASIC": partial(measure_steps, assembled, step),
        ours: partial(measure_steps, assembled, step, basic=False),
    }
    if baseline:
        how, run = at_its_best(assembled, step, micro_batches)
        theirs = f"{theirs} ({how})"
        runs[theirs] = run
    if naive:
        runs["the same, BASIC by whole maps and logits"] = partial(
            measure_baseline, assembled, step, naive=True
        )
    speeds: defaultdict[str, list[float]] = defaultdict(list)
    peaks: defaultdict[str, float] = defaultdict(float)
    failed: dict[str, str] = {}
    shuffled = random.Random(0)

    def take_turns(names: list[str]) -> None:
        for _ in range(rounds):
            shuffled.shuffle(names)
            for name in names:
                facts = None if name in failed else run_if_it_fits(runs[name])
                if facts is None:
                    failed[name] = "out of memory"
                    continue
                speeds[name] += facts["speeds"]
                peaks[name] = max(peaks[name], facts["peak MiB"] or 0.0)

    take_turns(list(runs))
    parts = parts_of(assembled.model)
    if baseline and step.stage == 2:
        reason = unsloth_layers.why_not(parts.decoder)
        if reason is None:
            how, run = at_its_best(assembled, step, micro_batches, unsloth_layers.unsloth_layers)
            runs[name := f"{unsloth_layers.NAME} ({how})"] = run
            take_turns([name])
        else:
            failed[unsloth_layers.NAME] = reason
    rows: list[Facts] = []
    for name in runs | failed:
        if name in failed:
            rows.append({"name": name, "why not": failed[name]})
            continue
        row: Facts = {"name": name, "samples/s": round(statistics.median(speeds[name]), 4)}
        row["peak MiB"] = peaks[name] if parts.embedding.is_cuda else None
        for base, column in ((ours, "time / our plain"), (theirs, "time / documented plain")):
            known = base in speeds and base not in failed
            middle, low, high = ratio(speeds[base], speeds[name]) if known else (None, None, None)
            row |= {column: middle, f"{column}, 95 %": f"{low} to {high}" if known else None}
        rows.append(row)
    return rows


def run_if_it_fits(run: Callable[[], Facts]) -> Facts | None:
    """Return what a run measures, on memory that earlier ones have left; `None` where it is too short."""
    release_memory()
    try:
        return run()
    except (torch.OutOfMemoryError, ValueError) as error:
        if isinstance(error, ValueError) and "out of memory" not in str(error):
            raise
        return None


def release_memory() -> None:
    """Forget what earlier measurements left to the collector, and start a GPU's peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def ratio(base: Sequence[float], speeds: Sequence[float], resamples: int = 2000) -> tuple[float, ...]:
    """Return the ratio of two median speeds and the ends of its 95 % interval.

    The steps of both are drawn anew, with replacement, and independently.
    """
    draw = random.Random(0)
    drawn = sorted(
        statistics.median(draw.choices(base, k=len(base)))
        / statistics.median(draw.choices(speeds, k=len(speeds)))
        for _ in range(resamples)
    )
    middle = statistics.median(base) / statistics.median(speeds)
    ends = drawn[int(0.025 * resamples)], drawn[int(0.975 * resamples)]
    return tuple(round(value, 3) for value in (middle, *ends))


Layers = Callable[[Any], AbstractContextManager[Any]]
"""What replaces the code of a decoder's layers, inside a block."""


def at_its_best(
    assembled: Assembled, step: Step, micro_batches: Sequence[int] = (), layers: Layers = nullcontext
) -> tuple[str, Callable[[], Facts]]:
    """Let the documented plain step have what suits it best; returns that in words, and what measures it so.

    Tried are every layer recomputed and none, at the step's own micro-batch and each of `micro_batches`.
    """
    tried: dict[tuple[int, int | None], float] = {}
    for size in sorted({step.micro_batch, *micro_batches}):
        for again in (0, None):
            short = replace(step, micro_batch=size, recompute=again, steps=2, warm=1)
            facts = run_if_it_fits(partial(measure_baseline, assembled, short, layers=layers))
            if facts is not None:
                tried[size, again] = facts["samples/s"]
    size, again = max(tried, key=lambda how: tried[how]) if tried else (step.micro_batch, None)
    best = replace(step, micro_batch=size, recompute=again)
    how = f"micro-batch {size}, {'nothing' if again == 0 else 'all'} recomputed"
    return how, partial(measure_baseline, assembled, best, layers=layers)


def measure_baseline(
    assembled: Assembled, step: Step, *, naive: bool = False, layers: Layers = nullcontext
) -> Facts:
    """Train as the documentation of transformers and peft says, with transformers' own Trainer.

    The model gets ids, pictures and labels and returns its own loss; on a GPU with `use_liger_kernel=True`,
    Liger's modules and its fused head. Of ours nothing runs; what is trained was set before. `naive` adds
    BASIC's terms from `output_attentions`, `output_hidden_states` and whole logits, without Liger's head,
    which has none.

    Returns samples per second of every measured step and their median, and peak MiB on a GPU (`None`
    elsewhere).
    """
    parts = parts_of(assembled.model)
    device, decoder = parts.embedding.device, parts.decoder
    set_recomputed(assembled, step.recompute)
    before, clock = decoder.config._attn_implementation, _Clock(device)
    own = "eager" if naive or caps_attention(decoder.config) else "sdpa"  # which Gemma 2's class refuses
    decoder.set_attn_implementation(own)
    liger = device.type == "cuda" and not naive
    more = {"remove_unused_columns": False, "use_liger_kernel": liger}
    try:
        with tempfile.TemporaryDirectory() as scratch, _published(assembled.model):
            trainer = (_Naive if naive else Trainer)(
                assembled.model,
                _arguments(assembled, step, scratch, **more),
                train_dataset=_rows(assembled, step),
                data_collator=_collator(assembled),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            if isinstance(trainer, _Naive):
                trainer.assembled = assembled
            with layers(decoder):  # after Liger has put its own in
                trainer.train()
    finally:
        decoder.set_attn_implementation(before or own)
        assembled.model.zero_grad()
    speeds = [step.micro_batch / seconds for seconds in clock.seconds[step.warm :]]
    peak = round(torch.cuda.max_memory_allocated() / 2**20, 1) if device.type == "cuda" else None
    return {"samples/s": round(statistics.median(speeds), 4), "speeds": speeds, "peak MiB": peak}


@contextmanager
def _published(model: Any) -> Iterator[None]:
    """Take out of a model what a trainer of ours has put in, and afterwards what Liger has."""
    decoder = parts_of(model).decoder
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind, own = type(inner), type(inner).forward
    as_published(decoder)
    keep_dropout(model)
    try:
        yield
    finally:
        kind.forward = own  # its fused head is another forward pass of the class and of the model
        vars(inner).pop("forward", None)
        draw_again_in_backward(model)


def _collator(assembled: Assembled) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """Return a collator of what the model itself takes, pictures normalised as its processor does."""
    collate, transform = assembled.collator(), _transform(assembled)
    tower = next(parts_of(assembled.model).llava.vision_tower.parameters())

    def collated(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        return inputs | {"pixel_values": transform.normalise(batch["pixel_values"], tower.dtype)}

    return collated


class _Clock(TrainerCallback):
    """Seconds from the end of one optimizer step to the end of the next, of the first from its start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self._last = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._last = self._last or time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class _Naive(Trainer):
    """With BASIC's terms from everything that the model can be asked for."""

    assembled: Assembled

    def compute_loss(self, model: torch.nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
        return outputs.loss + _terms(self.assembled, inputs, outputs)


def _terms(assembled: Assembled, inputs: dict, outputs: Any) -> torch.Tensor:
    """Both terms of BASIC from everything that the model can be asked for; one picture per row."""
    parts = parts_of(assembled.model)
    k = supervised_layers(parts.decoder.config, None)
    patch = inputs["input_ids"] == assembled.image_token_id
    pictures = len(patch)
    initial = outputs.hidden_states[0][patch].float()
    states = zip(layer_weights(k), outputs.hidden_states[1 : k + 1], strict=True)
    target = torch.stack([weight * state[patch].float() for weight, state in states]).sum(0).detach()
    text = (patch.cumsum(1) > 0) & ~patch
    weights = text.float() / text.sum(1, keepdim=True)
    maps = sum(attention.float().mean(1) for attention in outputs.attentions[:k]) / k
    importance = torch.einsum("bt,bts->bs", weights, maps)[patch].detach()
    das = (F.normalize(initial, dim=-1) - F.normalize(target, dim=-1)).square().sum(-1)
    table = parts.embedding
    log_p = (target.to(table.dtype) @ table.T).float().log_softmax(-1)
    log_q = (initial.to(table.dtype) @ table.T).float().log_softmax(-1)
    sds = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (importance * (DAS_WEIGHT * das + SDS_WEIGHT * sds)).sum() / pictures
