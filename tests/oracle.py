"""The method's naive definition: eager maps, all hidden states, full logits, fp64.

Written from the formulas of the paper; it knows nothing of the package's code.
"""

from __future__ import annotations

import copy

import torch
from tiny import IMAGE_TOKEN, PATCHES
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


def capped(x, cap):
    """A soft cap, or `x` itself where there is none."""
    return x if cap is None else cap * torch.tanh(x / cap)


def capped_maps(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Gemma 2's attention by its formula: scores times `query_pre_attn_scalar ** -0.5`, capped, masked."""
    config = module.config
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / config.query_pre_attn_scalar**0.5
    scores = capped(scores, config.attn_logit_softcapping)
    if attention_mask is None:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    maps = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", maps, value), maps


AttentionInterface.register("oracle_capped", capped_maps)
AttentionMaskInterface.register("oracle_capped", sdpa_mask)


def attended(maps, k, text, patch):
    """What the text `(T,)` attends to at a patch: the mean over layers 1..k, heads and text, detached."""
    total = sum(maps[layer][0, :, j, patch].mean() for layer in range(k) for j in text)
    return (total / (k * len(text))).detach()


def oracle(model, batch, k, weights=None, importance="attention", trained="projector", count=PATCHES):
    """Everything the method defines, the slow and obvious way, in fp64; gradients of names with `trained`.

    `count` is how many image tokens a picture takes.
    """
    model = copy.deepcopy(model).double().eval()  # eval: a checkpointed layer runs plainly
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.set_attn_implementation("eager")
    config = inner.config.text_config
    if getattr(config, "attn_logit_softcapping", None):
        inner.model.language_model.set_attn_implementation("oracle_capped")
    weights = [layer**2 for layer in range(1, k + 1)] if weights is None else weights
    embedding = inner.model.language_model.embed_tokens.weight.detach()

    lm, das, sds, targets, shares = 0.0, 0.0, 0.0, [], []
    supervised = images = 0
    pixels = list(batch["pixel_values"].double())
    for row in range(len(batch["input_ids"])):  # one at a time, its padding cut off
        keep = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][keep], batch["labels"][row][keep]
        patches = (ids == IMAGE_TOKEN).nonzero().flatten().tolist()
        blocks = [patches[start : start + count] for start in range(0, len(patches), count)]
        mine, pixels = pixels[: len(blocks)], pixels[len(blocks) :]
        outputs = model(
            input_ids=ids[None],
            pixel_values=torch.stack(mine) if mine else None,
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
        logits = outputs.hidden_states[-1][0] @ inner.lm_head.weight.T
        logits = capped(logits, getattr(config, "final_logit_softcapping", None))
        log_probabilities = logits.log_softmax(-1)
        for j in range(1, len(ids)):
            if labels[j] != -100:
                lm, supervised = lm - log_probabilities[j - 1, labels[j]], supervised + 1
        for block in blocks:
            images += 1
            text = [j for j in range(block[-1] + 1, len(ids)) if ids[j] != IMAGE_TOKEN]
            for i in block:
                v = outputs.hidden_states[0][0, i]
                states = [outputs.hidden_states[layer][0, i] for layer in range(1, k + 1)]
                target = sum(w * s for w, s in zip(weights, states, strict=True)) / sum(weights)
                target = target.detach()
                if importance == "uniform":
                    a = torch.tensor(1 / count, dtype=torch.float64)
                else:
                    a = attended(outputs.attentions, k, text, i)
                das = das + a * (v / v.norm() - target / target.norm()).pow(2).sum()
                p, q = torch.softmax(embedding @ target, 0), torch.softmax(embedding @ v, 0)
                sds = sds + a * (p * (p.log() - q.log())).sum()
                targets.append(target)
                shares.append(a)
    lm, das, sds = lm / supervised, das / images, sds / images
    loss = lm + das + 0.01 * sds
    parameters = [p for n, p in model.named_parameters() if trained in n and p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    return {
        "lm": lm,
        "das": das,
        "sds": sds,
        "target": torch.stack(targets),
        "importance": torch.stack(shares),
        "gradients": gradients,
    }


def close(ours: torch.Tensor, truth: torch.Tensor, relative: float) -> bool:
    """Compare norms of difference and truth: one bound for the whole tensor."""
    ours, truth = ours.detach().double(), truth.detach().double()
    return float((ours - truth).norm()) <= relative * float(truth.norm())
