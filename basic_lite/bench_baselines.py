"""What `bench step --against` measures beside our step: LLaVA's plain one, and BASIC written plainly."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from basic_lite import fused
from basic_lite.capture import layer_weights, parts_of, supervised_layers
from basic_lite.modeling import Assembled
from basic_lite.synthetic import RandomRows

Facts = dict[str, object]


def measure_baseline(
    assembled: Assembled, *, naive: bool, micro_batch: int, text: int, steps: int, warm: int = 2
) -> Facts:
    """Train as the documentation of transformers and peft says, in a plain loop.

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
        Median samples per second, and peak MiB on a GPU (`None` elsewhere).
    """
    model, parts = assembled.model, parts_of(assembled.model)
    device, decoder = parts.embedding.device, parts.decoder
    fused.fuse(decoder)
    rows = RandomRows(
        (steps + warm) * micro_batch,
        assembled.tokens_per_image,
        text,
        decoder.config.vocab_size,
        assembled.image_size,
    )
    collator = assembled.collator()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
    tower = next(parts.llava.vision_tower.parameters()).dtype
    half = assembled.sources.dtype == torch.bfloat16
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager" if naive else "sdpa")
    seconds = []
    try:
        for batch in DataLoader(rows, batch_size=micro_batch, collate_fn=collator):
            start = time.perf_counter()
            inputs = {
                key: batch[key].to(device, non_blocking=True)
                for key in ("input_ids", "attention_mask", "labels", "pixel_values")
            }
            inputs["pixel_values"] = inputs["pixel_values"].to(tower) / 127.5 - 1
            with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
                outputs = model(
                    **inputs, use_cache=False, output_attentions=naive, output_hidden_states=naive
                )
            loss = outputs.loss
            if naive:
                loss = loss + _terms(assembled, inputs, outputs)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del outputs, loss
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    finally:
        decoder.set_attn_implementation(before)
        optimizer.zero_grad(set_to_none=True)
    median = sorted(seconds[warm:])[len(seconds[warm:]) // 2]
    peak = round(torch.cuda.max_memory_allocated() / 2**20, 1) if device.type == "cuda" else None
    return {"samples/s": round(micro_batch / median, 3), "peak MiB": peak}


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
