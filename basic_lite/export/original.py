"""`--to llava`: the names and files of the original LLaVA, for its own loader and tools made for it.

The original keeps no tower in its checkpoints: it loads `mm_vision_tower` by name. It reads merged
weights from safetensors as well as from its own pickles, but picks its loader by the folder's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from basic_lite import files
from basic_lite.data.world import parts
from basic_lite.export import configs, parity
from basic_lite.export.decoder_parity import judge_decoder, watch_decoder
from basic_lite.export.folder import Plan, decoder_entries, projector_entries
from basic_lite.export.weights import Entry, write_shards
from basic_lite.models import checkpoint
from basic_lite.models.llava import Assembled, read_config

_CLASSES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
}
_LAYERS = {"linear_1": "0", "linear_2": "2"}


def export_llava(wanted: Plan, manifest: dict, tell: Callable[[str], None] = lambda line: None) -> dict:
    """Write the original's layout; its decoder, read back, must give the run's logits.

    Raises:
        ValueError: If the original has no class for these parts, or the gap is too large.
    """
    sources = checkpoint.sources_of(manifest)
    family = read_config(sources.llm, "language model").model_type
    if family not in _CLASSES:
        raise ValueError(
            f"the original LLaVA has no {family} class (only {', '.join(_CLASSES)}); use --to hf"
        )
    tower = PretrainedConfig.get_config_dict(parts.located(sources.tower))[0].get("model_type", "")
    if "clip" not in tower or "siglip" in tower:
        raise ValueError(f"the original LLaVA loads CLIP towers alone, not {tower!r}; use --to hf")
    if "llava" not in wanted.out.name.lower():
        raise ValueError(
            f"the original loader looks for 'llava' in the folder's name; {wanted.out.name} has none"
        )
    tell("asking the run")
    bits = 16 if wanted.base == "bf16" else sources.bits
    assembled, _ = checkpoint.load_run(wanted.run, wanted.device, bits=bits)
    seen = watch_decoder(assembled, parity.ask_run(assembled))
    config = _config(assembled, manifest, wanted.dtype)
    with files.complete(wanted.out) as draft:
        draft.mkdir()
        tell("writing weights")
        files.write_json(draft / "config.json", config)
        files.write_json(draft / "generation_config.json", configs.generation_config(assembled))
        assembled.tokenizer.save_pretrained(draft)
        tied, assembled.model = assembled.model.config.tie_word_embeddings, None
        write_shards(_entries(wanted, manifest, tied), draft, wanted.dtype, wanted.shard_bytes)
        tell("reading the decoder back")
        result = _judge(draft, family, wanted, seen, sources.dtype)
        notes = []
        if Path(parts.located(sources.tower)).is_dir() and "llava" not in config["mm_vision_tower"]:
            notes.append(f"The tower stays where it is: {config['mm_vision_tower']}")
        content = {
            "to": "llava",
            "run": str(wanted.run),
            "manifest": files.file_hash(wanted.run / files.MANIFEST),
            "base": wanted.base or "as trained",
            "parity": result,
            "notes": notes,
            "versions": files.versions(),
        }
        files.write_json(draft / "export.json", content)
    return content


def _entries(wanted: Plan, manifest: dict, tied: bool) -> Iterator[Entry]:
    for entry in chain(decoder_entries(wanted, manifest, tied), projector_entries(wanted, manifest)):
        name = entry.name.removeprefix("language_model.")
        if name.startswith("multi_modal_projector."):
            _, layer, kind = name.split(".")
            name = f"model.mm_projector.{_LAYERS[layer]}.{kind}"
        yield Entry(name, entry.numel, entry.read)


def _config(assembled: Assembled, manifest: dict, dtype: torch.dtype) -> dict:
    whole = configs.model_config(assembled, dtype)
    text, sources = whole["text_config"], checkpoint.sources_of(manifest)
    model_type, name = _CLASSES[text["model_type"]]
    tower = Path(parts.located(sources.tower))
    return text | {
        "architectures": [name],
        "model_type": model_type,
        "mm_vision_tower": str(tower.absolute()) if tower.is_dir() else sources.tower,
        "mm_hidden_size": whole["vision_config"]["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": sources.tower_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "unfreeze_mm_vision_tower": False,
    }


def _judge(folder: Path, family: str, wanted: Plan, seen: list, run_dtype: torch.dtype) -> dict:
    """Read the decoder as a plain language model: its names are the LLM's own."""
    kind = type(AutoConfig.for_model(family))
    config = kind.from_dict(json.loads((folder / "config.json").read_text()) | {"model_type": family})
    causal = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=wanted.dtype)
    return judge_decoder(causal.to(wanted.device), seen, wanted.dtype, run_dtype)
