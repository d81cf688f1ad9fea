"""What the states of a decoder are on text: per layer, and as the weighted target of the first k.

BASIC compares states of layers 1..k with embeddings, by cosine and over `softmax(h E^T)`. On text it is known
what a state should mean, its own token, so that text alone says whether both are one space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from basic_lite.capture import Weighting, layer_weights
from basic_lite.losses import next_token
from basic_lite.readings import Reading, read, row_lengths
from basic_lite.targets import TargetSpace
from basic_lite.text_states import states_of

LARGEST: int = 3
"""How many coordinates the energy share counts."""


@dataclass(frozen=True)
class Figures:
    """What vectors at text tokens look like to the vocabulary; means over tokens.

    Attributes:
        own: share whose nearest row of `E`, by cosine, is their own token's.
        cosine: to the embedding that the first layer received for their token.
        energy: share of the squared norm in the three coordinates that hold most of it.
        common: norm of the mean vector, as a share of the mean norm: 1 if all vectors are one constant.
        norm: mean norm.
        entropy: of `softmax(h E^T)`, in nats.
    """

    own: float
    cosine: float
    energy: float
    common: float
    norm: float
    entropy: float


@dataclass(frozen=True)
class Measured:
    """Everything that is measured on text.

    Attributes:
        tokens: how many tokens were read against the vocabulary.
        vocabulary: V.
        loss: of the language model, in nats per token.
        unigram: what the frequencies of the text's tokens alone reach, in nats.
        layers: layer -> figures; 0 is what the first layer received.
        targets: kind -> k -> figures of the weighted target.
    """

    tokens: int
    vocabulary: int
    loss: float
    unigram: float
    layers: dict[int, Figures]
    targets: dict[str, dict[int, Figures]]

    def json(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self)


class _Tally:
    """Running sums over tokens."""

    def __init__(self) -> None:
        self.count, self.own, self.cosine, self.entropy, self.norm = 0, 0.0, 0.0, 0.0, 0.0
        self.sum: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def add(self, vectors: torch.Tensor, reading: Reading) -> None:
        vectors = vectors.double()
        self.count += len(vectors)
        self.own += float(reading.own.sum())
        self.cosine += float(reading.cosine.sum())
        self.entropy += float(reading.entropy.sum())
        self.norm += float(vectors.norm(dim=1).sum())
        self.sum = self.sum + vectors.sum(0)
        self.squares = self.squares + vectors.square().sum(0)

    def figures(self) -> Figures:
        largest = self.squares.topk(min(LARGEST, len(self.squares))).values.sum()
        return Figures(
            own=self.own / self.count,
            cosine=self.cosine / self.count,
            energy=float(largest / self.squares.sum()),
            common=float(self.sum.norm()) / self.norm,
            norm=self.norm / self.count,
            entropy=self.entropy / self.count,
        )


@torch.no_grad()
def measure(
    decoder: PreTrainedModel,
    head: torch.nn.Module,
    rows: torch.Tensor,
    counted: torch.Tensor,
    layers: Iterable[int],
    targets: Mapping[str, tuple[TargetSpace, Iterable[int]]],
    weighting: Weighting = "quadratic",
) -> Measured:
    """Measure a decoder on rows of text; one pass, nothing outlives its batch.

    Args:
        decoder: the language model without head.
        head: its output projection.
        rows: `(R, S)` ids to read against the vocabulary.
        counted: ids of other text, for the frequencies of tokens.
        layers: which ones to look at, 0 for the embeddings; each costs a product with the vocabulary.
        targets: kind -> its space and the k's to weight up to.
        weighting: of layers 1..k.
    """
    table = decoder.get_input_embeddings().weight
    lengths, layers = row_lengths(table), set(layers)
    targets = {kind: (space.to(table.device), ks) for kind, (space, ks) in targets.items()}
    wanted = {(kind, k): _Tally() for kind, (_, ks) in targets.items() for k in ks}
    seen = {layer: _Tally() for layer in sorted(layers)}
    deepest = max([*layers, *(k for _, k in wanted), 1])
    loss, count = 0.0, 0
    for batch in states_of(decoder, rows, range(1, deepest + 1), whole=True):

        def note(tally: _Tally, vectors: torch.Tensor, batch: object = batch) -> None:
            tally.add(vectors, read(vectors, batch.received, batch.ids, table, lengths))

        for layer, tally in seen.items():
            note(tally, batch.received if layer == 0 else batch.states[layer])
        for (kind, k), tally in wanted.items():
            note(tally, _weighted(batch.states, targets[kind][0], layer_weights(k, weighting)))
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
    """Return what token frequencies alone reach on a text, in nats per token.

    Witten and Bell's estimate, so that a token that was not counted has a probability too:
    `(count + T / V) / (n + T)` with T distinct tokens among n. At most `log V`, what knowing nothing reaches.

    Args:
        counted: ids whose frequencies are taken.
        ids: ids to be predicted.
        vocabulary: V.
    """
    counts = torch.bincount(counted.flatten().cpu(), minlength=vocabulary).double()
    distinct, total = float((counts > 0).sum()), float(counts.sum())
    likelihood = (counts + distinct / vocabulary) / (total + distinct)
    return min(float(-likelihood.log()[ids.flatten().cpu()].mean()), math.log(vocabulary))
