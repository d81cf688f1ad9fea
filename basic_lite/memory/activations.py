"""Bytes that one decoder layer keeps for backward, with transformers' own modules or Liger's fused ones.

The formulas follow the code, module by module, and are tested against what autograd saves on real
shapes: they are not estimates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from basic_lite.memory.sizes import DecoderSize
from basic_lite.models import zoo

Training = Literal["projector", "adapters", "decoder"]

_ADDS_ONE = ("gemma", "gemma2", "gemma3_text")
"""Families whose norms multiply by 1 + weight, in fp32."""


@dataclass(frozen=True)
class DecoderSetup:
    """How a decoder is stored and what of it is trained."""

    bits: int = 4  # of its linear layers: 4, 8 or 16
    # `"projector"` (stage 1), `"adapters"` (stage 2 with LoRA), `"decoder"` (stage 2 without)
    training: Training = "projector"
    rank: int = zoo.RANK  # of the adapters
    dropout: float = zoo.DROPOUT  # in front of the adapters
    half: bool = True  # bf16 activations (else fp32)
    # Liger's norms, gated MLPs and rotary embedding where the family has them, as on a GPU
    fused: bool = False
    streamlined: bool = True  # layers in few operations where the family's are known; never the last one

    @property
    def width(self) -> int:
        return 2 if self.half else 4

    @property
    def stream(self) -> int:
        """Bytes of an element of the residual stream: fp32 where the embeddings are trained, hence fp32."""
        return 4 if self.training == "decoder" else self.width


def is_fused(size: DecoderSize, setup: DecoderSetup) -> bool:
    """Whether Liger's modules run in a decoder: where they are asked for and exist."""
    return setup.fused and size.fusable


def is_streamlined(size: DecoderSize, setup: DecoderSetup) -> bool:
    """Whether a layer runs as `models.decoder_layer` has it: norms frozen, not in 8 bits."""
    return setup.streamlined and size.streamlined and setup.training != "decoder" and setup.bits != 8


def keeps_inputs_alone(size: DecoderSize, setup: DecoderSetup) -> bool:
    """Whether norms and gates keep what they were given, and nothing that they made of it."""
    return is_fused(size, setup) or is_streamlined(size, setup)


def kept_per_token(size: DecoderSize, setup: DecoderSetup, row: int = 0) -> float:
    """Bytes per token that a layer keeps when it is not recomputed, in rows of `row` tokens.

    A row that is longer than a sliding window needs masks. Some families keep a little more once for all
    rows: GLM-4's repeated cosines, Ministral's scales.
    """
    norms = _norms(size, setup) + _head_norms(size, setup)
    return norms + _attention(size, setup, row) + _mlp(size, setup) + _inputs(size, setup)


def is_masked(size: DecoderSize, row: int) -> bool:
    """Whether rows this long need masks, which all layers then get (see `attention.causal_only`)."""
    return size.window is not None and row > size.window


def kept_per_layer(size: DecoderSize, setup: DecoderSetup) -> int:
    """Bytes that a layer keeps however many tokens there are: narrowed copies of trained weights.

    Those of adapters are made once per optimizer step and stay (see `narrow_bytes`).
    """
    norms = size.norms * size.width + (2 * size.head_dim if size.head_norms else 0)
    widened = 0  # weights of norms in fp32
    if size.family in _ADDS_ONE and not keeps_inputs_alone(size, setup):
        widened = 4 * norms
    elif size.family in ("cohere2", "stablelm") and setup.half and setup.training != "decoder":
        widened = (8 if size.family == "stablelm" else 4) * norms  # with biases
    if not setup.half:
        return widened
    if setup.training == "decoder":
        return widened + 2 * size.linear_parameters
    if setup.training == "adapters" and setup.bits == 8:  # they run as PEFT has them
        # After a dropout an adapter's first matrix is narrowed anew in backward.
        first = 2 * setup.rank * sum(linear.inputs for linear in size.linears) if setup.dropout > 0 else 0
        return widened + 2 * size.adapter_parameters(setup.rank) // size.depth - first
    return widened


def narrow_bytes(size: DecoderSize, setup: DecoderSetup) -> int:
    """Bytes of the adapters' narrow copies, which stay from one optimizer step to the next."""
    if setup.training != "adapters" or not setup.half or setup.bits == 8:
        return 0
    return 2 * size.adapter_parameters(setup.rank)


def norm_bytes(size: DecoderSize, setup: DecoderSetup, after: bool = False) -> int:
    """Bytes per row of a norm: the widened input and the root; a trained one also what its weight multiplied.

    Liger's keeps its input as it came, and the root. A layer norm of torch's (StableLM) keeps the widened
    input, mean and root; Cohere's the centred input, once for the variance and once for the quotient.
    `after`: the input comes from attention or the MLP, and so in the precision of products.
    """
    given = setup.width if after else setup.stream
    if keeps_inputs_alone(size, setup):
        return size.width * given + 4
    if size.family == "stablelm":
        return 4 * size.width + 8
    widened = 2 if size.family == "cohere2" else 1
    multiplied = 0
    if setup.training == "decoder":
        multiplied = 4 if size.family in (*_ADDS_ONE, "olmo2", "olmo3") else given
    return size.width * (4 * widened + multiplied) + 4


def _norms(size: DecoderSize, setup: DecoderSetup) -> int:
    """As `norm_bytes`, of all norms of a layer but those of query and key."""
    after = size.norms_after
    return (size.norms - after) * norm_bytes(size, setup) + after * norm_bytes(size, setup, after=True)


def _head_norms(size: DecoderSize, setup: DecoderSetup) -> int:
    """As `norm_bytes`, of query and key, a root per head or for all; Liger has none over all at once."""
    if not size.head_norms:
        return 0
    if is_fused(size, setup) and not size.whole_norms:
        width = setup.width
    else:
        # What a trained weight multiplies is narrowed first by Qwen-3, as its input was narrow.
        width = 4 + ((setup.width if size.family == "qwen3" else 4) if setup.training == "decoder" else 0)
    return width * (size.query + size.keys) + 4 * (2 if size.whole_norms else size.heads + size.kv_heads)


def _attention(size: DecoderSize, setup: DecoderSetup, row: int) -> int:
    """Rotated query and key, value, output, and the softmax's normaliser in fp32.

    Under a mask sdpa's grouped kernels do not run, so key and value are widened to all heads, and the mask
    becomes a summand. Capped attention makes its map again and keeps neither normaliser nor output, which is
    there all the same where the output projection keeps its input.
    """
    if size.capped:
        kept = setup.training != "projector" or setup.bits == 8
        return setup.width * ((2 if kept else 1) * size.query + 2 * size.keys)
    masked = is_masked(size, row)
    keys = size.query if masked else size.keys
    return setup.width * (2 * size.query + 2 * keys + (row if masked else 0)) + 4 * size.heads


def _mlp(size: DecoderSize, setup: DecoderSetup) -> int:
    """Gate, its activation, and up, unless the activation is computed again."""
    return setup.width * (2 if keeps_inputs_alone(size, setup) else 3) * size.inner


def _inputs(size: DecoderSize, setup: DecoderSetup) -> int:
    """Inputs that linear layers keep: none while they are frozen in 4 or 16 bits."""
    width = setup.width
    # What the output projection gets is the attention's output, kept anyway. It is laid out anew where only a
    # part of each head was rotated, and in Phi-3, but not after Liger's rotary embedding.
    anew = size.partial or (size.joined and not keeps_inputs_alone(size, setup))
    output = size.query if anew else 0
    shared = width * (
        (1 if size.norms == 1 else 2) * size.width + output + size.inner
    )  # Cohere's block is one
    if setup.training == "decoder":
        if not setup.half:
            return shared
        # Autocast narrows the input anew for each layer; the attention's output is narrow already.
        own = sum(linear.inputs for linear in size.linears if linear.name != "o_proj")
        return width * (own + output)
    quantised = shared if setup.bits == 8 else 0  # bitsandbytes' 8-bit layers keep their inputs
    if setup.training == "projector":
        return quantised
    return shared + width * setup.rank * len(size.linears)


def kept_by_last(size: DecoderSize, setup: DecoderSetup, tokens: int, rows: int, mask: int) -> float:
    """Bytes that the last layer keeps, which runs for supervised rows only (see `last_layer`).

    Keys and values are made for all B * S `tokens`, and widened to all heads, because a mask stands in the
    way of sdpa's grouped kernels; everything else is made for the supervised `rows`, padding among them
    included. `mask` counts the mask's elements: one per row and token that it could see.
    """
    setup = replace(setup, streamlined=False)
    width, grouped = setup.width, size.capped or size.heads == size.kv_heads
    norms = _norms(size, setup)
    all_tokens = norms / 2 + _head_norms(size, setup) + width * 2 * (size.keys if grouped else size.query)
    some = norms / 2 + _attention(size, setup, 0) - width * 2 * size.keys + _mlp(size, setup)
    # The output projection and the MLP keep inputs of the supervised rows alone.
    of_some = sum(layer.inputs for layer in size.linears[-4 if not size.joined else -3 :])
    share = of_some / sum(layer.inputs for layer in size.linears)
    inputs = _inputs(size, setup) * (share * rows + (1 - share) * tokens)
    return tokens * all_tokens + rows * some + inputs + (1 if size.capped else width) * mask
