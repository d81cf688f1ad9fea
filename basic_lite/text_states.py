"""Text alone through a decoder: what its first layer received, and what each layer made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from basic_lite.modeling import for_inference

LENGTH: int = 128
"""Tokens of a row; shorter where there is little text, so that some rows can be held out."""


@dataclass(frozen=True)
class TextBatch:
    """What a decoder makes of some text. The first token of each row is left out: many LLMs park attention
    there, and its states are a hundred times larger than all others.

    Attributes:
        ids: `(n,)` the tokens.
        received: `(n, D)` what the first layer received for them; for Gemma with its factor sqrt(D).
        states: layer, from 1 -> `(n, D)` behind it.
        final: `(R, S, D)` behind the final norm, the rows whole; `None` where not all layers ran.
    """  # noqa: D205 (one thought)

    ids: torch.Tensor
    received: torch.Tensor
    states: dict[int, torch.Tensor]
    final: torch.Tensor | None


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], tokens: int, length: int = LENGTH
) -> torch.Tensor:
    """Write texts one under the other and cut them into rows of one length, which need no padding.

    Args:
        tokenizer: of the decoder.
        texts: read until there are enough tokens.
        tokens: how many, at most.
        length: of a row; less where the text would not fill twenty of them.

    Returns:
        `(R, S)` int64. Every row begins with BOS where the tokenizer sets one.

    Raises:
        ValueError: If there is hardly any text.
    """
    ids: list[int] = []
    block: list[str] = []
    waiting = 0
    for text in texts:
        block.append(text)
        waiting += len(text)
        if waiting > 20_000:
            ids += _ids(tokenizer, "\n".join(block) + "\n")
            block, waiting = [], 0
        if len(ids) >= tokens:
            break
    if block:
        ids += _ids(tokenizer, "\n".join(block))
    ids = ids[:tokens]
    if len(ids) < 32:
        raise ValueError(f"{len(ids)} tokens of text are too few to look at a decoder; give more text")
    bos = tokenizer.bos_token_id
    first = [bos] if bos is not None and tokenizer("x").input_ids[0] == bos else []
    own = max(min(length, len(ids) // 20), 8) - len(first)
    rows = [first + ids[start : start + own] for start in range(0, len(ids) - own + 1, own)]
    return torch.tensor(rows)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # it is cut into rows below


@torch.no_grad()
def states_of(
    decoder: PreTrainedModel,
    rows: torch.Tensor,
    layers: Iterable[int],
    whole: bool = False,
    batch: int = 1024,
) -> Iterator[TextBatch]:
    """Run rows of text and yield the states, a batch at a time; nothing outlives its batch.

    A batch of 1024 tokens of Vicuna-7B holds 8 MB per layer in bf16.

    Args:
        decoder: the language model without head, with adapters inside or not.
        rows: `(R, S)` ids.
        layers: whose states, from 1.
        whole: run all layers; otherwise the ones behind the last that is asked for do nothing.
        batch: tokens per forward pass.
    """
    device = decoder.get_input_embeddings().weight.device
    wanted = sorted(layers)
    found: dict[int, torch.Tensor] = {}

    def keep(number: int) -> object:
        def hook(layer: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            found[number] = hidden[:, 1:].flatten(0, 1)

        return hook

    hooks = [decoder.layers[number - 1].register_forward_hook(keep(number)) for number in wanted]
    idle = [] if whole else [*decoder.layers[wanted[-1] if wanted else 0 :], decoder.norm]
    try:
        with _at_rest(decoder), _idle(idle):
            for part in rows.split(max(batch // rows.shape[1], 1)):
                part = part.to(device)
                received = decoder.get_input_embeddings()(part)
                final = decoder(inputs_embeds=received, use_cache=False).last_hidden_state
                yield TextBatch(
                    part[:, 1:].flatten(),
                    received[:, 1:].flatten(0, 1),
                    dict(found),
                    final if whole else None,
                )
                found.clear()
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _at_rest(decoder: nn.Module) -> Iterator[None]:
    """Switch dropout off, and leave every module in the mode that it was in."""
    before = [(module, module.training) for module in decoder.modules()]
    for_inference(decoder)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _idle(modules: list[nn.Module]) -> Iterator[None]:
    """Let modules pass their input through, inside the block."""
    for module in modules:
        module.forward = _pass_through
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's own shows again


def _pass_through(states: torch.Tensor | None = None, *args: object, **kwargs: object) -> torch.Tensor:
    return kwargs["hidden_states"] if states is None else states
