"""Which kinds of LLM can teach: a tiny LLaVA is built around each and watched. No training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
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
from basic_lite.files import one_line, versions, write_json
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.types import Importance
from basic_lite.models import zoo

PLAN: str = "architecture"  # the plan that has no variants and trains nothing

_WIDTH, _IMAGE, _PATCHES = 32, 3, 9
_SIZES = {"num_hidden_layers": 4, "hidden_size": _WIDTH}
_TRANSFORMER = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64}


@dataclass(frozen=True)
class Candidate:
    model_type: str  # of transformers
    group: str  # what kind of model it is, in words
    sizes: Mapping[str, int]  # of a tiny one


CANDIDATES: tuple[Candidate, ...] = (
    *(Candidate(name, "decoder", _TRANSFORMER) for name in ("llama", "mistral", "phi3", "qwen2")),
    *(Candidate(name, "decoder", {**_TRANSFORMER, "head_dim": 8}) for name in ("gemma", "gemma2")),
    Candidate("gpt2", "decoder", {"n_layer": 4, "n_embd": _WIDTH, "n_head": 4}),
    Candidate("mamba", "state space", _SIZES),
    Candidate("mamba2", "state space", {**_SIZES, "head_dim": 16, "num_heads": 4, "n_groups": 1}),
    Candidate("falcon_mamba", "state space", _SIZES),
    Candidate("rwkv", "linear recurrence", _SIZES),
    Candidate("recurrent_gemma", "recurrence and local attention", _TRANSFORMER),
    Candidate("t5", "encoder-decoder", {"num_layers": 4, "d_model": _WIDTH}),
    Candidate("bart", "encoder-decoder", {"encoder_layers": 4, "decoder_layers": 4, "d_model": _WIDTH}),
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
    special = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = AutoConfig.for_model(candidate.model_type, **candidate.sizes, **special)
    uniform, attention = (_tried(partial(_captured, text, how)) for how in ("uniform", "attention"))
    llava = "yes" if uniform == "yes" else _tried(partial(_ran, text))
    states = _tried(partial(_states, text))
    try:
        zoo.family_of(candidate.model_type, f"a {candidate.group} model")
        trained = "yes"
    except ValueError as error:
        trained = str(error)
    if attention == uniform == "yes":
        verdict = "works" if trained == "yes" else "works in BasicSupervision; stage1 has no template for it"
    elif uniform == "yes":
        # In our words: a library's change with its releases.
        unseen = "not each of its first layers has attention that can be watched"
        why = zoo.WHY_NOT.get(candidate.model_type, unseen)
        verdict = f"works with importance uniform alone: {why}"
    elif states == "yes":
        verdict = "states can be read, but transformers' LLaVA does not take it"
    else:
        verdict = "no teacher: the states of its layers cannot be read"
    importance = attention if llava == "yes" else "not tried"
    return Verdict(candidate.model_type, candidate.group, llava, importance, states, trained, verdict)


@torch.no_grad()
def _tried(check: Callable[[], str]) -> str:
    """Return what a check says, or how it failed: whatever another library says is the result."""
    try:
        return check()
    except Exception as error:
        return one_line(error).split(" Please request")[0]


def _llava(text: PretrainedConfig) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_size=16,
            intermediate_size=32,
            image_size=24,
            patch_size=8,
        ),
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


def _ran(text: PretrainedConfig) -> str:
    _llava(text)(**_batch())
    return "yes"


def _captured(text: PretrainedConfig, importance: Importance) -> str:
    model = _llava(text)
    with BasicSupervision(model, 2, importance=importance) as seen:
        model(**_batch())
    if seen.refinement is None or not bool((seen.refinement.importance > 0).all()):
        return "nothing was seen"
    shape = tuple(seen.refinement.target.shape)
    return "yes" if shape == (_PATCHES, _WIDTH) else f"states of shape {shape}"


def _states(text: PretrainedConfig) -> str:
    """Read states at the patches without a LLaVA: embeddings in, hooks on the first two layers."""
    model = AutoModel.from_config(text).eval()
    stack = getattr(model, "encoder", model)  # the patches of an encoder-decoder go into its encoder
    layers = max((m for m in stack.modules() if isinstance(m, nn.ModuleList)), key=len)
    seen: list[tuple[int, ...]] = []

    def keep(layer: nn.Module, args: tuple, output: Any) -> None:
        seen.append(tuple((output if isinstance(output, torch.Tensor) else output[0]).shape))

    for layer in layers[:2]:
        layer.register_forward_hook(keep)
    stack(inputs_embeds=torch.randn(1, _PATCHES, _WIDTH), use_cache=False)
    return "yes" if seen == [(1, _PATCHES, _WIDTH)] * 2 else f"states of shapes {seen}"


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
    table = Table(
        *("model type", "kind", "states", "importance", "verdict"),
        title="architecture: which kinds of LLM can teach?",
        title_justify="left",
    )
    for row in rows:
        table.add_row(*row)
    return table
