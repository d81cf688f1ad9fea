"""Measure training steps of models of real size: speed and memory, with random weights and rows."""

from __future__ import annotations

import gc
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.bench.synthetic import RandomRows
from basic_lite.data.pictures import ImageTransform
from basic_lite.files import one_line
from basic_lite.method.objective import Objective
from basic_lite.method.targets import layer_weights, supervised_layers
from basic_lite.models.adapters import ungroup_adapters
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
from basic_lite.training.trainer import BasicTrainer

# What `bench step --against` measures beside our step: LLaVA's plain one, and BASIC written plainly.

Facts = dict[str, Any]


def arguments_of(
    assembled: Assembled, scratch: str, micro_batch: int, steps: int, **more: Any
) -> TrainingArguments:
    """Return the arguments that every variant's Trainer shares: nothing is saved, reported or drawn.

    `steps` are all of them, those that warm up included.
    """
    return TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=micro_batch,
        max_steps=steps,
        bf16=assembled.sources.dtype == torch.bfloat16,
        use_cpu=parts_of(assembled.model).embedding.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )


def measure_baseline(
    assembled: Assembled,
    *,
    naive: bool,  # add BASIC's terms from `output_attentions`, `output_hidden_states` and whole logits
    micro_batch: int,
    text: int,  # tokens per row
    steps: int,
    warm: int = 2,
    unsloth: bool = False,  # let Unsloth's functions run the adapted layers
) -> Facts:
    """Train as the documentation of transformers and peft says, with transformers' own Trainer.

    The model gets ids, pictures and labels and returns its own loss; on a GPU with `use_liger_kernel=True`,
    Liger's modules and its fused head (the naive one needs the logits). Of ours nothing runs. Trainable
    parameters and checkpointing are what the model was set to before.

    Returns samples per second of every measured step and their median, and peak MiB on a GPU (`None`
    elsewhere).
    """
    parts = parts_of(assembled.model)
    device, decoder = parts.embedding.device, parts.decoder
    sizes = assembled.tokens_per_image, text, decoder.config.vocab_size, assembled.image_size
    before, clock = decoder.config._attn_implementation, _Clock(device)
    own = "eager" if naive or caps_attention(decoder.config) else "sdpa"  # which Gemma 2's class refuses
    decoder.set_attn_implementation(own)
    try:
        with tempfile.TemporaryDirectory() as scratch, _published(assembled.model):
            more = {"remove_unused_columns": False, "use_liger_kernel": not naive and _takes_liger(device)}
            args = arguments_of(assembled, scratch, micro_batch, steps + warm, **more)
            trainer = (_Naive if naive else Trainer)(
                assembled.model,
                args,
                train_dataset=RandomRows((steps + warm) * micro_batch, *sizes),
                data_collator=_collator(assembled),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            if isinstance(trainer, _Naive):
                trainer.assembled = assembled
            with _unsloth_layers(decoder) if unsloth else nullcontext():  # after Liger has put its own in
                trainer.train()
    finally:
        decoder.set_attn_implementation(before or own)
        for parameter in assembled.model.parameters():
            parameter.grad = None
    speeds = [micro_batch / seconds for seconds in clock.seconds[warm:]]
    peak = round(torch.cuda.max_memory_allocated() / 2**20, 1) if device.type == "cuda" else None
    return {"samples/s": round(statistics.median(speeds), 4), "speeds": speeds, "peak MiB": peak}


UNSLOTH = "Unsloth's LoRA layers, plain"


def _why_no_unsloth(assembled: Assembled) -> str | None:
    """Return why Unsloth's layers cannot be measured; `None` where they can.

    Only ask when everything else has been measured: its import changes transformers, PEFT and bitsandbytes
    for the rest of the process.
    """
    layer = parts_of(assembled.model).decoder.layers[0]
    if not (hasattr(layer.self_attn, "q_proj") and hasattr(layer.mlp, "gate_proj")):
        return "query, key and value are one matrix"
    if importlib.util.find_spec("unsloth") is None:
        return "unsloth is not installed"
    try:
        importlib.import_module("unsloth")
    except Exception as error:  # it refuses machines without a GPU it knows, in several ways
        return f"unsloth does not start: {one_line(error)}"
    return None


@contextmanager
def _unsloth_layers(decoder: Any) -> Iterator[None]:
    """Let Unsloth's functions run a decoder's adapted layers: query-key-value, output, and the gated MLP.

    They are those that its own models are made of, without a dropout, on transformers' layers.
    """
    kernels = importlib.import_module("unsloth.kernels")
    gelu = decoder.config.model_type.startswith("gemma")
    mlp = kernels.apply_lora_mlp_geglu_approx if gelu else kernels.apply_lora_mlp_swiglu

    def attend(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        projected = kernels.apply_lora_qkv(self, hidden_states)
        query, key, value = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in projected)
        rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
        query, key = rotate(query, key, *position_embeddings)
        run = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        seen, maps = run(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return kernels.apply_lora_o(self, seen.flatten(2)), maps

    modules = [
        (module, function, vars(module).get("forward"))
        for layer in decoder.layers
        for module, function in ((layer.self_attn, attend), (layer.mlp, mlp))
    ]
    for module, function, _ in modules:
        module.forward = MethodType(function, module)
    try:
        yield
    finally:
        for module, _, before in modules:
            vars(module).pop("forward")
            if before is not None:
                module.forward = before


def _takes_liger(device: torch.device) -> bool:
    return device.type == "cuda"


@contextmanager
def _published(model: Any) -> Iterator[None]:
    """Take out of a model what a trainer of ours has put in, and afterwards what Liger has."""
    decoder = parts_of(model).decoder
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind, own = type(inner), type(inner).forward
    as_published(decoder)
    ungroup_adapters(decoder.layers)
    keep_dropout(model)
    try:
        yield
    finally:
        kind.forward = own  # its fused head is another forward pass of the class and of the model
        vars(inner).pop("forward", None)
        draw_again_in_backward(model)


def _collator(assembled: Assembled) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """Return a collator of what the model itself takes, pictures normalised as its processor does."""
    collate, tower = assembled.collator(), next(parts_of(assembled.model).llava.vision_tower.parameters())

    def collated(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        pixels = batch["pixel_values"].to(tower.dtype) / 127.5 - 1
        return {key: batch[key] for key in ("input_ids", "attention_mask", "labels")} | {
            "pixel_values": pixels
        }

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
    """`L_das + 0.01 L_sds` from everything that the model can be asked for; one picture per row."""
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
    return (importance * (das + 0.01 * sds)).sum() / pictures


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


def release_memory() -> None:
    """Forget what earlier measurements left to the collector, and start a GPU's peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def set_recomputed(assembled: Assembled, count: int | None) -> None:
    """Let the first `count` decoder layers run again in backward, whatever was set before; `None` for all."""
    decoder = parts_of(assembled.model).decoder
    for layer in layers_of(decoder):
        setattr(layer, "gradient_checkpointing", False)  # noqa: B010 (a Module's attributes are typed)
    recompute_layers(decoder, count)


def compare_steps(
    assembled: Assembled,
    *,
    rounds: int = 1,  # how often each has its turn
    naive: bool = True,  # also BASIC written plainly
    baseline: bool = True,  # also the plain step of transformers and peft
    micro_batches: Sequence[int] = (),  # for the documented plain step to choose from, besides ours
    **settings: Any,  # of `measure_steps`, without `basic`
) -> list[Facts]:
    """Measure, in one process and in shuffled turns, our step and those that others would take.

    The documented plain step may have what suits it best: before anything counts it is tried with every layer
    recomputed and with none, at each of `micro_batches`, and the fastest is measured. Where Unsloth is
    installed, stage 2 also measures it with Unsloth's LoRA layers.

    Returns:
        One row each: name, median samples per second over all rounds, highest peak in MiB (on a GPU), and
        the seconds of its step over those of our plain one and of the documented plain one, with the 95 %
        interval of that ratio.
    """
    shared = {name: settings[name] for name in ("micro_batch", "text", "steps", "warm") if name in settings}
    ours, theirs = "basic_lite, plain", "transformers and peft, plain"
    measure_steps(assembled, basic=True, **{**settings, "steps": 1, "warm": 0})
    runs: dict[str, Callable[[], Facts]] = {
        "basic_lite, BASIC": lambda: measure_steps(assembled, basic=True, prepared=True, **settings),
        ours: lambda: measure_steps(assembled, basic=False, prepared=True, **settings),
    }

    def documented(size: int, again: int | None, steps: int | None = None, **kind: bool) -> Facts:
        set_recomputed(assembled, again)
        short = {} if steps is None else {"steps": steps, "warm": 1}
        return measure_baseline(assembled, **{**shared, **short, "naive": False, "micro_batch": size, **kind})

    def at_its_best(name: str, **kind: bool) -> tuple[str, Callable[[], Facts]]:
        sizes = sorted({settings["micro_batch"], *micro_batches})
        tried = {
            (size, again): _tried(partial(documented, size, again, 2, **kind))
            for size in sizes
            for again in (0, None)
        }
        fitting = {how: facts["samples/s"] for how, facts in tried.items() if facts is not None}
        size, again = (
            max(fitting, key=lambda how: fitting[how]) if fitting else (settings["micro_batch"], None)
        )
        how = f"micro-batch {size}, {'nothing' if again == 0 else 'all'} recomputed"
        return f"{name} ({how})", partial(documented, size, again, **kind)

    if baseline:
        theirs, runs[theirs] = at_its_best(theirs)
    if naive:
        given = settings["micro_batch"], settings["recompute"]
        runs["the same, BASIC by whole maps and logits"] = partial(documented, *given, naive=True)
    on_gpu = parts_of(assembled.model).embedding.is_cuda
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = dict.fromkeys(runs, 0.0)
    failed: set[str] = set()
    shuffled = random.Random(0)

    def take_turns(order: list[str]) -> None:
        for _ in range(rounds):
            shuffled.shuffle(order)
            for name in order:
                facts = None if name in failed else _tried(runs[name])
                if facts is None:
                    failed.add(name)
                    continue
                speeds[name] += facts["speeds"]
                peaks[name] = max(peaks[name], facts["peak MiB"] or 0.0)

    take_turns(list(runs))
    why = None
    if baseline and settings["stage"] == 2:  # in turns of its own, as its import changes the libraries
        why = _why_no_unsloth(assembled)
        if why is None:
            name, run = at_its_best(UNSLOTH, unsloth=True)
            runs[name], speeds[name], peaks[name] = run, [], 0.0
            take_turns([name])
    rows: list[Facts] = []
    for name in runs:
        if name in failed:
            rows.append({"name": name, "why not": "out of memory"})
            continue
        row: Facts = {"name": name, "samples/s": round(statistics.median(speeds[name]), 4)}
        row["peak MiB"] = peaks[name] if on_gpu else None
        for base, column in ((ours, "time / our plain"), (theirs, "time / documented plain")):
            known = base in speeds and base not in failed
            middle, low, high = ratio(speeds[base], speeds[name]) if known else (None, None, None)
            row |= {column: middle, f"{column}, 95 %": f"{low} to {high}" if known else None}
        rows.append(row)
    if why is not None:
        rows.append({"name": UNSLOTH, "why not": why})
    return rows


def _tried(run: Callable[[], Facts]) -> Facts | None:
    """Measure; `None` where memory is too short."""
    release_memory()
    try:
        return run()
    except (torch.OutOfMemoryError, ValueError) as error:
        if isinstance(error, ValueError) and "out of memory" not in str(error):
            raise
        return None


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


def measure_steps(
    assembled: Assembled,
    *,
    stage: int,  # 1 trains the projector, 2 adapters and projector
    micro_batch: int,
    text: int,  # tokens per row
    rank: int,
    recompute: int | None,  # decoder layers, the first ones, that run again in backward; `None` for all
    basic: bool,  # with BASIC's terms
    steps: int,
    cap_gib: float | None,  # memory of the card to emulate; `None` for the card's own
    warm: int = 2,  # steps before the measured ones
    prepared: bool = False,  # the model was measured before and its parameters are set
    optimizer: str = "adamw",  # one of `optimizers.NAMES`
) -> Facts:
    """Train on random rows and return how fast it was and how much memory it took.

    Raises ValueError if a cap is asked for where there is no GPU, or a step did not fit and was split.
    """
    parts, tokens = parts_of(assembled.model), assembled.tokens_per_image
    device = parts.embedding.device
    emulate_card(cap_gib, device.type)
    if not prepared:
        if stage == 1:
            train_projector(assembled)
        else:
            train_adapters(assembled, Adapters(rank, 2 * rank))
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
        "layers recomputed": len(layers_of(parts.decoder)) if recompute is None else recompute,
        "samples/s (median)": statistics.median(speeds),
        "speeds": speeds,
        "peak MiB": log[-1]["peak_mib"],
        "loss": f"{log[0]['loss']:.3f} to {log[-1]['loss']:.3f}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
