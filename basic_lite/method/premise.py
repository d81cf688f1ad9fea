"""What the states of a decoder are on text: per layer, and as the weighted target of the first k.

BASIC compares states of layers 1..k with embeddings, by cosine and over `softmax(h E^T)`. On text it is known
what a state should mean, its own token, so that text alone says whether both are one space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from basic_lite.method.fit import (
    ENOUGH,
    TextBatch,
    divided,
    fit_rows,
    read,
    row_lengths,
    states_of,
    token_rows,
    tokens_for,
)
from basic_lite.method.losses import next_token
from basic_lite.method.targets import UNFITTED, TargetKind, TargetSpace, layer_weights, supervised_layers
from basic_lite.method.types import Weighting
from basic_lite.models.parts import embedding_of

LARGEST: int = 3
"""How many coordinates the energy share counts."""


@dataclass(frozen=True)
class Figures:
    """What vectors at text tokens look like to the vocabulary; means over tokens."""

    own: float  # share whose nearest row of `E`, by cosine, is their own token's
    cosine: float  # to the embedding that the first layer received for their token
    energy: float  # share of the squared norm in the three coordinates that hold most of it
    common: float  # norm of the mean vector, as a share of the mean norm: 1 if all vectors are one constant
    norm: float
    entropy: float  # of `softmax(h E^T)`, in nats


@dataclass(frozen=True)
class Measured:
    """Everything that is measured on text."""

    tokens: int  # how many were read against the vocabulary
    vocabulary: int  # `V`
    loss: float  # of the language model, in nats per token
    unigram: float  # what the frequencies of the text's tokens alone reach, in nats
    layers: dict[int, Figures]  # layer -> figures; 0 is what the first layer received
    targets: dict[TargetKind, dict[int, Figures]]  # kind -> k -> figures of the weighted target


class _Tally:
    """Vectors at text tokens, added up."""

    def __init__(self) -> None:
        self.of_tokens: list[torch.Tensor] = []  # `(4, n)` each: own, cosine, entropy, norm
        self.sum: torch.Tensor = torch.zeros(())
        self.squares: torch.Tensor = torch.zeros(())

    def add(
        self, vectors: torch.Tensor, batch: TextBatch, table: torch.Tensor, lengths: torch.Tensor
    ) -> None:
        """Read `(n, D)` vectors at a batch's tokens against the vocabulary; see `fit.read`."""
        reading = read(vectors, batch.received, batch.ids, table, lengths)
        vectors = vectors.double()
        figures = reading.own, reading.cosine, reading.entropy, vectors.norm(dim=1)
        self.of_tokens.append(torch.stack([figure.double() for figure in figures]))
        self.sum = self.sum.to(vectors) + vectors.sum(0)
        self.squares = self.squares.to(vectors) + vectors.square().sum(0)

    def figures(self) -> Figures:
        of_tokens = torch.cat(self.of_tokens, 1)
        own, cosine, entropy, norm = of_tokens.mean(1).tolist()
        energy = self.squares.topk(min(LARGEST, len(self.squares))).values.sum() / self.squares.sum()
        common = self.sum.norm() / of_tokens[3].sum()
        return Figures(own, cosine, float(energy), float(common), norm, entropy)


@torch.no_grad()
def measure(
    decoder: PreTrainedModel,
    head: torch.nn.Module,
    rows: torch.Tensor,
    counted: torch.Tensor,
    layers: Iterable[int],
    targets: Mapping[TargetKind, tuple[TargetSpace, Iterable[int]]],
    weighting: Weighting = "quadratic",
) -> Measured:
    """Measure a decoder without head on rows `(R, S)` of ids; one pass, nothing outlives its batch.

    `counted` are ids of other text, for the frequencies of tokens. `layers` are those to measure, 0 for the
    embeddings; each costs a product with the vocabulary. `targets` maps a kind to its space and the k's to
    weight up to.
    """
    table = embedding_of(decoder)
    lengths, layers = row_lengths(table), set(layers)
    spaces = {kind: space.to(table.device) for kind, (space, _) in targets.items()}
    wanted = {(kind, k): _Tally() for kind, (_, ks) in targets.items() for k in ks}
    seen = {layer: _Tally() for layer in sorted(layers)}
    deepest = max([*layers, *(k for _, k in wanted), 1])
    loss, count = 0.0, 0
    for batch in states_of(decoder, rows, range(1, deepest + 1), whole=True):
        for layer, tally in seen.items():
            tally.add(batch.received if layer == 0 else batch.states[layer], batch, table, lengths)
        for (kind, k), tally in wanted.items():
            target = _weighted(batch.states, spaces[kind], layer_weights(k, weighting))
            tally.add(target, batch, table, lengths)
        assert batch.final is not None, "all layers ran"
        ids = batch.ids.view(len(batch.final), -1)
        term = next_token(batch.final[:, :-1].flatten(0, 1), ids.flatten(), head)
        loss, count = loss + float(term.total), count + term.items
    return Measured(
        tokens=count,
        vocabulary=len(table),
        loss=loss / count,
        unigram=unigram_loss(counted, rows[:, 1:], len(table)),
        layers={layer: tally.figures() for layer, tally in seen.items()},
        targets={
            kind: {k: wanted[kind, k].figures() for (name, k) in wanted if name == kind} for kind in targets
        },
    )


def _weighted(states: dict[int, torch.Tensor], space: TargetSpace, weights: list[float]) -> torch.Tensor:
    """Return the target that training would have, `(n, D)` fp32."""
    total = torch.zeros(states[1].shape, dtype=torch.float32, device=states[1].device)
    for index, weight in enumerate(weights):
        own = states[index + 1].to(torch.float32, copy=True)
        total.add_(space.bring(index, own), alpha=weight)
    return total


def unigram_loss(counted: torch.Tensor, ids: torch.Tensor, vocabulary: int) -> float:
    """Return what the token frequencies of `counted` alone reach on `ids`, in nats per token.

    Witten and Bell's estimate, so that a token that was not counted has a probability too:
    `(count + T / V) / (n + T)` with T distinct tokens among n. At most `log V`, what knowing nothing reaches.
    """
    counts = torch.bincount(counted.flatten().cpu(), minlength=vocabulary).double()
    distinct, total = float((counts > 0).sum()), float(counts.sum())
    likelihood = (counts + distinct / vocabulary) / (total + distinct)
    return min(float(-likelihood.log()[ids.flatten().cpu()].mean()), math.log(vocabulary))


HOLDS: float = 0.5
"""Share of tokens nearest to their own row from which a target is called one that speaks of its token."""

PARTLY: float = 0.1
"""The share below which a target is called no teacher at all; a guess is right in one case of V."""

Case = Literal["holds", "mended", "fails", "untrained"]


@dataclass(frozen=True)
class Verdict:
    """Whether a decoder can teach, and with which target."""

    # `"holds"`: the paper's target will do; `"mended"`: a fitted one does better, or is the only one that
    # does; `"fails"`: no target that was tried does; `"untrained"`: the model does not know this text, so
    # there is nothing to learn
    case: Case
    words: str  # the same in a sentence or two
    target: TargetKind | None  # the recommended kind, if any
    layers: int | None  # the recommended k


def judge(measured: Measured, tried: bool = True) -> Verdict:
    """Judge a decoder by what was measured; `tried` says whether fitted targets were tried at all.

    A decoder that predicts text no better than the frequencies of its tokens knows nothing, whatever its
    states look like: those of random weights may hold their token, too. Otherwise the simplest target (raw,
    centred, translated, in the order of `measured.targets`) is taken that finds its own token in at least
    half of the cases, at the largest k measured; if none does there, at the next.
    """
    if measured.loss >= measured.unigram:
        words = (
            f"Nothing to learn from: the model predicts this text at {measured.loss:.2f} nats per token, no "
            f"better than the frequencies of its tokens ({measured.unigram:.2f}; a guess: "
            f"{math.log(measured.vocabulary):.2f}). Its weights are random or broken, or the text is of a "
            "language that it never read."
        )
        return Verdict("untrained", words, None, None)
    raw = measured.targets["raw"]
    half = max(raw)
    for k in sorted(raw, reverse=True):
        for kind, by_layers in measured.targets.items():
            if k in by_layers and by_layers[k].own >= HOLDS:
                fewer = "" if k == half else f" with k = {k} instead of {half}"
                if kind == "raw":
                    words = f"The premise holds{fewer}: {_share(by_layers[k])}."
                    return Verdict("holds", words, kind, k)
                means = "taking the mean state off" if kind == "centred" else "a linear map per layer"
                mended = f"The states do hold their token: {means} brings it back{fewer}"
                words = f"{_stands(raw[half], half)} {mended} ({_share(by_layers[k])})."
                return Verdict("mended", words, kind, k)
    words = _stands(raw[half], half)
    if not tried:
        return Verdict("fails", f"{words} Linear maps were not tried.", None, None)
    best = {kind: by[half].own for kind, by in measured.targets.items()}
    kind = max(best, key=lambda name: best[name])
    words += f" Of what was tried {kind} is best, with {_percent(best[kind])}: too little for a teacher."
    return Verdict("fails", words, None, None)


def _stands(raw: Figures, k: int) -> str:
    fails = "fails" if raw.own < PARTLY else "holds in part only"
    return (
        f"The premise {fails}: over layers 1 to {k} {_share(raw)}, and a constant "
        f"makes up {_percent(raw.common)} of it."
    )


def _share(figures: Figures) -> str:
    return (
        f"{_percent(figures.own)} of the tokens are nearest to their own row, at cosine {figures.cosine:.2f}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


READ: int = 512
"""Held-out tokens that are read against the vocabulary: shares have a standard error of 2 points at most."""

GLANCE: int = 2560
"""Tokens of text for the glance: a tenth is read, the rest gives the frequencies of tokens."""


@dataclass(frozen=True)
class Examined:
    """The result of an examination."""

    measured: Measured
    verdict: Verdict
    fit: dict = field(default_factory=dict)  # report of the maps that were tried; empty where none were

    def json(self) -> dict[str, object]:
        return {"verdict": asdict(self.verdict), **asdict(self.measured), "translation": self.fit or None}


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
    """Measure every layer and the weighted targets, raw, centred and translated, for several k.

    `texts` are of the kind that will be trained on, `layers` is the largest k (`None` for half), and `read`
    counts the held-out tokens that are read against the vocabulary. Raises ValueError if there is hardly any
    text, or k is out of range.
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
    targets: dict[TargetKind, tuple[TargetSpace, list[int]]]
    targets = {"raw": (TargetSpace(), ks), "centred": (TargetSpace("centred", space.centre), ks)}
    if enough:
        targets["translated"] = (space, ks)
    progress(f"reading {held_out[:, 1:].numel():,} held-out tokens at {depth} layers")
    measured = measure(decoder, head, held_out, fitted[:, 1:], range(depth + 1), targets, weighting)
    return Examined(measured, judge(measured, tried=enough), space.report if enough else {})


def glance(
    decoder: PreTrainedModel,
    head: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    k: int,
    weighting: Weighting,
    space: TargetSpace | None = None,
) -> Examined:
    """Measure the target that a training will have, on a few hundred tokens; nothing is fitted.

    `texts` are the captions that will be trained on. The run's own `space` is measured beside the raw target
    if it is another. Raises ValueError if there is hardly any text.
    """
    fitted, held_out = divided(token_rows(tokenizer, texts, GLANCE))
    targets: dict[TargetKind, tuple[TargetSpace, list[int]]] = {"raw": (TargetSpace(), [k])}
    if space is not None and space.kind not in UNFITTED:  # text has no pictures to take a mean over
        targets[space.kind] = (space, [k])
    measured = measure(decoder, head, held_out, fitted[:, 1:], (), targets, weighting)
    return Examined(measured, judge(measured, tried=False))
