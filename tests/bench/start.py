"""How long a training takes from the command to its first step, with and without the decoder's 4-bit copy.

The models have their real sizes and random weights, and are written to disk as a hub would give them; each
start is a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from bench.goals import Row
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig, PretrainedConfig

from basic_lite.bench.data import rows_of, write_photos
from basic_lite.bench.synthetic import CLIP_L_336, DECODERS
from basic_lite.data.world import parts as data_world_parts
from basic_lite.models import zoo

SPARE_BYTES: int = 2_000_000_000
_LINE = re.compile(r"first step ([\d.]+) s after the command \(([^)]*)\)")


def write_random_model(folder: Path, config: PretrainedConfig, kind: type) -> None:
    """Write a model of any size as safetensors of random bf16 numbers, a file per layer, without building it.

    Tensors of the same shape hold the same numbers: nothing that is measured depends on them.

    Args:
        folder: where to.
        config: of the model.
        kind: the auto class that makes it.
    """
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = kind.from_config(config)
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tied = set()
    if getattr(config, "tie_word_embeddings", False):
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
    shards, numbers, index = defaultdict(dict), {}, {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        layer = re.search(r"layers\.(\d+)\.", name)
        shards[f"model-{layer.group(1) if layer else 'rest'}.safetensors"][name] = tensor
    for file, tensors in shards.items():
        filled = {}
        for name, tensor in tensors.items():
            if tensor.shape not in numbers:
                numbers[tensor.shape] = torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02
            filled[name], index[name] = numbers[tensor.shape].clone(), file
        save_file(filled, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def measure_starts(model: str, device: str, layers: int | None, parent: Path | None = None) -> list[dict]:
    """Start stage 1 twice, for one step: the first start writes the 4-bit copy, the second reads it.

    Args:
        model: of `DECODERS`.
        device: `"cuda"` or `"cpu"`; on the latter pictures have 112 pixels and batches one row.
        layers: decoder layers instead of the real number.
        parent: folder for everything, which is removed; `None` for the system's temporary one.

    Returns:
        One row per start: name, seconds, seconds by part, and processor seconds with saving.

    Raises:
        ValueError: If the disk is too small.
        RuntimeError: If a start fails; with its last words.
    """
    config = type(DECODERS[model])(**DECODERS[model].to_dict())
    config.num_hidden_layers = config.num_hidden_layers if layers is None else layers
    with torch.device("meta"):
        weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    needed = 2 * weights + weights * 6 // 10 + SPARE_BYTES
    place = parent or Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"a start of {model} needs {needed / 1e9:.0f} GB in {place}, {free / 1e9:.0f} GB are free; "
            "take --decoder-layers or another --folder"
        )
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        folder = Path(scratch)
        write_random_model(folder / "llm", config, AutoModelForCausalLM)
        write_random_model(folder / "tower", CLIPVisionConfig(**CLIP_L_336), AutoModel)
        part = Path(data_world_parts.located(zoo.LLMS["tiny"].hub_id))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(part / name, folder / "llm")
        side = 336 if device == "cuda" else 112
        numbers = {"do_resize": True, "size": {"shortest_edge": side}, "do_normalize": True}
        numbers |= {
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "crop_size": {"height": side, "width": side},
        }
        (folder / "tower/preprocessor_config.json").write_text(json.dumps(numbers))
        (folder / "images").mkdir()
        rows = rows_of(write_photos(folder / "images"), 320)
        (folder / "rows.json").write_text(json.dumps(rows))
        return [_start(folder, device, side, name) for name in ("copy written", "copy read")]


def _start(folder: Path, device: str, side: int, name: str) -> dict:
    sizes = [] if device == "cuda" else ["--precision", "bf16", "--micro-batch", "1", "--global-batch", "1"]
    command = [
        sys.executable,
        "-m",
        "basic_lite",
        "stage1",
        "--llm",
        folder / "llm",
        "--tower",
        folder / "tower",
    ]
    command += ["--data", folder / "rows.json", "--images", folder / "images", "--image-size", str(side)]
    command += ["--out", folder / "run", "--overwrite", "--max-steps", "1", *sizes]
    environment = os.environ | {"BASIC_LITE_CACHE": str(folder / "cache"), "COLUMNS": "500"}
    before = _seconds_of_children()
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, check=False
    )
    found = _LINE.search(done.stdout)
    if done.returncode or not found:
        raise RuntimeError(
            f"the start with the {name} failed: {' '.join((done.stderr or done.stdout)[-600:].split())}"
        )
    parts = (part.rsplit(" ", 1) for part in found[2].split(", "))
    row = {"name": name, "seconds": float(found[1]), **{part: float(seconds) for part, seconds in parts}}
    return row | {"CPU s to the end": round(_seconds_of_children() - before, 1)}


def _seconds_of_children() -> float:
    """Return the processor seconds of all ended children: what a busy machine does not stretch."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start_rows(device: str, layers: int | None) -> Iterator[Row]:
    """Measure the goal for starts: a 7B's second one."""
    what = "seconds to the first step of vicuna-7b, copy in page cache"
    try:
        first, second = measure_starts("vicuna-7b", device, layers)
    except ValueError as error:  # no room
        yield Row(what, 20, note=str(error))
        return
    note = f"first start {first['seconds']}"
    yield Row(what, 20, measured=second["seconds"], note=note, judged=device == "cuda" and layers is None)
