"""Which kinds of LLM can teach: a tiny LLaVA is built around each and watched. No training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)
from transformers.utils import logging

from basic_lite.experiments.table import write_rows
from basic_lite.files import versions, write_json
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.types import Importance
from basic_lite.models import zoo

PLAN: str = "architecture"  # the plan that has no variants and trains nothing

_WIDTH, _VOCABULARY, _IMAGE, _PATCHES = 32, 64, 3, 9
_TRANSFORMER = {
    **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4},
    **{"hidden_size": _WIDTH, "intermediate_size": 64},
}
_TOWER = {
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32},
    **{"image_size": 24, "patch_size": 8},
}
_STATE_SPACE = {"num_hidden_layers": 4, "state_size": 4, "hidden_size": _WIDTH}


@dataclass(frozen=True)
class Candidate:
    model_type: str  # of transformers
    group: str  # what kind of model it is, in words
    sizes: Mapping[str, object]  # of a tiny one


CANDIDATES: tuple[Candidate, ...] = (
    *(Candidate(name, "decoder", _TRANSFORMER) for name in ("llama", "mistral", "phi3", "qwen2")),
    *(Candidate(name, "decoder", {**_TRANSFORMER, "head_dim": 8}) for name in ("gemma", "gemma2")),
    Candidate("gpt2", "decoder", {"n_layer": 4, "n_embd": _WIDTH, "n_head": 4}),
    Candidate("mamba", "state space", _STATE_SPACE),
    Candidate("mamba2", "state space", {**_STATE_SPACE, "head_dim": 16, "num_heads": 4, "n_groups": 1}),
    Candidate("falcon_mamba", "state space", _STATE_SPACE),
    Candidate(
        "rwkv",
        "linear recurrence",
        {
            **{"num_hidden_layers": 4, "hidden_size": _WIDTH, "attention_hidden_size": _WIDTH},
            **{"context_length": 64},
        },
    ),
    Candidate(
        "recurrent_gemma",
        "recurrence and local attention",
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_size": _WIDTH,
            "intermediate_size": 64,
            "lru_width": _WIDTH,
        },
    ),
    Candidate(
        "t5",
        "encoder-decoder",
        {"num_layers": 4, "num_decoder_layers": 4, "d_model": _WIDTH, "d_ff": 64, "num_heads": 4, "d_kv": 8},
    ),
    Candidate(
        "bart",
        "encoder-decoder",
        {
            "d_model": _WIDTH,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
        },
    ),
)


@dataclass(frozen=True)
class Verdict:
    """The result for one architecture; each check holds `yes` or why not."""

    model_type: str
    group: str
    llava: str  # a LLaVA of transformers can be built around it and run on a picture
    importance: str  # its attention shows which patches the text attends to; not tried without a LLaVA
    states: str  # the states after its first layers can be read at the patches
    trained: str  # the training commands take it
    # All of it in one line, in words that do not depend on the transformers release; what a release can do
    # may: some put Mamba-2 into a LLaVA, others do not
    verdict: str


def judge(candidate: Candidate) -> Verdict:
    """Build a tiny model of random weights and try everything that the method needs."""
    sizes = dict(candidate.sizes) | {"vocab_size": _VOCABULARY}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = AutoConfig.for_model(candidate.model_type, **sizes, **special)
    uniform, attention = _captured(text, "uniform"), _captured(text, "attention")
    llava = "yes" if uniform == "yes" else _ran(text)
    states = _states(text)
    try:
        zoo.family_of(candidate.model_type, f"a {candidate.group} model")
        trained = "yes"
    except ValueError as error:
        trained = str(error)
    if attention == uniform == "yes":
        verdict = "works" if trained == "yes" else "works in BasicSupervision; stage1 has no template for it"
    elif uniform == "yes":
        verdict = f"works with importance uniform alone: {_why(candidate)}"
    elif states == "yes":
        verdict = "states can be read, but transformers' LLaVA does not take it"
    else:
        verdict = "no teacher: the states of its layers cannot be read"
    importance = attention if llava == "yes" else "not tried"
    return Verdict(candidate.model_type, candidate.group, llava, importance, states, trained, verdict)


def _why(candidate: Candidate) -> str:
    """Explain why attention shows no importance: in our words, for a library's change with its releases."""
    return zoo.WHY_NOT.get(
        candidate.model_type, "not each of its first layers has attention that can be watched"
    )


def _llava(text: PretrainedConfig) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig.from_dict(_TOWER),
        image_token_index=_IMAGE,
        image_seq_length=_PATCHES,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config).eval()


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, *[_IMAGE] * _PATCHES, *range(10, 18)]])
    pixels = torch.linspace(-1, 1, 3 * 24 * 24).view(1, 3, 24, 24)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@torch.no_grad()
def _ran(text: PretrainedConfig) -> str:
    try:
        _llava(text)(**_batch())
    except Exception as error:  # whatever another library says is the finding
        return _line(error)
    return "yes"


@torch.no_grad()
def _captured(text: PretrainedConfig, importance: Importance) -> str:
    try:
        model = _llava(text)
        with BasicSupervision(model, 2, importance=importance) as seen:
            model(**_batch())
    except Exception as error:
        return _line(error)
    if seen.refinement is None or not bool((seen.refinement.importance > 0).all()):
        return "nothing was seen"
    shape = tuple(seen.refinement.target.shape)
    return "yes" if shape == (_PATCHES, _WIDTH) else f"states of shape {shape}"


@torch.no_grad()
def _states(text: PretrainedConfig) -> str:
    """Try to read states at the patches without a LLaVA: embeddings in, hooks on the first two layers."""
    try:
        model = AutoModel.from_config(text).eval()
        stack = getattr(model, "encoder", model)  # the patches of an encoder-decoder go into its encoder
        layers = max((m for m in stack.modules() if isinstance(m, nn.ModuleList)), key=len)
        seen: list[tuple[int, ...]] = []

        def keep(layer: nn.Module, args: tuple, output: Any) -> None:
            seen.append(tuple((output if isinstance(output, torch.Tensor) else output[0]).shape))

        hooks = [layer.register_forward_hook(keep) for layer in layers[:2]]
        stack(inputs_embeds=torch.randn(1, _PATCHES, _WIDTH), use_cache=False)
        for hook in hooks:
            hook.remove()
    except Exception as error:
        return _line(error)
    return "yes" if seen == [(1, _PATCHES, _WIDTH)] * 2 else f"states of shapes {seen}"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).split(" Please request")[0]
    return text[:160] or type(error).__name__


def report(out: Path) -> Table:
    """Judge all candidates; write `architecture.json` and `architecture.md`, and return the table."""
    logging.set_verbosity_error()
    verdicts = [judge(candidate) for candidate in CANDIDATES]
    content = {"plan": PLAN, "verdicts": [asdict(verdict) for verdict in verdicts], "versions": versions()}
    write_json(out / f"{PLAN}.json", content)
    rows = []
    for verdict in verdicts:
        tried = (verdict.states, verdict.importance)
        short = [result if result in ("yes", "not tried") else "no" for result in tried]
        rows.append([verdict.model_type, verdict.group, *short, verdict.verdict])
    heads = ("model type", "kind", "states of its layers", "attention shows importance", "verdict")
    note = f"transformers {versions()['transformers']}; tiny models of random weights, no training."
    write_rows(out / f"{PLAN}.md", heads, rows, after=["", note])
    narrow = ("model type", "kind", "states", "importance", "verdict")
    table = Table(*narrow, title="architecture: which kinds of LLM can teach?", title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table
