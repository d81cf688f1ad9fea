"""What a run writes and reads again: a manifest that says everything, and safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from basic_lite.data.pictures import DEEP_GREY
from basic_lite.data.world.parts import located
from basic_lite.files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    DECODER,
    EMBEDDING_SPACE,
    FORMAT,
    PROJECTOR,
    TOWER,
    check_files,
    complete,
    one_line,
    read_manifest,
    versions,
)
from basic_lite.models import repository
from basic_lite.models.llava import Assembled, Sources, assemble, read_config
from basic_lite.models.parts import parts_of
from basic_lite.models.tower import parameters_of_features, vision_config


def identity(source: str, config: object) -> dict[str, object]:
    """Describe which weights a folder or hub id stands for.

    For the hub by its commit, for a folder by a hash of its configuration with names and sizes of its
    weights.
    """
    folder = Path(located(source))
    known: dict[str, object] = {"revision": getattr(config, "_commit_hash", None)}
    if folder.is_dir():
        digest = hashlib.sha256((folder / "config.json").read_bytes())
        files = (path for path in repository.weight_files(folder) if path.is_file())
        for path in sorted({*folder.glob("*.safetensors"), *files}):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
        known["fingerprint"] = digest.hexdigest()[:16]
    return known


def manifest_of(assembled: Assembled, stage: int, method: dict, data: dict, training: dict) -> dict:
    """Describe a run completely.

    `stage` is 1 or 2; `method` holds k, weighting, importance and weights, or `basic: False`; `data` path,
    hash and rows of the annotation file; `training` the hyperparameters.
    """
    parts = parts_of(assembled.model)
    return {
        "format": FORMAT,
        "stage": stage,
        "sources": named(assembled.sources),
        "llm": identity(assembled.sources.llm, parts.decoder.config),
        "tower": identity(assembled.sources.tower, parts.llava.vision_tower.config),
        "template": assembled.template.name,
        "image_size": assembled.image_size,
        "tokens_per_image": assembled.tokens_per_image,
        **({} if assembled.tiling is None else {"grids": [list(grid) for grid in assembled.tiling.grids]}),
        "pictures": {"deep_grey": DEEP_GREY},
        "image_token_id": assembled.image_token_id,
        "pad_token_id": assembled.pad_token_id,
        "method": {"embedding_space": EMBEDDING_SPACE, **method},
        "data": data,
        "training": training,
        "trainable": {
            name: f"{list(parameter.shape)} {str(parameter.dtype).removeprefix('torch.')}"
            for name, parameter in assembled.model.named_parameters()
            if parameter.requires_grad
        },
        "versions": versions(),
        "steps": 0,
        "finished": False,
    }


def named(sources: Sources) -> dict[str, Any]:
    """Return where the parts come from as a manifest says it; `sources_of` reads it."""
    settings = asdict(sources) | {"dtype": str(sources.dtype).removeprefix("torch.")}
    settings["grids"] = sources.grids and [list(grid) for grid in sources.grids]
    for name in ("tiles", "pool", "grids"):
        if settings[name] in (1, None):
            del settings[name]  # of a run without them nothing is said, as before there were any
    return settings


def sources_of(manifest: dict) -> Sources:
    """Return where a run's parts come from, with its template pinned."""
    settings = manifest["sources"] | {"template": manifest["template"]}
    return Sources(**(settings | {"dtype": getattr(torch, settings["dtype"])}))


def save_projector(model: nn.Module, path: Path) -> None:
    """Write the projector's tensors under their LLaVA names: four, and with tiles the newline."""
    projector = parts_of(model).llava.multi_modal_projector
    projector = getattr(projector, "modules_to_save", {"default": projector})["default"]
    _save(path, {f"multi_modal_projector.{name}": t for name, t in projector.state_dict().items()})


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with complete(path) as draft:
        save_file(state, draft, metadata={"format": "pt"})


def _load(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}


@contextmanager
def _reading(path: Path, fault: str = "cannot be read") -> Iterator[None]:
    """Turn what a missing, damaged or strange file of weights raises into one line of ValueError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} {fault}: {one_line(error, 200)}") from error


def load_projector(model: nn.Module, path: Path, scale: float = 1.0) -> None:
    """Read the projector's tensors, all of them and nothing else; what it puts out is multiplied by `scale`.

    Raises ValueError if the file is missing, damaged or of another shape.
    """
    projector = parts_of(model).llava.multi_modal_projector
    with _reading(path, "is no projector of this model"):
        state = _load(path, "multi_modal_projector.")
        for name in state:
            if name.startswith("linear_2.") or name == "image_newline":
                state[name] = state[name] * scale
        projector.load_state_dict(state, strict=True)


def load_run(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    **changes: object,
) -> tuple[Assembled, dict]:
    """Rebuild the model of a finished (or checkpointed) run of either stage, frozen, with its manifest.

    `dtype` is of activations, `None` for the run's; `changes` are of `Sources`, such as another image size.
    Raises ValueError if the folder is no run, its base or one of its files has changed, or a file does not
    fit.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, "weights")
    sources = sources_of(manifest)
    sources = replace(sources, dtype=dtype or sources.dtype, **changes)
    assembled = assemble(sources, device)
    check_identity(assembled, manifest)
    if (folder / ADAPTER).is_file():
        from peft import PeftModel

        with _reading(folder / ADAPTER_WEIGHTS):
            # By the host: PEFT's own choice is the first GPU, which may be another process's, or full.
            adapted = PeftModel.from_pretrained(
                assembled.model, folder, autocast_adapter_dtype=True, torch_device="cpu"
            )
        check_adapter(adapted, folder)
        adapted.requires_grad_(False)
        assembled.model = adapted
    elif (folder / PROJECTOR).is_file():
        load_projector(assembled.model, folder / PROJECTOR)
        if (folder / DECODER).is_file():
            load_decoder(assembled.model, folder / DECODER)
    else:
        raise ValueError(
            f"{folder} has a manifest but no weights: the run did not finish; go on with --resume"
        )
    if (folder / TOWER).is_file():
        load_tower(assembled.model, folder / TOWER)
    return assembled, manifest


def check_adapter(model: nn.Module, folder: Path) -> None:
    """Raise ValueError if a PEFT folder lacks a tensor or has one without a place: PEFT only warns."""
    from peft import get_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        stored = set(file.keys())
    for names, what in ((wanted - stored, "lacks"), (stored - wanted, "has, without a place in this model,")):
        if names:
            raise ValueError(f"{folder / ADAPTER_WEIGHTS} {what} {len(names)} tensors, first: {min(names)}")


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return PEFT's settings of a run's adapters; raises ValueError if they cannot be read."""
    try:
        return json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / ADAPTER} cannot be read: {one_line(error)}") from error


def load_adapter(model: Any, folder: Path) -> None:
    """Read a run's adapters and the projector beside them into a model with fresh ones, to train on.

    Raises ValueError if a tensor is missing, has no place, or is of another shape.
    """
    from peft import set_peft_model_state_dict

    with _reading(folder / ADAPTER_WEIGHTS):
        check_adapter(model, folder)
        set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))


def save_decoder(model: nn.Module, path: Path) -> None:
    """Write the decoder and, unless it is tied, its head."""
    parts = parts_of(model)
    state = {f"language_model.{name}": tensor for name, tensor in parts.decoder.state_dict().items()}
    if parts.head.weight is not parts.embedding:
        state["lm_head.weight"] = parts.head.weight
    _save(path, state)


@torch.no_grad()
def load_decoder(model: nn.Module, path: Path) -> None:
    """Read what `save_decoder` wrote; raises ValueError if it is missing, damaged or another model's."""
    parts = parts_of(model)
    with _reading(path, "is no decoder of this model"):
        state = _load(path, "language_model.")
        head = state.pop("lm_head.weight", None)
        parts.decoder.load_state_dict(state, strict=True)
        if head is not None:
            parts.head.weight.copy_(head)


def trained_of_tower(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the tower's own parameters that are trained, without its adapters, by their name inside it."""
    named = parts_of(model).llava.vision_tower.named_parameters()
    return {name: p for name, p in named if p.requires_grad and ".lora_" not in name}


def save_tower(model: nn.Module, path: Path) -> None:
    _save(path, {f"vision_tower.{name}": p for name, p in trained_of_tower(model).items()})


@torch.no_grad()
def load_tower(model: nn.Module, path: Path) -> None:
    """Read what `save_tower` wrote: all that the tower's features depend on, and nothing else.

    Raises ValueError if the file is missing, damaged, or of another tower or feature layer.
    """
    llava = parts_of(model).llava
    wanted = parameters_of_features(llava.vision_tower, llava.config.vision_feature_layer)
    with _reading(path, "is no tower of this model"):
        state = _load(path, "vision_tower.")
        if strange := sorted(state.keys() ^ wanted.keys()):
            raise RuntimeError(f"{len(strange)} tensors are missing or have no place, first: {strange[0]}")
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


def check_identity(assembled: Assembled, manifest: dict) -> None:
    """Raise ValueError if the loaded LLM or tower is not the one that a run was trained on."""
    parts = parts_of(assembled.model)
    configs = {"llm": parts.decoder.config, "tower": parts.llava.vision_tower.config}
    _compare(assembled.sources, configs, manifest)
    grids = None if assembled.tiling is None else [list(grid) for grid in assembled.tiling.grids]
    if grids != manifest.get("grids"):
        raise ValueError(
            f"the run was trained with tiles in the grids {manifest.get('grids')}, and this version makes "
            f"{grids} of --tiles {assembled.sources.tiles}; use the version that it was trained with"
        )


def check_parts(sources: Sources, manifest: dict) -> None:
    """Raise ValueError if LLM or tower is not a run's, by their small files, before a weight is read.

    Half of a two-sided configuration has no revision; the loaded part is compared by `check_identity`.
    """
    tower = vision_config(read_config(sources.tower, "vision tower"))
    configs = {"llm": read_config(sources.llm, "language model"), "tower": tower}
    _compare(sources, configs, manifest, without_revision=True)


def _compare(
    sources: Sources, configs: Mapping[str, object], manifest: dict, without_revision: bool = False
) -> None:
    for what, config in configs.items():
        now, then = identity(getattr(sources, what), config), manifest[what]
        if without_revision and None in (now.get("revision"), then.get("revision")):
            now, then = ({k: v for k, v in side.items() if k != "revision"} for side in (now, then))
        if now != then:
            raise ValueError(
                f"the run was trained on another {what} than {getattr(sources, what)} is now "
                f"({manifest[what]} against {identity(getattr(sources, what), config)}); bring back the one "
                "it was trained on"
            )
