"""Measure what the merge of an export holds in memory, with layers of a 7B's width and random weights.

python tests/export/merge_memory.py --layers 6
"""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

import torch
import typer
from safetensors.torch import save_file

from basic_lite.export.weights import Adapters, base_decoder, write_shards

WIDTH, INNER, RANK = 4096, 11008, 128
SHAPES = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"}
SHAPES |= {f"mlp.{part}_proj": (INNER, WIDTH) for part in ("gate", "up")} | {"mlp.down_proj": (WIDTH, INNER)}


def held_bytes() -> int:
    """Return the process's own memory; mapped files do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def write_parts(base: Path, run: Path, layers: int) -> None:
    """Write one bf16 shard per layer, and fp32 adapters on all of them."""
    places, adapters = {}, {}
    for layer in range(layers):
        name, shard = f"model-{layer}.safetensors", {}
        for part, (rows, columns) in SHAPES.items():
            key = f"layers.{layer}.{part}"
            shard[f"model.{key}.weight"] = torch.randn(rows, columns).bfloat16()
            stem = f"base_model.model.model.language_model.{key}"
            adapters[f"{stem}.lora_A.weight"] = torch.randn(RANK, columns)
            adapters[f"{stem}.lora_B.weight"] = torch.randn(rows, RANK)
        save_file(shard, base / name)
        places |= dict.fromkeys(shard, name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    save_file(adapters, run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 2 * RANK}))


def merge(base: Path, run: Path, out: Path, shard_bytes: int) -> tuple[int, int]:
    """Merge; return the bytes written and the most that was held beyond the start."""
    begun, peak, done = held_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, held_bytes())

    threading.Thread(target=watch, daemon=True).start()
    adapters = Adapters(run)
    merged = (adapters.merge(entry) for entry in base_decoder(str(base), None, tied=False))
    total = write_shards(merged, out, torch.bfloat16, shard_bytes)
    adapters.check_all_used()
    done.set()
    return total, peak - begun


def main(layers: int = 6, shard_gib: float = 2.0) -> None:
    """Write parts, merge them, and print what was held."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("base", "run", "out")]
        for folder in folders:
            folder.mkdir()
        write_parts(*folders[:2], layers)
        torch.empty(0)
        total, held = merge(*folders, int(shard_gib * 2**30))
        largest = max(path.stat().st_size for path in folders[2].glob("*.safetensors"))
    print(
        f"{total / 1e9:.2f} GB merged, largest shard {largest / 1e9:.2f} GB, held at most {held / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    typer.run(main)
