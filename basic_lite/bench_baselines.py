"""What `bench step --against` measures beside our step: LLaVA's plain one, and BASIC written plainly."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from basic_lite import fused
from basic_lite.capture import layer_weights, parts_of, supervised_layers
from basic_lite.modeling import Assembled
from basic_lite.synthetic import RandomRows

Facts = dict[str, object]


def arguments_of(
    assembled: Assembled, scratch: str, micro_batch: int, steps: int, **more: object
) -> TrainingArguments:
    """Return what every variant's Trainer is given alike: nothing is saved, reported or drawn.

    Args:
        assembled: the model, on its device.
        scratch: folder that may go away.
        micro_batch: rows per step.
        steps: all of them, those that warm up included.
        more: what one variant needs besides.
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
    assembled: Assembled, *, naive: bool, micro_batch: int, text: int, steps: int, warm: int = 2
) -> Facts:
    """Train as the documentation of transformers and peft says, with transformers' own Trainer.

    The model gets ids, pictures and labels and returns its own loss, with the head on all rows; on a GPU with
    Liger's modules. Checkpointing is what the model was set to before.

    Args:
        assembled: a model whose trainable parameters are set.
        naive: add BASIC's terms from `output_attentions`, `output_hidden_states` and whole logits.
        micro_batch: rows per step.
        text: text tokens per row.
        steps: measured steps.
        warm: steps before them.

    Returns:
        Samples per second of every measured step and their median, and peak MiB on a GPU (`None` elsewhere).
    """
    parts = parts_of(assembled.model)
    device, decoder = parts.embedding.device, parts.decoder
    fused.fuse(decoder)
    sizes = assembled.tokens_per_image, text, decoder.config.vocab_size, assembled.image_size
    before, clock = decoder.config._attn_implementation, _Clock(device)
    decoder.set_attn_implementation("eager" if naive else "sdpa")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            args = arguments_of(assembled, scratch, micro_batch, steps + warm, remove_unused_columns=False)
            trainer = (_Naive if naive else Trainer)(
                assembled.model,
                args,
                train_dataset=RandomRows((steps + warm) * micro_batch, *sizes),
                data_collator=_collator(assembled),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            if naive:
                trainer.assembled = assembled
            trainer.train()
    finally:
        decoder.set_attn_implementation(before)
        for parameter in assembled.model.parameters():
            parameter.grad = None
    speeds = [micro_batch / seconds for seconds in clock.seconds[warm:]]
    peak = round(torch.cuda.max_memory_allocated() / 2**20, 1) if device.type == "cuda" else None
    return {"samples/s": round(statistics.median(speeds), 4), "speeds": speeds, "peak MiB": peak}


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
        self.device, self.seconds, self._last = device, [], None

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


def _terms(assembled: Assembled, inputs: dict, outputs: object) -> torch.Tensor:
    """`L_das + 0.01 L_sds` from everything that the model can be asked for; one picture per row."""
    parts = parts_of(assembled.model)
    k = supervised_layers(parts.decoder.config, None)
    patch = inputs["input_ids"] == assembled.image_token_id
    pictures = len(patch)
    initial = outputs.hidden_states[0][patch].float()
    states = zip(layer_weights(k), outputs.hidden_states[1 : k + 1], strict=True)
    target = sum(weight * state[patch].float() for weight, state in states).detach()
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
