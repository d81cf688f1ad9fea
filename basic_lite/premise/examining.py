"""Examine a decoder on text: the whole look of `analyze premise`, and the glance before a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from basic_lite.capture import Weighting, supervised_layers
from basic_lite.premise.measuring import Measured, measure
from basic_lite.premise.verdict import Verdict, judge
from basic_lite.targets import TargetSpace
from basic_lite.text_states import token_rows
from basic_lite.translation import ENOUGH, divided, fit_rows, tokens_for

READ: int = 512
"""Held-out tokens that are read against the vocabulary: shares have a standard error of 2 points at most."""

GLANCE: int = 2560
"""Tokens of text for the glance: a tenth is read, the rest gives the frequencies of tokens."""


@dataclass(frozen=True)
class Examined:
    """What an examination found.

    Attributes:
        measured: the figures.
        verdict: what they mean.
        fit: report of the maps that were tried; empty where none were.
    """

    measured: Measured
    verdict: Verdict
    fit: dict = field(default_factory=dict)

    def json(self) -> dict[str, object]:
        """Return it for JSON."""
        return {"verdict": self.verdict.json(), **self.measured.json(), "translation": self.fit or None}


def examine(
    decoder: PreTrainedModel,
    head: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    layers: int | None = None,
    weighting: Weighting = "quadratic",
    read: int = READ,
    progress: Callable[[str], None] = lambda line: None,
) -> Examined:
    """Look at every layer and at the weighted targets, raw, centred and translated, for several k.

    Args:
        decoder: the language model without head.
        head: its output projection.
        tokenizer: of the decoder.
        texts: text of the kind that will be trained on.
        layers: the largest k that is looked at; `None` for half.
        weighting: of layers 1..k.
        read: held-out tokens that are read against the vocabulary.
        progress: told in a line what is being done.

    Raises:
        ValueError: If there is hardly any text, or k is out of range.
    """
    depth, width = decoder.config.num_hidden_layers, decoder.config.hidden_size
    k = supervised_layers(decoder.config, layers)
    rows = token_rows(tokenizer, texts, max(tokens_for(width), 12 * read))
    fitted, held_out = divided(rows)
    held_out = held_out[: max(read // (rows.shape[1] - 1), 1)]
    enough = fitted.numel() >= ENOUGH * width
    if not enough:
        progress(f"{fitted.numel():,} tokens of text are too few to fit maps of width {width}; means only")
    space = fit_rows(decoder, rows, "translated" if enough else "centred", k, progress=progress)
    ks = sorted({max(k * eighth // 4, 1) for eighth in (1, 2, 3, 4)})
    targets = {"raw": (TargetSpace(), ks), "centred": (TargetSpace("centred", space.centre), ks)}
    if enough:
        targets["translated"] = (space, ks)
    progress(f"reading {held_out[:, 1:].numel():,} held-out tokens at {depth} layers")
    found = measure(decoder, head, held_out, fitted[:, 1:], range(depth + 1), targets, weighting)
    return Examined(found, judge(found, tried=enough), space.report if enough else {})


def glance(
    decoder: PreTrainedModel,
    head: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    k: int,
    weighting: Weighting,
    space: TargetSpace | None = None,
) -> Examined:
    """Look at the target that a training will have, on a few hundred tokens; nothing is fitted.

    Args:
        decoder: the language model without head.
        head: its output projection.
        tokenizer: of the decoder.
        texts: the captions that will be trained on.
        k: supervised layers.
        weighting: of layers 1..k.
        space: of the run's target, looked at beside the raw one if it is another.

    Raises:
        ValueError: If there is hardly any text.
    """
    fitted, held_out = divided(token_rows(tokenizer, texts, GLANCE))
    targets = {"raw": (TargetSpace(), [k])}
    if space is not None and space.kind != "raw":
        targets[space.kind] = (space, [k])
    found = measure(decoder, head, held_out, fitted[:, 1:], (), targets, weighting)
    return Examined(found, judge(found, tried=False))
