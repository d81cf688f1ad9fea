"""How long a sample takes: arithmetic and traffic of a training step against a card's two ceilings.

An estimate, not a measurement. `FLOPS` counts matrix products only, and `EFFICIENCY` stands for
everything else: norms, activations, launches, the host.
"""

from __future__ import annotations

from dataclasses import dataclass

from basic_lite.memory.peak import Step
from basic_lite.memory.sizes import projector_parameters

EFFICIENCY: float = 0.5
"""Share of the peak arithmetic that a step reaches. LLaVA-1.5's own pretraining reached 45 % (7B) and
55 % (13B) of an A100 by its published hours."""


@dataclass(frozen=True)
class Card:
    """A graphics card, by the vendor's figures."""

    gib: float  # memory
    name: str  # of the card that stands for this size
    teraflops: float  # dense bf16 matrix products with fp32 sums, in 1e12 per second
    bandwidth: float  # of its memory, in 1e9 bytes per second


CARDS: tuple[Card, ...] = (
    Card(12, "RTX 3060", 25.5, 360),
    Card(16, "RTX 4080", 97.5, 717),
    Card(24, "RTX 4090", 165.2, 1008),
    Card(32, "RTX 5090", 209.5, 1792),
    Card(48, "RTX A6000", 154.8, 768),
    Card(80, "A100 80GB", 312.0, 2039),
)


def card_of(gib: float) -> Card:
    """Return the card whose speed stands for a memory size: the largest that is not above it."""
    fitting = [card for card in CARDS if card.gib <= gib]
    return fitting[-1] if fitting else CARDS[0]


def flops_per_sample(step: Step) -> dict[str, float]:
    """Count floating point operations of one row's matrix products, forward and backward, by part.

    Attention is causal and counted as its kernels compute it: two products forward, five backward.
    """
    decoder, setup, tower = step.decoder, step.setup, step.tower
    tokens, depth = 1 + tower.tokens + step.text, decoder.depth
    # The last layer makes keys and values of all tokens, and the rest of the supervised rows alone.
    share = step.text / tokens
    keys_and_values = sum(layer.parameters for layer in decoder.linears if layer.name in _FOR_ALL)
    rest = decoder.linear_parameters - keys_and_values
    per_pass = (depth - 1) * decoder.linear_parameters + keys_and_values + rest * share
    adapters = decoder.adapter_parameters(setup.rank) if setup.training == "adapters" else 0
    scores = (depth - 1 + share) * 2 * tokens**2 * decoder.query
    forward = 2 * tokens * (per_pass + adapters) + scores
    backward = 2 * tokens * (per_pass * (2 if setup.training == "decoder" else 1) + 2 * adapters)
    head = 2 * step.text * decoder.vocabulary * decoder.width
    basic = {}
    if step.basic:
        watched = max(depth // 2, 1)
        basic = {
            "L_sds": 6 * tower.patches * decoder.vocabulary * decoder.width,
            "importance": 2 * step.text * tokens * decoder.query * watched,
        }
    return {
        "decoder, forward": forward,
        "decoder, backward": backward + 2.5 * scores,
        "recomputation": forward * step.recompute / depth,
        "head": head * (3 if setup.training == "decoder" else 2),
        "tower": _tower_flops(step),
        "projector": 6 * projector_parameters(tower, decoder) * tower.patches,
        **basic,
    }


_FOR_ALL = frozenset({"k_proj", "v_proj", "qkv_proj"})
"""Linear layers that the last layer runs for all tokens."""


def _tower_flops(step: Step) -> float:
    tower = step.tower
    layer = 2 * tower.positions * (4 * tower.width**2 + 2 * tower.width * tower.inner)
    # Trained, its layers run again in backward, for the gradient of their inputs and, of weights, theirs.
    passes = 4 if step.tower_trained else 3 if step.tower_rank else 1
    return passes * tower.squares * step.tower_layers * (layer + 4 * tower.positions**2 * tower.width)


def seconds_per_sample(step: Step, card: Card) -> float:
    """Estimate the seconds that one row takes on a card, without loading data and without saving."""
    arithmetic = sum(flops_per_sample(step).values()) / (card.teraflops * 1e12 * EFFICIENCY)
    decoder = step.decoder
    # Packed weights are unpacked for every pass: read packed, written as activations are.
    packed = {4: 0.516, 8: 1.0, 16: 0.0}[step.setup.bits]
    linear = decoder.depth * decoder.linear_parameters
    traffic = linear * (packed + 2 * step.setup.width) if packed else linear * step.setup.width
    passes = 2 + step.recompute / decoder.depth
    return arithmetic + passes * traffic / (card.bandwidth * 1e9) / step.micro_batch
