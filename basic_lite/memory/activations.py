"""Bytes that one decoder layer keeps for backward, with transformers' own modules or Liger's fused ones.

The formulas follow the code, module by module, and are tested against what autograd saves on real
shapes: they are not estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from basic_lite.memory.sizes import DecoderSize
from basic_lite.models import zoo

Training = Literal["projector", "adapters", "decoder"]


@dataclass(frozen=True)
class Held:
    """How a decoder is held and what of it is trained.

    Attributes:
        bits: of its linear layers: 4, 8 or 16.
        training: `"projector"` (stage 1), `"adapters"` (stage 2 with LoRA), `"decoder"` (stage 2 without).
        rank: of the adapters.
        dropout: in front of the adapters.
        half: bf16 activations (else fp32).
        fused: Liger's norms, gated MLPs and rotary embedding, as a GPU has them (see `fused`).
    """

    bits: int = 4
    training: Training = "projector"
    rank: int = zoo.RANK
    dropout: float = zoo.DROPOUT
    half: bool = True
    fused: bool = False

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return 2 if self.half else 4

    @property
    def stream(self) -> int:
        """Bytes of an element of the residual stream: fp32 where the embeddings are trained, hence fp32."""
        return 4 if self.training == "decoder" else self.width


def checkpoint_bytes(size: DecoderSize, held: Held) -> int:
    """Bytes per token that a recomputed layer keeps: its input."""
    return size.width * held.stream


def kept_per_token(size: DecoderSize, held: Held) -> float:
    """Bytes per token that a layer keeps when it is not recomputed."""
    norms = size.norms * norm_bytes(size, held) + _head_norms(size, held)
    return norms + _attention(size, held) + _mlp(size, held) + _inputs(size, held)


def kept_per_layer(size: DecoderSize, held: Held) -> int:
    """Bytes that a layer keeps however many tokens there are: narrowed copies of trained weights.

    Those of adapters are made once per optimizer step and stay (see `narrow_bytes`).
    """
    widened = size.family in ("gemma", "gemma3_text") and not held.fused
    ones = size.norms * size.width + (2 * size.head_dim if size.head_norms else 0)
    gemma = 4 * ones if widened else 0  # 1 + weight, in fp32
    if not held.half:
        return gemma
    if held.training == "decoder":
        return gemma + 2 * size.linear_parameters
    if held.training == "adapters" and held.bits == 8:  # they run as PEFT has them
        # After a dropout an adapter's first matrix is narrowed anew in backward.
        first = 2 * held.rank * sum(linear.inputs for linear in size.linears) if held.dropout > 0 else 0
        return gemma + 2 * size.adapter_parameters(held.rank) // size.depth - first
    return gemma


def narrow_bytes(size: DecoderSize, held: Held) -> int:
    """Bytes of the adapters' narrow copies, which stay from one optimizer step to the next."""
    if held.training != "adapters" or not held.half or held.bits == 8:
        return 0
    return 2 * size.adapter_parameters(held.rank)


def norm_bytes(size: DecoderSize, held: Held) -> int:
    """Bytes per row of a norm: the widened input and the root; a trained one also what its weight multiplied.

    Liger's keeps its input as it came, and the root.
    """
    if held.fused:
        return size.width * held.stream + 4
    normalised = 4 * size.width if held.training == "decoder" else 0
    return 4 * size.width + 4 + normalised


def _head_norms(size: DecoderSize, held: Held) -> int:
    """As `norm_bytes`, of query and key: what the projections gave, and a root per head."""
    if not size.head_norms:
        return 0
    width = held.width if held.fused else 4 + (4 if held.training == "decoder" else 0)
    return width * (size.query + size.keys) + 4 * (size.heads + size.kv_heads)


def _attention(size: DecoderSize, held: Held) -> int:
    """Rotated query and key, value, output, and the softmax's normaliser in fp32."""
    return held.width * (2 * size.query + 2 * size.keys) + 4 * size.heads


def _mlp(size: DecoderSize, held: Held) -> int:
    """Gate, its activation, and up; Liger's computes the activation again."""
    return held.width * (2 if held.fused else 3) * size.inner


def _inputs(size: DecoderSize, held: Held) -> int:
    """Inputs that linear layers keep: none while they are frozen in 4 or 16 bits."""
    width = held.width
    # What the output projection gets is the attention's output, kept anyway; Phi-3's is laid out anew, but
    # not behind Liger's rotary embedding, which leaves another layout.
    output = size.query if size.joined and not held.fused else 0
    shared = width * (2 * size.width + output + size.inner)
    if held.training == "decoder":
        if not held.half:
            return shared
        # Autocast narrows the input anew for each layer; the attention's output is narrow already.
        own = sum(linear.inputs for linear in size.linears if linear.name != "o_proj")
        return width * (own + output)
    quantised = shared if held.bits == 8 else 0  # bitsandbytes' 8-bit layers keep their inputs
    if held.training == "projector":
        return quantised
    return shared + width * held.rank * len(size.linears)


def kept_by_last(size: DecoderSize, held: Held, tokens: int, rows: int, mask: int) -> float:
    """Bytes that the last layer keeps, which runs for supervised rows only (see `last_layer`).

    Keys and values are made for all tokens, and widened to all heads, because a mask stands in the way of
    sdpa's grouped kernels; everything else is made for the supervised rows.

    Args:
        size: of the decoder.
        held: how it is held.
        tokens: B * S.
        rows: supervised rows, padding among them included.
        mask: bytes of the mask, one per row and token that it could see.
    """
    width = held.width
    norms = size.norms * norm_bytes(size, held)
    all_tokens = (
        norms / 2
        + _head_norms(size, held)
        + width * 2 * (size.keys if size.heads == size.kv_heads else size.query)
    )
    some = norms / 2 + width * 2 * size.query + 4 * size.heads + _mlp(size, held)
    everything = _inputs(size, held)
    behind = sum(layer.inputs for layer in size.linears[-4 if not size.joined else -3 :])
    share = behind / sum(layer.inputs for layer in size.linears)
    inputs = everything * (share * rows + (1 - share) * tokens)
    return tokens * all_tokens + rows * some + inputs + mask
