"""Weights, configurations and added tokens as repositories hold them, tiny."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PreTrainedModel

JUNK = b"not to be opened"
VOCABULARY = 420

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def added_token(text: str, marked: bool = False, **more: object) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return ({"__type": "AddedToken"} if marked else {}) | {"content": text} | flags | more


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def write_weights(folder: Path, state: dict[str, torch.Tensor], form: str, pieces: int) -> None:
    """Write weights whole or in shards of about equal size, pickled or as safetensors."""
    stem, suffix = form.split(".")
    save = torch.save if suffix == "bin" else lambda shard, path: save_file(shard, path, {"format": "pt"})
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    if pieces == 1:
        save(state, folder / form)
        return
    total = sum(tensor.nbytes for tensor in state.values())
    split = split_torch_state_dict_into_shards(
        state, filename_pattern=f"{stem}{{suffix}}.{suffix}", max_shard_size=total // pieces + 4096
    )
    assert len(split.filename_to_tensors) > 1
    for name, keys in split.filename_to_tensors.items():
        save({key: state[key] for key in keys}, folder / name)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    write_json(folder / f"{form}.index.json", index)


def write_config(folder: Path, model: PreTrainedModel, dtype: str, **more: object) -> None:
    config = model.config.to_dict()
    for key in ("dtype", "_name_or_path"):
        config.pop(key, None)
    write_json(folder / "config.json", config | {"torch_dtype": dtype} | more)


def state_of(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    if model.config.get_text_config().tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state
