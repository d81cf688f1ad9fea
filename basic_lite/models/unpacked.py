"""The parts of a finished vision-language model, taken out into folders that load alone.

Transformers keeps tower, projector and decoder in one set of files. A start that trains on needs them apart:
the decoder's layers alone are quantised, and everything that names, plans, hashes or exports a part reads a
folder of its own. They are written once, tensor by tensor, beside the pre-quantised copies.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, LlavaNextConfig, PretrainedConfig

from basic_lite.data.world import parts
from basic_lite.files import write_json
from basic_lite.models import converted, quantised, repository, zoo

EXIF_KEY = "basic_lite_exif"
"""In `config.json` of an export: its run's `--exif`, where that was not LLaVA's."""

BACKGROUND_KEY = "basic_lite_background"
"""The same of its run's `--background`, where that was not white."""

LANGUAGE, VISION, PROJECTOR = "language_model", "vision_tower", "multi_modal_projector"

_DECODERS: dict[str, str | None] = {
    "llava": None,
    "llava_next": None,
    "gemma3": None,
    "mistral3": None,
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl": "qwen3",
}
"""Model types whose decoder can be taken out. A Qwen's becomes its text-only type: of a text all three of its
rotary positions are the same number."""

LLAVAS = ("llava", "llava_next")
"""Model types that training goes on from, with their tower and projector."""

_PLACES = (
    (re.compile(r"(?:model\.)?language_model\.lm_head\.(.*)"), LANGUAGE, "lm_head."),
    (re.compile(r"lm_head\.(.*)"), LANGUAGE, "lm_head."),
    (re.compile(r"(?:model\.)?language_model\.(?:model\.)?(.*)"), LANGUAGE, "model."),
    (re.compile(r"model\.((?:layers|embed_tokens|norm)\..*)"), LANGUAGE, "model."),  # an older Qwen's
    (re.compile(r"(?:model\.)?vision_tower\.(.*)"), VISION, ""),
    (re.compile(r"(?:model\.)?multi_modal_projector\.(.*)"), PROJECTOR, "multi_modal_projector."),
    (re.compile(r"(?:model\.)?(image_newline)"), PROJECTOR, "multi_modal_projector."),
)
"""Where a tensor goes, by its name in old and new files, and what stands in front of it there."""

_TOKENIZER = "tokenizer* *.jinja vocab.json merges.txt added_tokens.json special_tokens_map.json".split()
_SETTINGS = ("preprocessor_config.json", "processor_config.json")
_TILING = "LlavaNextImageProcessor"  # or another by this name, such as the one with Pillow


@dataclass(frozen=True)
class Unpacked:
    folder: Path  # with a folder or file for each part
    config: dict[str, Any]  # the whole model's
    source: str  # folder or hub id that it was taken out of

    @property
    def llm(self) -> str:
        """Folder of the decoder with its tokenizer."""
        return str(self.folder / LANGUAGE)

    @property
    def tower(self) -> str:
        """Folder of the vision tower with its image settings."""
        return str(self.folder / VISION)

    @property
    def projector(self) -> Path:
        """File of the projector's four tensors, of a LLaVA-NeXT with the newline."""
        return self.folder / "projector.safetensors"


def language_model(source: str, say: quantised.Say = quantised.silent) -> str:
    """Return what to load a language model from: the source itself, or the decoder taken out of it.

    Raises ValueError if it is a vision-language model whose weights cannot be taken apart.
    """
    try:
        kind = _read(source, "config.json").get("model_type")
    except ValueError:  # whoever loads it says more
        return source
    return unpack(source, say).llm if kind in _DECODERS else source


def decoder_config(source: str) -> PretrainedConfig | None:
    """Return the configuration of the decoder that `language_model` would take out; `None` if it takes none.

    No weight is read.
    """
    try:
        config = _read(source, "config.json")
    except ValueError:  # as above
        return None
    if config.get("model_type") not in _DECODERS:
        return None
    text = _text_settings(config)
    if config.get("tie_word_embeddings"):  # the part's own word counts for nothing; files have the last one
        text["tie_word_embeddings"] = True
    return AutoConfig.for_model(text.pop("model_type"), **text)


def check_llava(source: str) -> dict[str, Any]:
    """Return the configuration of a LLaVA or LLaVA-NeXT of transformers that can be trained on.

    Raises ValueError if it is none, or one whose parts are put together in another way.
    """
    config = _read(source, "config.json")
    if config.get("model_type") not in LLAVAS:
        raise ValueError(
            f"{source} is {config.get('model_type') or 'no model'}, neither a finished run nor a LLaVA of "
            f"transformers (model_type {' or '.join(LLAVAS)}): name one of these with --start"
        )
    # LLaVA's own repositories say model_type llava too, with other names of weights.
    layout = (config.get("architectures") or ["LlavaForConditionalGeneration"])[0]
    layer, towers = config.get("vision_feature_layer", -2), zoo.TOWER_FAMILIES
    kind = config.get("vision_config", {}).get("model_type", "clip_vision_model")
    strategy = config.get("vision_feature_select_strategy", "default")
    act, biased = config.get("projector_hidden_act", "gelu"), config.get("multimodal_projector_bias", True)
    for wrong, what in (
        (not layout.endswith("ForConditionalGeneration"), f"the layout of its authors ({layout})"),
        (not isinstance(layer, int), f"several feature layers ({layer})"),
        (kind in towers and towers[kind].select_strategy != strategy, f"{strategy!r} features of a {kind}"),
        (act != "gelu" or not biased, f"a projector with {act}{'' if biased else ' and no biases'}"),
    ):
        if wrong:
            raise ValueError(f"{source} has {what}, which is not trained here")
    return config


def grids_of(source: str, config: dict[str, Any]) -> tuple[tuple[int, int], ...] | None:
    """Return rows and columns of a LLaVA-NeXT's grids of tiles, in its order; `None` for a LLaVA.

    Raises ValueError if model and processor do not agree on them, or cut pictures in another way than tiles
    are cut here.
    """
    if config["model_type"] != "llava_next":
        return None
    settings = image_settings(source)
    given = {name: config[name] for name in ("vision_config", "image_grid_pinpoints") if name in config}
    known: Any = LlavaNextConfig(**given)
    points: list[list[int]] = known.image_grid_pinpoints  # the class fills in its own
    side: int = known.vision_config.image_size
    usual: Any = LlavaNextConfig()
    cut = settings.get("image_grid_pinpoints") or usual.image_grid_pinpoints
    sides = {name: settings.get(name, 224) for name in ("size", "crop_size")}  # the class's own
    wrong = next((f"{name} {value}" for name, value in sides.items() if _sides(value) != {side}), None)
    if not settings.get("image_processor_type", _TILING).startswith(_TILING):
        wrong = f"image_processor_type {settings['image_processor_type']}"
    elif list(map(list, cut)) != list(map(list, points)):
        wrong = f"image_grid_pinpoints {cut}"
    if wrong is not None:
        raise ValueError(
            f"the image processor of {source} has {wrong}, which does not go with its model of {side}-pixel "
            f"tiles in image_grid_pinpoints {points}: correct its {_SETTINGS[0]}"
        )
    if any(length % side for point in points for length in point) or max(map(max, points)) <= side:
        raise ValueError(
            f"{source} has image_grid_pinpoints {points}: only grids of whole tiles (multiples of {side}), "
            "some of 2 or more, are cut here; take another model"
        )
    return tuple((height // side, width // side) for height, width in points)


def _sides(size: Any) -> set[Any]:
    return set(size.values()) if isinstance(size, dict) else {size}


def unpack(source: str, say: quantised.Say = quantised.silent) -> Unpacked:
    """Take a vision-language model apart, or find where it was taken apart before.

    `say` takes a line if weights are written. Raises ValueError if they cannot be read, or there is no room.
    """
    folder = converted.safetensors_folder(source, say=say)
    if not Path(parts.located(source)).is_dir():
        _fetch_small_files(source, folder.name)
    config, files = _read(source, "config.json"), repository.weight_files(folder)
    needed = sum(path.stat().st_size for path in files)
    what = f"the parts of {source!r} are written apart once"
    base = quantised.base_of(source, [*files, folder / "config.json"], folder.name)
    made_of: dict[str, object] = {"format": quantised.FORMAT, "base": base, "unpacked": 1}
    copy = quantised.copy_in(quantised.root_for(what, needed) / "unpacked", source, made_of)
    copy.make(what, needed, partial(_write, folder, config, files), say)
    return Unpacked(copy.path, config, source)


def _read(source: str, name: str) -> dict[str, Any]:
    """Return a JSON file as it is written: what a later version fills in would change its hash."""
    try:
        content = repository.read_json(source, name)
    except Exception as error:  # the hub's client raises many types
        raise ValueError(
            f"no model can be loaded from {source!r} ({repository.why(source, error)})"
        ) from error
    return content if isinstance(content, dict) else {}


def _fetch_small_files(source: str, revision: str) -> None:
    """Fetch them beside the weights, which lie in the folder of that commit."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(source, revision=revision, allow_patterns=[*_TOKENIZER, *_SETTINGS])
    except Exception as error:  # as above
        raise ValueError(f"{source!r} cannot be read: {repository.why(source, error)}") from error


def _write(folder: Path, config: dict[str, Any], files: list[Path], draft: Path) -> None:
    writers = {part: _Shards(draft / part) for part in (LANGUAGE, VISION)}
    for part in writers:
        (draft / part).mkdir(parents=True)
    projector: dict[str, torch.Tensor] = {}
    for part, name, tensor in _placed(files):
        if part == PROJECTOR:
            projector[name] = tensor.float()
        else:
            writers[part].add(name, tensor)
    for writer in writers.values():
        writer.close()
    save_file(projector, draft / "projector.safetensors", metadata={"format": "pt"})
    _write_decoder(folder, config, draft / LANGUAGE, has_head="lm_head.weight" in writers[LANGUAGE].places)
    vision = {"model_type": "clip_vision_model", **config.get("vision_config", {})}
    write_json(draft / VISION / "config.json", vision)
    if config["model_type"] in LLAVAS:
        write_json(draft / VISION / "preprocessor_config.json", image_settings(str(folder)))


def _placed(files: list[Path]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield part, name in it, and tensor, one at a time; what belongs to no part is left out."""
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                for pattern, part, prefix in _PLACES:
                    if match := pattern.fullmatch(name):
                        yield part, prefix + match[1], file.get_tensor(name)
                        break


class _Shards:
    """Safetensors of bounded size with their index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: dict[str, torch.Tensor] = {}
        self.places: dict[str, str] = {}
        self.total = self.written = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if sum(held.nbytes for held in self.held.values()) + tensor.nbytes > converted.SHARD_BYTES:
            self._flush()
        self.held[name] = tensor
        self.total += tensor.nbytes

    def _flush(self) -> None:
        if self.held:
            self.written += 1
            name = f"model-{self.written:05d}.safetensors"
            save_file(self.held, self.folder / name, metadata={"format": "pt"})
            self.places |= dict.fromkeys(self.held, name)
            self.held = {}

    def close(self) -> None:
        self._flush()
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(self.places.items()))}
        write_json(self.folder / f"{repository.SAFETENSORS}{repository.INDEX}", index)


def _write_decoder(folder: Path, config: dict[str, Any], place: Path, has_head: bool) -> None:
    """Write a decoder's configuration, as its files state it, and its tokenizer."""
    text = _text_settings(config)
    if not has_head:
        text["tie_word_embeddings"] = True
    if "torch_dtype" not in text and "dtype" not in text:
        text["torch_dtype"] = config.get("torch_dtype") or config.get("dtype") or "float32"
    write_json(place / "config.json", text)
    for pattern in (*_TOKENIZER, "generation_config.json"):
        for path in folder.glob(pattern):
            shutil.copyfile(path, place / path.name)


def _text_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return a decoder's configuration from that of the whole model."""
    kind = _DECODERS[config["model_type"]]
    text = dict(config.get("text_config") or {k: v for k, v in config.items() if not k.startswith("vision")})
    text["model_type"] = kind or text.get("model_type", "llama")
    text.pop("architectures", None)
    for key in ("rope_scaling", "rope_parameters"):
        rope = text.get(key)
        if kind is not None and isinstance(rope, dict):  # the three positions of pictures
            rope = {k: v for k, v in rope.items() if not k.startswith("mrope")}
            rope = {k: "default" if v == "mrope" else v for k, v in rope.items()}
            text[key] = rope if len(rope) > 1 else None
    if "tie_word_embeddings" in config:
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    return text


def image_settings(source: str) -> dict[str, Any]:
    """Return what a folder's or hub id's image processor does; raises ValueError if no file says it."""
    for name in _SETTINGS:
        try:
            settings = _read(source, name)
        except ValueError:
            continue
        if name == _SETTINGS[0] or "image_processor" in settings:
            return settings.get("image_processor", settings)
    raise ValueError(f"{source} has no image settings ({' or '.join(_SETTINGS)})")
