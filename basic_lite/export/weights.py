"""A run's tensors one at a time: read lazily from the base, adapters added in fp32, written in shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from basic_lite.files import ADAPTER, ADAPTER_WEIGHTS, write_json
from basic_lite.models import checkpoint, converted, repository
from basic_lite.models.trainable import TOWER_LAYERS

Base = Literal["bf16", "dequantised"]
INDEX: str = "model.safetensors.index.json"
_INSIDE: str = "base_model.model.model."


@dataclass(frozen=True)
class Entry:
    """A tensor that is read when it is written."""

    name: str  # in the exported folder
    shape: tuple[int, ...]  # known before the tensor is read
    read: Callable[[], torch.Tensor]  # returns it, in any dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def weight_files(source: str, revision: str | None) -> list[Path]:
    """Return the safetensors of a folder or hub id, in order; raises ValueError if there are none."""
    return repository.weight_files(converted.safetensors_folder(source, revision))


def entries_of(path: Path) -> Iterator[Entry]:
    """List a safetensors file without reading a tensor."""
    file = safe_open(path, "pt")
    for name in file.keys():
        shape = file.get_slice(name).get_shape()
        yield Entry(name, tuple(shape), lambda name=name: file.get_tensor(name))


def base_decoder(source: str, revision: str | None, tied: bool) -> Iterator[Entry]:
    """List the base decoder under `model.` and `lm_head.`, whatever its files call it."""
    for path in weight_files(source, revision):
        for entry in entries_of(path):
            if entry.name.endswith("rotary_emb.inv_freq") or (tied and entry.name == "lm_head.weight"):
                continue  # buffers of old files; a head that is the embeddings again
            bare = entry.name.startswith(("model.", "lm_head."))
            yield entry if bare else Entry(f"model.{entry.name}", entry.shape, entry.read)


def dequantised(entry: Entry, bits: int, dtype: torch.dtype, device: torch.device | str) -> Entry:
    """Round a decoder's linear layer as bitsandbytes held it while training; others pass unchanged."""
    from bitsandbytes import functional

    linear = ".layers." in entry.name and entry.name.endswith("_proj.weight")
    if not linear or bits == 16:
        return entry

    def read() -> torch.Tensor:
        weight = entry.read().to(device, dtype)
        if bits == 4:
            packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            return functional.dequantize_4bit(packed, state).cpu()
        rows, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return (rows.float() * scales[:, None] / 127).to(dtype).cpu()

    return Entry(entry.name, entry.shape, read)


class Adapters:
    """The decoder's adapters of a run's PEFT folder, added to one base tensor at a time."""

    def __init__(self, folder: Path) -> None:
        config = checkpoint.adapter_config(folder)
        strange = [
            key
            for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
            if config.get(key) and set(config[key]) != {TOWER_LAYERS}
        ]
        if strange or config.get("bias", "none") != "none":
            raise ValueError(
                f"{folder / ADAPTER} sets {', '.join(strange) or 'bias'}, which is not merged here"
            )
        self.scale = config["lora_alpha"] / config["r"]
        self.tensors = {entry.name: entry for entry in entries_of(folder / ADAPTER_WEIGHTS)}
        self.unused = {name for name in self.tensors if ".lora_" in name and ".vision_tower." not in name}

    def merge(self, entry: Entry) -> Entry:
        """Return `W + scale * B A`, computed in fp32; a tensor without adapter as it is."""
        stem = _INSIDE + "language_model." + entry.name.removeprefix("model.").removesuffix(".weight")
        a, b = (f"{stem}.lora_{which}.weight" for which in "AB")
        if a not in self.tensors:
            return entry
        self.unused -= {a, b}

        def read() -> torch.Tensor:
            # Added to the product, never in place to the weight: that is the file's own mapped memory, and a
            # second reading would find the adapter in it.
            delta = self.tensors[b].read().float() @ self.tensors[a].read().float()
            return delta.mul_(self.scale).add_(entry.read())

        return Entry(entry.name, entry.shape, read)

    def projector(self) -> Iterator[Entry]:
        """List the projector that was trained beside the adapters."""
        for name, entry in self.tensors.items():
            short = name.removeprefix(_INSIDE)
            if short.startswith("multi_modal_projector."):
                yield Entry(short, entry.shape, entry.read)

    def check_all_used(self) -> None:
        """Fail if an adapter found no base tensor, rather than drop what was trained."""
        if self.unused:
            raise ValueError(
                f"{len(self.unused)} adapter tensors fit no tensor of the base, first: {min(self.unused)}"
            )


def write_shards(entries: Iterable[Entry], folder: Path, dtype: torch.dtype, shard_bytes: int) -> int:
    """Write tensors in one dtype, with an index, and return their bytes.

    No file is larger than `shard_bytes`, or than one tensor.
    """
    shards: list[list[Entry]] = [[]]
    filled, total, width = 0, 0, dtype.itemsize
    for entry in entries:
        size = entry.numel * width
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled, total = filled + size, total + size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        count = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"model{count}.safetensors"
        tensors = {}
        for entry in shard:
            assert entry.name not in places, f"{entry.name} would be written twice"
            tensors[entry.name] = entry.read().to(dtype).contiguous()
            places[entry.name] = name
        save_file(tensors, folder / name, metadata={"format": "pt"})
        del tensors
    if len(shards) > 1:
        write_json(
            folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        )
    return total
