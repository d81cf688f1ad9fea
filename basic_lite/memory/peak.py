"""The most memory that a training step holds at once, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from basic_lite.memory.activations import (
    DecoderSetup,
    is_fused,
    is_masked,
    keeps_inputs_alone,
    kept_by_last,
    kept_per_layer,
    kept_per_token,
    narrow_bytes,
    norm_bytes,
)
from basic_lite.memory.sizes import DecoderSize, TowerSize, projector_parameters
from basic_lite.method.chunks import Chunk, chunk_of, rows_in_chunk
from basic_lite.models.capped_map import working_bytes

Optimizer = Literal["adamw", "paged-adamw-8bit"]

CONTEXT_BYTES: int = 900_000_000
"""What CUDA, cuBLAS and the libraries' own workspaces take before the first tensor (an estimate)."""

FRAGMENTATION: float = 0.05
"""Share of what comes and goes within a step that the allocator cannot use (an estimate)."""

_BLOCK_BYTES: int = 2 * (16 << 20)
"""Two column blocks of a pass over the vocabulary on a GPU."""


@dataclass(frozen=True)
class Step:
    """Everything that the memory of one training step depends on."""

    decoder: DecoderSize  # sizes of the language model
    tower: TowerSize  # sizes of the vision tower
    setup: DecoderSetup  # how the decoder is stored and what of it is trained
    optimizer: Optimizer = "adamw"  # of the adapters: `"adamw"` with fp32 moments, or `"paged-adamw-8bit"`
    micro_batch: int = 8  # B, rows per forward pass, each with one image
    text: int = 64  # text tokens per row, all with loss
    recompute: int = 0  # decoder layers, the first ones, that run again in backward
    basic: bool = True  # BASIC's terms are on
    # Patches per pass over the whole vocabulary; `None` for the rule of `method.chunks`
    rows_per_chunk: int | None = None
    workspace: int | None = None  # bytes that this rule is given for `L_sds`; `None` for its own
    shards: int = 1  # processes over which the decoder's layers are cut
    tower_trained: bool = False  # the tower's own weights are trained, as far as its features depend on them
    tower_rank: int = 0  # of adapters in the tower; 0 for none
    tower_depth: int | None = None  # layers of the tower up to its features; `None` for all but the last
    maps: int = 0  # k, where the target is translated: that many `(D, D)` matrices beside the model
    # Decoder layers whose 4-bit weights are also held dequantised, from one step to the next
    dequantised: int = 0
    # An optimizer step has several micro-batches, so that gradients wait from earlier ones
    accumulates: bool = True

    @property
    def tower_layers(self) -> int:
        """Layers of the tower up to its features."""
        return self.tower.depth - 1 if self.tower_depth is None else self.tower_depth

    @property
    def tower_tuned(self) -> int:
        """Parameters that are trained in the tower."""
        if self.tower_trained:
            return self.tower.parameters_to(self.tower_layers)
        return self.tower.adapter_parameters(self.tower_rank, self.tower_layers)

    @property
    def tower_width(self) -> int:
        """Bytes of an element of the tower's states: fp32 if its weights are, or a first norm widens them."""
        first_norm = self.tower.family in ("clip_vision_model", "mlcd_vision_model")
        return 4 if self.tower_trained or (self.tower_rank and first_norm) else self.setup.width

    @property
    def tokens(self) -> int:
        """B * S: one start token, the patches and the text of each row."""
        return self.micro_batch * (1 + self.tower.tokens + self.text)

    @property
    def row(self) -> int:
        """S."""
        return self.tokens // self.micro_batch

    @property
    def rows(self) -> int:
        """Supervised rows."""
        return self.micro_batch * self.text

    @property
    def patches(self) -> int:
        """N."""
        return self.micro_batch * self.tower.patches

    @property
    def stream_bytes(self) -> int:
        """Bytes of the residual stream: a layer's input, and the gradient that backward has in hand."""
        return self.tokens * self.decoder.width * self.setup.stream

    @property
    def squares(self) -> int:
        """Squares of pixels, each of them a pass through the tower."""
        return self.micro_batch * self.tower.squares

    @property
    def chunk(self) -> Chunk:
        """What `L_sds` has at once of patches and vocabulary."""
        vocabulary = self.decoder.vocabulary
        if self.rows_per_chunk:
            return Chunk(min(self.rows_per_chunk, self.patches), vocabulary)
        return chunk_of(self.patches, vocabulary, self.decoder.width, self.setup.width, self.workspace)

    @property
    def chunk_bytes(self) -> int:
        return self.chunk.bytes(self.decoder.vocabulary, self.decoder.width, self.setup.width)


def static_parts(step: Step) -> dict[str, float]:
    """Bytes that are there from the second optimizer step on: weights, moments and waiting gradients.

    From the second micro-batch of an optimizer step on, gradients are always there. Where there is no second
    one, they come while the layers' activations go (see `_gradients`).
    """
    decoder, setup = step.decoder, step.setup
    if setup.training == "decoder":
        weights, tables, trained = 4 * decoder.depth * decoder.linear_parameters, 4, decoder.parameters
    else:
        weights, tables = decoder.linear_bytes(setup.bits, setup.width), setup.width
        trained = decoder.adapter_parameters(setup.rank) if setup.training == "adapters" else 0
    moments = 2 * (1 + 4 / 256) if step.optimizer == "paged-adamw-8bit" else 8
    projector = projector_parameters(step.tower, decoder)
    waiting = 4 if step.accumulates else 0
    tuned = trained * (moments + waiting)
    if setup.training == "adapters":
        tuned += 4 * trained
    if step.shards == 1 and step.optimizer == "adamw":
        tuned += narrow_bytes(decoder, setup)
    layers = weights + tables * decoder.norm_parameters
    # Of a decoder that is cut two layers are whole: one at work and the next; with the gradient of one.
    whole = (2 * layers + 12 * trained) / decoder.depth if step.shards > 1 else 0
    kept = decoder.scale_bytes if step.shards > 1 and setup.bits == 4 else 0  # they are no parameters
    dequantised = step.dequantised * dequantised_bytes(step)
    layers, tuned = kept + (layers - kept) / step.shards, tuned / step.shards
    return {
        "decoder": layers,
        **({"layers at work": whole} if whole else {}),
        **({"layers held dequantised": dequantised} if dequantised else {}),
        "embeddings and head": tables * decoder.table_parameters,
        "tower": (4 if step.tower_trained else setup.width) * step.tower.parameters,
        **({"tower's optimizer": _tuning_of_tower(step, moments, waiting)} if step.tower_tuned else {}),
        "projector": (12 + waiting) * projector,  # fp32: weights, two moments, gradients
        "adapters" if setup.training != "decoder" else "decoder's optimizer": tuned,
        **({"maps of the target": tables * step.maps * decoder.width**2} if step.maps else {}),
    }


def dequantised_bytes(step: Step) -> int:
    """Bytes of one decoder layer's linear weights in the precision of products."""
    return step.setup.width * step.decoder.linear_parameters


def _tuning_of_tower(step: Step, moments: float, waiting: int) -> float:
    """Bytes beside a trained tower's weights; its adapters are weights, too."""
    return step.tower_tuned * ((8 if step.tower_trained else 4 + moments) + waiting)


def activation_bytes(step: Step, recompute: int | None = None) -> float:
    """Bytes that the decoder's layers keep from forward to backward; `recompute` replaces the step's own."""
    count = step.recompute if recompute is None else recompute
    depth = step.decoder.depth
    last = _last(step) if count < depth else 0
    return count * step.stream_bytes + max(depth - 1 - count, 0) * _whole(step) + last


def _whole(step: Step) -> float:
    """What one layer keeps that runs for all tokens."""
    kept = step.tokens * kept_per_token(step.decoder, step.setup, step.row)
    return kept + kept_per_layer(step.decoder, step.setup)


def _last(step: Step) -> float:
    kept = kept_by_last(step.decoder, step.setup, step.tokens, step.rows, step.rows * step.row)
    return kept + kept_per_layer(step.decoder, step.setup)


def peak(step: Step) -> dict[str, float]:
    """Return the bytes of every part at the step's peak; their sum is the peak."""
    largest = max(_moments(step), key=lambda moment: sum(moment.values()))
    parts = static_parts(step) | largest
    parts["context and allocator"] = CONTEXT_BYTES + FRAGMENTATION * sum(largest.values())
    return parts


def allocated(step: Step) -> float:
    """Return the peak of tensors alone: what `torch.cuda.max_memory_allocated` would show."""
    return sum(static_parts(step).values()) + max(sum(moment.values()) for moment in _moments(step))


def _moments(step: Step) -> list[dict[str, float]]:
    """Return what comes and goes at each of the moments that can be the step's peak.

    They are the tower's pass; the head, when all that the layers keep is there; backward in the last layer
    that keeps its activations; backward in the last one that recomputes, when only the inputs of the
    recomputed layers are left and one layer's activations; and BASIC's terms, which are computed after the
    decoder's backward pass.
    """
    decoder, setup, tokens, depth = step.decoder, step.setup, step.tokens, step.decoder.depth
    state = step.patches * decoder.width
    projector, tower = _projector(step), _kept_by_tower(step)
    around = _embeddings(step) + projector + tower + (4 * state if step.basic else 0)  # the target waits
    if is_masked(decoder, step.row):  # for layers with and without a window
        around += 2 * tokens * step.row
    kept = activation_bytes(step)
    last = norm_bytes(decoder, replace(setup, streamlined=False))
    final_norm = step.rows * (last + decoder.width * setup.width)
    incoming = step.stream_bytes
    moments: list[dict[str, float]] = []

    def moment(activations: float, layers: int = 0, losses: float = 0.0) -> None:
        """Add a moment at which the last `layers` layers have gradients."""
        parts = {"activations": activations} | ({"head and losses": losses} if losses else {})
        moments.append(parts | (_gradients(step, layers) if layers else {}))

    moment(_tower(step))
    moment(around + kept + final_norm, losses=_head(step))
    moment(around + kept + incoming + _working(step, step.rows), 1)
    if step.recompute < depth - 1:  # backward in the layer before the last
        moment(around + (kept - _last(step)) + incoming + _working(step, tokens), 2)
    # What the first norm keeps, if nothing that it made, is the input that is kept anyway.
    own = incoming if keeps_inputs_alone(decoder, setup) else 0
    for layer in {min(step.recompute, depth - 1), 1} if step.recompute else ():  # its first and last one
        again = _whole(step) - own + incoming + _again(step, tokens)
        moment(around + layer * incoming + again, depth - layer + 1)
    if step.recompute == depth:
        own = incoming if is_fused(decoder, setup) else 0
        moment(around + kept + (_last(step) - own + incoming + _again(step, step.rows)), 1)
    if setup.training == "decoder":  # the embeddings' gradient, and what is added up where the head is tied
        table = 4 * decoder.vocabulary * decoder.width
        moment(around + incoming, depth, table * (3 if decoder.tied else 1))
    if step.basic:
        moment(incoming + projector + tower + 4 * state, depth, _terms(step))
    if step.tower_tuned:  # the last one, when the decoder holds nothing any more
        moment(tower + _tower_again(step), depth)
        tuned = 0 if step.accumulates else 4 * step.tower_tuned
        moments[-1]["gradients"] = moments[-1].get("gradients", 0.0) + tuned
    return moments


def _gradients(step: Step, layers: int) -> dict[str, float]:
    """Gradients of the last `layers` layers, where none wait from an earlier micro-batch."""
    if step.accumulates or step.setup.training == "projector":
        return {}
    decoder, setup = step.decoder, step.setup
    adapters = decoder.adapter_parameters(setup.rank)
    trained = decoder.depth * decoder.linear_parameters if setup.training == "decoder" else adapters
    return {"gradients": 4 * trained * layers / decoder.depth / step.shards}


def _tower(step: Step) -> float:
    """The tower's pass: every layer's states, which transformers keeps, and one layer's MLP."""
    tower, width = step.tower, step.setup.width
    tokens = step.squares * tower.positions
    states = max(step.tower_width, width) * (tower.depth + 5) * tower.width
    return _pixels(step) + tokens * (states + width * 2 * tower.inner)


def _kept_by_tower(step: Step) -> float:
    """What waits for the backward pass of a trained tower: the input of each of its layers."""
    if not step.tower_tuned:
        return 0.0
    positions = step.squares * step.tower.positions
    return _pixels(step) + (step.tower_layers + 2) * positions * step.tower.width * step.tower_width


def _tower_again(step: Step) -> float:
    """One layer of a trained tower that runs again, and the gradients in its MLP."""
    tower, width = step.tower, step.setup.width
    positions = step.squares * tower.positions
    narrow = width * tower.layer_parameters if step.tower_trained and step.setup.half else 0
    # Three copies of the narrowed input; query, key, value, output; two sums; four tensors inside the MLP.
    kept = (12 * width + 3 * step.tower_width) * tower.width + 4 * width * tower.inner
    working = 3 * width * tower.inner + 2 * step.tower_width * tower.width
    return positions * (kept + working) + narrow


def _pixels(step: Step) -> float:
    return step.squares * 3 * step.tower.image_size**2 * (1 + step.setup.width) + 24 * step.tokens


def _embeddings(step: Step) -> float:
    """The text's embeddings, and the same with the pictures among them.

    The latter are what the first layer keeps when it recomputes, and are not counted twice.
    """
    return step.stream_bytes * (1 if step.recompute else 2)


def _projector(step: Step) -> float:
    """What the projector keeps in fp32: its input and both sides of its GELU; and its narrowed output."""
    width = 4 * (step.tower.features + 2 * step.decoder.width) + step.setup.width * step.decoder.width
    return _pixels(step) + step.patches * width


def _head(step: Step) -> float:
    """The supervised rows, their gradient, one chunk of logits; a trained head's own gradient, twice."""
    decoder, width = step.decoder, step.setup.width
    rows = step.rows
    chunk = rows_in_chunk(rows, decoder.vocabulary)
    head = 8 * decoder.vocabulary * decoder.width if step.setup.training == "decoder" else 0
    return rows * decoder.width * (4 + width) + 4 * chunk * decoder.vocabulary + _BLOCK_BYTES + head


def _terms(step: Step) -> float:
    """BASIC's terms: the student's rows and two gradients in fp32 beside a chunk, or three after it."""
    state = 4 * step.patches * step.decoder.width
    vocabulary = 3 * state + step.chunk_bytes + _BLOCK_BYTES
    direction = 7 * state
    return max(vocabulary, direction)


def _working(step: Step, tokens: int) -> float:
    """What backward through one layer holds beyond what the layer kept: in its MLP, where it holds most.

    Capped attention's map may be more, although the MLP's tensors, which are gone by then, are not taken off.
    """
    decoder, working = step.decoder, _working_in_mlp(step, tokens)
    if not decoder.capped:
        return working
    queries = tokens // step.micro_batch
    return max(working, working_bytes(step.micro_batch, decoder.heads, queries, step.row))


def _working_in_mlp(step: Step, tokens: int) -> float:
    decoder, setup = step.decoder, step.setup
    largest = max(linear.parameters for linear in decoder.linears)
    unpacked = setup.width * largest if setup.training != "decoder" and setup.bits != 16 else 0
    inner, fused = setup.width * tokens * decoder.inner, is_fused(decoder, setup)
    if setup.training == "adapters" and setup.bits != 8:
        return _working_in_groups(step, tokens)
    if fused:  # the gate's and up's gradients are written over what was kept
        return max(2 * inner if decoder.joined else 0, inner + unpacked)
    return max(3 * inner, 2 * inner + unpacked)


def _working_in_groups(step: Step, tokens: int) -> float:
    """As `_working`, with `models.adapters`: of each group the masks, as many gradients, and their sum.

    A group's weights are unpacked together, twice those of one layer for gate and up; its masks are drawn
    anew and multiply what comes back through each adapter before it is added to the input's gradient.
    """
    decoder, setup = step.decoder, step.setup
    weight = setup.width if setup.bits == 4 else 0
    inner, state = setup.width * tokens * decoder.inner, setup.width * tokens * decoder.width
    masked, fused = 2 if setup.dropout > 0 else 0, is_fused(decoder, setup)
    joined = "gate_up_proj" in {linear.name for linear in decoder.linears}
    down = (1 + masked) * inner + weight * decoder.width * decoder.inner
    # The product that the down projection kept is gone by now, and unfused all that the activation kept.
    before = (1 if fused else 4) * inner
    gradients = 0 if fused and not joined else 2 * inner
    members = 1 if joined else 2
    gate_and_up = gradients - before + (1 + masked * members) * state
    gate_and_up += weight * 2 * decoder.width * decoder.inner
    activation = 0 if fused else 2 * inner  # gradients of both factors and of the product, which is gone
    return max(down, gate_and_up, activation)


def _again(step: Step, tokens: int) -> float:
    """What backward holds beyond what a layer keeps when that layer runs again.

    Where the down projection is frozen and quantised, nothing after Liger's MLP needs what was kept: the
    gradient of the MLP's product is there before the layer runs again, up to that product, which is made
    anew. Phi-3's gate and up are cut out of one tensor, which then stands beside the two copies.
    """
    setup = step.setup
    working = _working(step, tokens)
    if not keeps_inputs_alone(step.decoder, setup) or setup.training != "projector" or setup.bits == 16:
        return working
    inner = setup.width * tokens * step.decoder.inner
    return max(working, inner * (4 if step.decoder.joined else 2))
