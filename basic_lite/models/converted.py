"""Weights that are published as pickles: converted to safetensors once, beside the pre-quantised copies.

A pickle is read by torch's restricted unpickler alone, one file at a time and memory-mapped; what holds
anything but plain tensors is refused. Everything else in the package reads safetensors.
"""

from __future__ import annotations

import shutil
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel

from basic_lite.files import complete, locked, one_line, write_json
from basic_lite.models import quantised, repository

SHARD_BYTES: int = 1_000_000_000
"""Most bytes of a converted file, or one tensor: what is held in memory at once."""


def safetensors_folder(
    source: str, revision: str | None = None, say: quantised.Say = quantised.silent
) -> Path:
    """Return a folder with a model's configuration and its weights as safetensors.

    `source` is a folder, embedded part or hub id, `revision` a commit there; `say` takes a line if weights
    are converted. Raises ValueError if there are no weights, or they cannot be converted.
    """
    folder = repository.fetch(source, revision)
    files = repository.weight_files(folder)
    if not files:
        raise ValueError(
            f"no weights can be loaded from {source!r}: it has neither {repository.SAFETENSORS} nor "
            f"{repository.PICKLED}, whole or as shards with an index"
        )
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ValueError(f"no weights can be loaded from {source!r}: {missing[0]} is missing")
    if files[0].suffix == ".safetensors":
        return folder
    return _converted(source, folder, files, say)


def load(
    kind: Any,
    source: str,
    revision: str | None = None,
    say: quantised.Say = quantised.silent,
    **settings: Any,
) -> PreTrainedModel:
    """Load a model by a class of transformers, from safetensors that are converted first if need be.

    `settings` are those of `from_pretrained`. Raises ValueError if the weights cannot be read, or tensors are
    missing, which transformers would fill with random values.
    """
    folder = safetensors_folder(source, revision, say)
    try:
        model, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **settings)
    except (OSError, SafetensorError) as error:
        reason = repository.why(source, error)
        raise ValueError(f"no weights can be loaded from {source!r}: {reason}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"the weights of {source!r} lack {len(missing)} tensors, first: {missing[0]}")
    return model


def _converted(source: str, folder: Path, files: list[Path], say: quantised.Say) -> Path:
    needed = sum(path.stat().st_size for path in files)
    pickled = f"{source!r} is published as {files[0].name}, which is converted to safetensors once"
    root = quantised.root_for(pickled, needed)
    base = quantised.base_of(source, files, folder.name)  # a snapshot's folder is named by its commit
    made_of: dict[str, object] = {
        "format": quantised.FORMAT,
        "base": base,
        "converted": repository.SAFETENSORS,
    }
    copy = quantised.copy_in(root / "converted", source, made_of)
    copy.make(pickled, needed, partial(_convert, files), say)
    try:
        with locked(copy.path, wait=True):
            for name in repository.CONFIGS:  # they may change while the weights stay
                _follow(folder / name, copy.path / name)
    except OSError as error:
        raise ValueError(f"{pickled}, and that failed ({one_line(error)})") from error
    return copy.path


def _follow(original: Path, copy: Path) -> None:
    if not original.is_file():
        copy.unlink(missing_ok=True)
    elif not copy.is_file() or copy.read_bytes() != original.read_bytes():
        with complete(copy) as draft:
            shutil.copyfile(original, draft)


def _convert(files: list[Path], folder: Path) -> None:
    """Write pickled weights as shards of safetensors with an index, each tensor in its own dtype."""
    folder.mkdir()
    places: dict[str, str] = {}
    total = 0
    for number, path in enumerate(files, 1):
        state = _tensors_of(path)
        pattern = f"model-{number:05d}{{suffix}}.safetensors"
        split = split_torch_state_dict_into_shards(
            state, filename_pattern=pattern, max_shard_size=SHARD_BYTES
        )
        for name, keys in split.filename_to_tensors.items():
            # Cloned: tied tensors share their bytes in a pickle, which safetensors refuses.
            shard = {key: state[key].clone(memory_format=torch.contiguous_format) for key in keys}
            save_file(shard, folder / name, metadata={"format": "pt"})
            total += sum(tensor.nbytes for tensor in shard.values())
            places |= dict.fromkeys(keys, name)
        del state
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_json(folder / f"{repository.SAFETENSORS}{repository.INDEX}", index)


def _tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Open a pickle of tensors, memory-mapped where its format allows.

    Raises ValueError if it is damaged or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile pickle can end in any type
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "Unsupported" in line), lines[0])
        raise ValueError(
            f"{path} is damaged or holds more than tensors, and is not opened ({reason[:160]}); take this "
            "model as safetensors"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not tensors by name")
    for name, tensor in state.items():
        plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not isinstance(name, str) or not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{path} holds more than tensors: {str(name)[:80]!r} is none that can be read")
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # strides of 0 claim bytes that are not there
            raise ValueError(f"{path} is damaged: {name[:80]!r} is larger than its bytes")
    return state
