"""`export --check`: an exported folder opened again, long after the run is gone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from basic_lite import files
from basic_lite.export import folder as hf
from basic_lite.export import parity
from basic_lite.export.readers import check_installed, refusals, uncapped
from basic_lite.export.weights import entries_of
from basic_lite.models import checkpoint

_WEIGHTS = ("*.safetensors", "*.gguf")
_REMEDY = "export the run again, or get the file again"
_NEEDED: dict[str, tuple[str, ...]] = {
    "hf": (
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ),
    "peft": (files.ADAPTER_WEIGHTS, files.PROJECTOR),
    "gguf": (),
}
"""Files of a layout beyond those by which it is known; without them readers fail somewhere inside."""


def kind_of(folder: Path) -> str:
    """Return `"hf"`, `"peft"` or `"gguf"`, by what lies in a folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    if (folder / files.MANIFEST).is_file():
        raise ValueError(f"{folder} is a run, not an export of it: basic-lite export {folder} OUT")
    if list(folder.glob("mmproj*.gguf")):
        return "gguf"
    if (folder / files.ADAPTER).is_file():
        return "peft"
    if (folder / "config.json").is_file() and (folder / "preprocessor_config.json").is_file():
        return "hf"
    raise ValueError(
        f"{folder} is no exported folder: it has neither config.json, {files.ADAPTER} nor mmproj*.gguf"
    )


def inspect(folder: Path, device: torch.device | str) -> list[str]:
    """Open an exported folder of any layout and report what it holds, line by line.

    Raises ValueError if it does not load, a file has changed, or its parts do not fit.
    """
    kind = kind_of(folder)
    for name in _NEEDED[kind]:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: {_REMEDY}")
    read = {path.name: _read(path) for path in sorted(folder.glob("*.json"))}
    export = read.get("export.json", {})
    size = sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
    lines = [f"{folder}: --to {kind}, {size / 1e9:.3g} GB of weights"]
    if "weights" in export:
        _check_hashes(folder, export["weights"])
        lines.append(f"files: {len(export['weights'])} of {len(export['weights'])} as they were exported")
    try:
        if kind == "gguf":
            return lines + _gguf(folder)
        return lines + (_adapters(folder) if kind == "peft" else _llava(folder, export, device))
    except Exception as error:  # of a damaged file the readers of the three layouts raise whatever they meet
        raise ValueError(f"{folder} does not load: {files.one_line(error)}") from error


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is cut off or damaged: {_REMEDY}")
    return content


def _check_hashes(folder: Path, expected: dict[str, str]) -> None:
    for name, sha in expected.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: {_REMEDY}")
        if files.file_hash(path) != sha:
            raise ValueError(f"{path} has changed since the export: {_REMEDY}")


def _llava(folder: Path, export: dict, device: torch.device | str) -> list[str]:
    config, names = hf.contents(folder)
    texts = parity.texts_of(folder, device)
    lines = [f"transformers: loads, {len(names)} tensors in {config.get('dtype')}"]
    if known := export.get("answers"):
        equal = sum(now == then for now, then in zip(texts, known, strict=True))
        lines.append(f"answers: {equal} of {len(known)} as at the export")
    return lines + refusals(config, names) + uncapped(config)


def _adapters(folder: Path) -> list[str]:
    config = checkpoint.adapter_config(folder)
    tensors = list(entries_of(folder / files.ADAPTER_WEIGHTS))
    broken = [entry.name for entry in tensors if not entry.read().isfinite().all()]
    if broken:
        raise ValueError(f"{folder / files.ADAPTER_WEIGHTS} holds numbers that are not finite: {broken[0]}")
    projector = len(list(entries_of(folder / files.PROJECTOR)))
    base = config.get("base_model_name_or_path")
    return [
        f"adapters: {len(tensors)} tensors of rank {config['r']} over {base}; projector: {projector} tensors"
    ]


def _gguf(folder: Path) -> list[str]:
    """Check that the two halves fit each other, as llama.cpp will."""
    check_installed()
    import gguf

    texts = [path for path in folder.glob("*.gguf") if not path.name.startswith("mmproj")]
    if len(texts) != 1:
        raise ValueError(f"it holds {len(texts)} text models beside its projector, not one")
    lines, widths = [], {}
    for path in (texts[0], next(folder.glob("mmproj*.gguf"))):
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path.name} is cut off or damaged: {_REMEDY}") from error
        keys = {name: field.contents() for name, field in reader.fields.items()}
        shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # innermost first
        architecture = keys["general.architecture"]
        if (architecture == "clip") != (path != texts[0]):
            raise ValueError(f"{path.name} is of the architecture {architecture}: the files were confused")
        if architecture == "clip":
            widths[path.name] = shapes["mm.2.bias"][0]
        else:
            widths[path.name], rows = shapes["token_embd.weight"]
            tokens = len(keys["tokenizer.ggml.tokens"])
            if rows != tokens:
                raise ValueError(f"{path.name} has {rows} rows of embeddings and {tokens} tokens")
        lines.append(f"{path.name}: {architecture}, {len(shapes)} tensors, {len(keys)} keys")
    if len(set(widths.values())) != 1:
        sizes = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(f"its halves do not fit: width of the embeddings {sizes}")
    return lines
