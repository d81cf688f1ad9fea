"""Where a run computes: device, dtype, and which layers compute twice instead of keeping activations."""

from __future__ import annotations

import os
from typing import Any

import torch


def choose_device() -> str:
    """Return `"cuda"` where there is one, else `"cpu"`; raises ValueError if processes outnumber GPUs."""
    if not torch.cuda.is_available():
        return "cpu"
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= count:
        raise ValueError(
            f"this machine has {count} GPU{'s' * (count > 1)}, one for each process: --num_processes {count}"
        )
    torch.cuda.set_device(number)  # "cuda" is then this process's own
    return "cuda"


def loading_place(device: str, bits: int, shards: int) -> str:
    """Return where a decoder is put together: on the host, if it is to be cut and need not be quantised.

    A 4-bit decoder is small, and is quantised where it will run; what is not quantised may be larger than
    the card.
    """
    return "cpu" if shards > 1 and bits == 16 else device


def choose_dtype(precision: str, device: str) -> torch.dtype:
    """Return the dtype of activations: bf16 on a GPU, fp32 on a CPU, unless `precision` says otherwise.

    Raises ValueError if the precision is unknown or the GPU has no bf16 (fp16 would overflow on LLaMA's
    massive activations).
    """
    known = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    if precision not in known:
        raise ValueError(f"--precision must be auto, bf16 or fp32, got {precision!r}")
    # Emulated, as torch does before Ampere, it is slow, and Triton's kernels do not compile.
    bf16 = device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not bf16:
        raise ValueError("this GPU has no bf16; add --precision fp32")
    return known[precision]


def layers_to_recompute(every: bool | None, count: int | None, device: str) -> int | None:
    """Resolve `--recompute` and `--recompute-layers` to a number of layers; `None` for all.

    `count` goes before `every`, where `None` means all on a GPU.
    """
    if count is not None:
        return count
    return None if (device == "cuda" if every is None else every) else 0


def recompute_all(module: Any) -> None:
    """Run every layer of a transformers model again in backward."""
    enable = getattr(module, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
    (enable or module.gradient_checkpointing_enable)({"use_reentrant": False})


def recompute_layers(decoder: Any, count: int | None = None) -> None:
    """Run the first `count` decoder layers, or all, again in backward instead of keeping what they computed.

    The first, not the last: backward reaches them when the activations of all later layers are gone, so what
    one layer keeps while it is run again is not added to theirs. BASIC watches the forward pass alone, where
    each layer computes the same either way. Raises ValueError if `count` is not between 0 and the number of
    layers.
    """
    depth = len(decoder.layers)
    if count is not None and not 0 <= count <= depth:
        raise ValueError(f"this decoder has {depth} layers; between 0 and {depth} can recompute, not {count}")
    if count == 0:
        return
    recompute_all(decoder)
    # transformers also asks the text's embeddings for a gradient, which only reentrant recomputation needs:
    # 92 MB of embeddings and gradient that nothing reads, in stage 2 of a 7B at micro-batch 4.
    decoder.disable_input_require_grads()
    for layer in decoder.layers[depth if count is None else count :]:
        layer.gradient_checkpointing = False
    decoder.config.use_cache = False
