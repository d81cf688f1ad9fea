"""What evaluating, chatting and exporting hold, and the bits and the batch that a card has room for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from basic_lite.memory.choice import budget_bytes
from basic_lite.memory.peak import CONTEXT_BYTES, FRAGMENTATION
from basic_lite.memory.sizes import DecoderSize, TowerSize, projector_parameters
from basic_lite.models import zoo
from basic_lite.models.capped_map import WORKING, working_bytes

if TYPE_CHECKING:
    import torch

Use = Literal["evaluate", "chat", "export"]

LARGEST_BATCH: int = 32
"""More prompts at once gain little: a token's pass then multiplies as long as it reads weights."""

SHARD_BYTES: int = 2 << 30
"""Of an export's files, unless `--shard-gib` says otherwise."""


@dataclass(frozen=True)
class Inference:
    """Everything that the memory of answering depends on."""

    decoder: DecoderSize  # sizes of the language model
    tower: TowerSize  # sizes of the vision tower
    bits: int = 4  # of the decoder's linear layers
    rank: int = zoo.RANK  # of adapters, which stay beside the weights in fp32; 0 without
    width: int = 2  # bytes of an activation
    batch: int = 1  # prompts that are answered together
    pictures: int = 1  # per prompt
    text: int = 256  # text tokens of a prompt
    new: int = 128  # most tokens of an answer

    @property
    def prompt(self) -> int:
        """Tokens of a prompt, pictures among them."""
        return 1 + self.pictures * self.tower.tokens + self.text


SETTINGS: dict[Use, dict[str, Any]] = {
    "evaluate": {"batch": LARGEST_BATCH},
    "chat": {"text": 1024, "new": 512},
    "export": {"bits": 16, "pictures": 2, "text": 64, "new": 12},
}
"""What is planned for: a benchmark's long prompts, a conversation of some turns, and what an export asks the
run, whose adapters then stand on the base in full precision, and the folder."""


def weight_bytes(plan: Inference) -> dict[str, float]:
    """Bytes of everything that stays."""
    decoder, tower = plan.decoder, plan.tower
    copies = 2 if plan.rank else 1  # PEFT keeps the projector that it replaces
    return {
        "decoder": decoder.linear_bytes(plan.bits, plan.width) + plan.width * decoder.norm_parameters,
        "embeddings and head": plan.width * decoder.table_parameters,
        "tower": plan.width * tower.parameters,
        "projector": 4 * copies * projector_parameters(tower, decoder),
        "adapters": 4 * decoder.adapter_parameters(plan.rank),
    }


def cache_bytes(plan: Inference, tokens: int) -> float:
    """Bytes of the keys and values of `tokens` per prompt; a layer with a window keeps its window's."""
    decoder = plan.decoder
    seen = (decoder.depth - decoder.windowed) * tokens
    if decoder.window is not None:
        seen += decoder.windowed * min(tokens, decoder.window)
    return plan.batch * 2 * plan.width * decoder.keys * seen


def peak(plan: Inference) -> dict[str, float]:
    """Return the bytes of every part at the peak; their sum is the peak."""
    largest = max(_moments(plan), key=lambda moment: sum(moment.values()))
    parts = {name: value for name, value in (weight_bytes(plan) | largest).items() if value}
    parts["context and allocator"] = CONTEXT_BYTES + FRAGMENTATION * sum(largest.values())
    return parts


def _moments(plan: Inference) -> list[dict[str, float]]:
    """Return what comes and goes at each of the moments that can be the peak.

    They are the tower's pass; the prompt's pass through the last layer's MLP and through its attention, when
    the other layers' keys and values are there; and the answer's last token, when the longest of all keys
    are laid out anew.
    """
    decoder, tower, width = plan.decoder, plan.tower, plan.width
    images, tokens = plan.batch * plan.pictures, plan.batch * plan.prompt
    squares = images * tower.squares
    largest = max(linear.parameters for linear in decoder.linears)
    unpacked = width * largest if plan.bits != 16 else 0
    state = width * tokens * decoder.width
    mask = plan.batch * plan.prompt**2  # bool, and what sdpa makes of it
    pixels = squares * 3 * tower.image_size**2 * width
    features = images * tower.tokens * decoder.width * (4 + width)
    features += squares * 2 * tower.positions * tower.width * width
    embeddings = state + features + 2 * width * tokens * decoder.head_dim  # and the rotary embedding's
    # Adapters run in fp32: their input, and of the output the update, the same scaled, and their sum.
    beside = 8 if plan.rank else 0
    wide = 4 * tokens * decoder.width if plan.rank else 0
    mlp = tokens * decoder.inner * max(3 * width, 2 * width + beside)
    heads = tokens * decoder.query * width
    attention = 2 * heads + 2 * tokens * decoder.keys * width + mask
    if decoder.capped:  # three pieces of its map: what is capped, what is masked, the weights
        attention += working_bytes(plan.batch, decoder.heads, plan.prompt, plan.prompt) * 3 / WORKING
    else:
        attention += width * mask + (2 * heads if decoder.heads != decoder.kv_heads else 0)
    around = pixels + embeddings + 3 * state  # a layer's input, the residual stream, what was normalised
    prompt, whole = cache_bytes(plan, plan.prompt), cache_bytes(plan, plan.prompt + plan.new)
    logits = plan.batch * decoder.vocabulary * (width + 8)
    inside = squares * tower.positions * width * ((tower.depth + 5) * tower.width + 2 * tower.inner)
    name, cache = "activations", "keys and values"
    return [
        {name: pixels + inside},
        {name: around + mask + mlp + wide + unpacked, cache: prompt},
        {name: around + attention + wide + unpacked, cache: prompt},
        {name: pixels + logits + unpacked, cache: whole + whole / decoder.depth},
    ]


def needed(plan: Inference) -> float:
    return sum(peak(plan).values())


def batch_that_fits(plan: Inference, budget: float) -> Inference:
    """Return the plan with as many prompts as fit `budget` bytes, halving from its own, at least 1."""
    batch = plan.batch
    while batch > 1 and needed(replace(plan, batch=batch)) > budget:
        batch //= 2
    return replace(plan, batch=batch)


def batch_for(config: Any, weights: torch.nn.Module, prompt: int, new: int, default: int) -> tuple[int, str]:
    """Choose how many prompts a loaded model answers at once, from what is free beside it.

    `config` is the LLaVA's; `prompt` and `new` are tokens of the longest prompt, pictures among them, and of
    the longest answer; `default` is for a machine without a GPU, and a decoder that is not planned for.
    Returns the number, and a line that says why, empty where there was nothing to choose.
    """
    from basic_lite.data.tiles import Tiling
    from basic_lite.memory.available import available_bytes
    from basic_lite.models.projector import Projector

    device = next(weights.parameters()).device
    if device.type != "cuda":
        return default, ""
    try:
        decoder, tower = DecoderSize.of(config.text_config), TowerSize.of(config.vision_config)
    except ValueError:
        return default, ""
    if hasattr(config, "image_grid_pinpoints"):
        grids = Tiling.of_config(config).grids
        tower = replace(tower, tiles=max(rows * columns for rows, columns in grids), grids=grids)
    pool = next((module.pool for module in weights.modules() if isinstance(module, Projector)), 1)
    tower = replace(tower, patch_size=tower.patch_size // pool, pool=pool)  # LLaVA's has the joined ones
    kinds = {type(module).__name__ for module in weights.modules()}
    bits = 4 if "Linear4bit" in kinds else 8 if "Linear8bitLt" in kinds else 16
    rank = max((p.shape[0] for name, p in weights.named_parameters() if ".lora_A." in name), default=0)
    text = max(prompt - tower.tokens - 1, 1)
    plan = Inference(decoder, tower, bits, rank, batch=LARGEST_BATCH, text=text, new=new)
    held, free = sum(weight_bytes(plan).values()) + CONTEXT_BYTES, available_bytes(device)
    plan = batch_that_fits(plan, free + held)
    taken = needed(plan) - held
    return plan.batch, (
        f"{plan.batch} prompts at once: beside the weights they take {taken / 1e9:.1f} of the "
        f"{free / 1e9:.1f} GB that are free ({bits} bits, up to {prompt:,} + {new:,} tokens)"
    )


def bits_for(run: Path, use: Use, device: str) -> tuple[int, str]:
    """Choose the bits in which a run is loaded: its own, or 4 where these do not fit a GPU.

    A decoder that was trained as a whole stays as it is. Other bits are another model: an evaluation keeps
    them beside its answers. Returns the bits, and a line for the user, empty where there was nothing to
    choose. Raises ValueError if the folder is no run.
    """
    import torch

    from basic_lite.files import ADAPTER, DECODER, read_manifest
    from basic_lite.memory.available import available_bytes
    from basic_lite.models.checkpoint import adapter_config, sources_of
    from basic_lite.models.llava import read_config
    from basic_lite.models.tower import vision_config

    sources = sources_of(read_manifest(run))
    if device != "cuda":
        return sources.bits, ""
    decoder = DecoderSize.of(read_config(sources.llm, "language model"), sources.llm)
    config = vision_config(read_config(sources.tower, "vision tower"))
    tower = TowerSize.of_sources(sources, config)
    rank = adapter_config(run)["r"] if (run / ADAPTER).is_file() else 0
    width = 4 if sources.dtype == torch.float32 else 2
    settings: dict[str, Any] = {"rank": rank, "width": width} | SETTINGS[use] | {"batch": 1}
    plan = Inference(decoder, tower, sources.bits, **settings)
    free = available_bytes(device)
    smaller = replace(plan, bits=4)
    chosen = smaller if needed(plan) > free and not (run / DECODER).is_file() else plan
    there = f"{needed(chosen) / 1e9:.1f} of {free / 1e9:.1f} GB"
    why = f", as {sources.bits} bits need {needed(plan) / 1e9:.1f} GB" if chosen.bits != plan.bits else ""
    line = f"{chosen.bits} bits{why}: {there} for {plan.prompt:,} + {plan.new:,} tokens"
    return chosen.bits, line if needed(chosen) <= free else f"{line}, which may not fit"


def host_bytes(plan: Inference) -> float:
    """Return what an export takes of the machine's memory: a shard, the tower, one matrix with its adapter.

    The matrix is the product of its adapter in fp32, to which the base's is added, and is then narrowed.
    """
    largest = max(linear.parameters for linear in plan.decoder.linears)
    return SHARD_BYTES + plan.width * plan.tower.parameters + (4 + plan.width) * largest


@dataclass(frozen=True)
class InferenceRow:
    """One use of a model on a card; `--json` gives exactly these."""

    use: str  # what is done with it
    model: str  # name or folder of the decoder
    tower: str  # name or folder of the tower
    gpu_gib: float  # memory of the card
    bits: int  # of the decoder's layers
    batch: int | None  # prompts at once; `None` if not even one fits
    prompt_tokens: int  # of one prompt, pictures among them
    new_tokens: int  # of one answer
    cache_mb_per_prompt: float  # keys and values of prompt and answer, in 1e6 bytes
    peak_gb: float  # predicted, in 1e9 bytes, everything that the card must hold
    parts: dict[str, float]  # the same by part, in 1e9 bytes
    # Memory of the machine beside it, in 1e9 bytes; `None` where next to nothing is needed
    host_gb: float | None


def row_of(
    use: Use, model: tuple[str, DecoderSize], tower: tuple[str, TowerSize], gib: float, rank: int = zoo.RANK
) -> InferenceRow:
    """Plan one use of a model with adapters, in 4 bits where it may be, on a card of `gib` GiB."""
    plan = Inference(model[1], tower[1], **({"rank": rank} | SETTINGS[use]))
    plan = batch_that_fits(plan, budget_bytes(gib))
    parts = {name: round(value / 1e9, 3) for name, value in peak(plan).items()}
    return InferenceRow(
        use=use,
        model=model[0],
        tower=tower[0],
        gpu_gib=gib,
        bits=plan.bits,
        batch=plan.batch if needed(plan) <= budget_bytes(gib) else None,
        prompt_tokens=plan.prompt,
        new_tokens=plan.new,
        cache_mb_per_prompt=round(cache_bytes(replace(plan, batch=1), plan.prompt + plan.new) / 1e6, 1),
        peak_gb=round(sum(parts.values()), 3),
        parts=parts,
        host_gb=round(host_bytes(plan) / 1e9, 2) if use == "export" else None,
    )
