"""What stage 2 starts from: a run of stage 1, a finished stage 2, or a LLaVA(-NeXT) of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from basic_lite import files
from basic_lite.data import conversation
from basic_lite.data.rows import WHITE
from basic_lite.models import checkpoint, devices, llava, quantised, repository, unpacked, zoo
from basic_lite.models.llava import Assembled, Sources
from basic_lite.models.trainable import Adapters
from basic_lite.training.settings import Adapters as AdapterOptions
from basic_lite.training.settings import Method, Tower

Kind = Literal["stage 1", "adapters", "decoder", "model"]


@dataclass(frozen=True)
class Start:
    source: Path  # as it was named: a run folder, or the folder or hub id of a LLaVA
    kind: Kind  # a run of stage 1, of stage 2 with adapters or the whole decoder, or a LLaVA of transformers
    manifest: dict[str, Any]  # the run's; of a LLaVA what is known of it in the same form
    projector: Path  # file of its projector
    # What the class of a LLaVA multiplies visual embeddings by, as Granite all that its decoder receives
    scale: float = 1.0

    @property
    def run(self) -> Path | None:
        return None if self.kind == "model" else self.source

    @property
    def origin(self) -> dict[str, str]:
        """What the manifest of the run to come says of it."""
        name = {"stage 1": "stage1", "model": "model"}.get(self.kind, "stage2")
        return {name: str(self.source), **self.hashes}

    @property
    def hashes(self) -> dict[str, str]:
        """What tells it from another one: the hashes of its projector and its adapters."""
        paths = {"projector": self.projector}
        if self.kind == "adapters":
            paths["adapters"] = self.source / files.ADAPTER_WEIGHTS
        return {name: files.file_hash(path) for name, path in paths.items()}

    def check(self) -> None:
        """Compare the run's weight files with its manifest; raises ValueError if one has changed."""
        if self.run is not None:
            files.check_files(self.run, "weights")

    def method(self, asked: Method) -> Method:
        """Return the method with the start's target where none is asked for."""
        return replace(asked, target=asked.target or self.manifest["method"].get("target"))

    def adapters(self, asked: AdapterOptions, resolved: Adapters | None, tower: Tower) -> Adapters | None:
        """Return the adapters to train: those that go on, or new ones; `None` where the decoder is."""
        self._check_tower(tower)
        if self.kind != "adapters" or resolved is None:
            return resolved
        config = checkpoint.adapter_config(self.source)
        then = replace(resolved, rank=config["r"], alpha=config["lora_alpha"])
        for name, wanted, had in (("rank", asked.rank, then.rank), ("alpha", asked.alpha, then.alpha)):
            if wanted is not None and wanted != had:
                raise ValueError(
                    f"the adapters in {self.source} have --{name} {had} and go on as they are; for --{name} "
                    f"{wanted} put them into the decoder first (basic-lite export {self.source} FOLDER) and "
                    "--start from that FOLDER"
                )
        return then

    def load(self, assembled: Assembled) -> None:
        """Put what the start has learnt into a model that nothing is attached to yet."""
        checkpoint.check_identity(assembled, self.manifest)
        if self.kind != "adapters":
            checkpoint.load_projector(assembled.model, self.projector, self.scale)
        if self.kind == "decoder":
            checkpoint.load_decoder(assembled.model, self.source / files.DECODER)

    def _check_tower(self, tower: Tower) -> None:
        """Raise ValueError if a tower that was trained would be trained in another way, or not at all."""
        if self.kind not in ("adapters", "decoder"):
            return
        had = {name: self.manifest["training"].get(name) for name in ("train_tower", "tower_lora")}
        if had["train_tower"] or had["tower_lora"]:
            how = "--train-tower" if had["train_tower"] else f"--tower-lora {had['tower_lora']}"
            if (tower.train_tower, tower.tower_lora) != (bool(had["train_tower"]), had["tower_lora"]):
                raise ValueError(
                    f"{self.source} trained its tower, too, which goes on with {how} alone; for anything "
                    f"else basic-lite export {self.source} FOLDER, and --start from that FOLDER"
                )
        elif tower.tower_lora is not None and self.kind == "adapters":
            raise ValueError(
                f"the adapters in {self.source} have none in the tower and go on as they are; for "
                f"--tower-lora basic-lite export {self.source} FOLDER, and --start from that FOLDER"
            )

    def load_trained(self, assembled: Assembled) -> None:
        """Let what a stage 2 trained in a form of its own go on: adapters with their projector, the tower."""
        if self.run is not None and (self.run / files.TOWER).is_file():
            checkpoint.load_tower(assembled.model, self.run / files.TOWER)
        if self.kind == "adapters":
            checkpoint.load_adapter(assembled.model, self.source)


def find(source: Path, lora: bool, device: str, console: Console) -> Start:
    """Find what `--start` names: a run folder, or the folder or hub id of a LLaVA of transformers.

    Raises ValueError if it is nothing that a stage 2, with adapters or without, can start from.
    """
    if (source / files.MANIFEST).is_file() or _is_run_by_name(source):
        return _run(source, lora)
    return _model(str(source), device, console.print)


def _is_run_by_name(source: Path) -> bool:
    """Whether what holds no run would be one: a hub id has two names, and is no place on this disk."""
    if source.is_dir():
        return not (source / "config.json").is_file()
    return len(source.parts) != 2 or source.parts[0] == "runs" or source.parent.is_dir()


def _run(source: Path, lora: bool) -> Start:
    manifest = files.read_manifest(source)
    if not manifest["finished"]:
        raise ValueError(f"{source} is not finished: finish it with --resume, or name another with --start")
    if manifest["stage"] == 1:
        return Start(source, "stage 1", manifest, source / files.PROJECTOR)
    adapted = (source / files.ADAPTER).is_file()
    if adapted != lora:
        had, asked = (
            ("adapters", "the whole decoder") if adapted else ("the whole decoder", "adapters (--lora)")
        )
        raise ValueError(
            f"{source} trained {had}, which does not go on with {asked}: basic-lite export {source} FOLDER, "
            "and --start from that FOLDER"
        )
    if adapted:
        return Start(source, "adapters", manifest, source / files.ADAPTER_WEIGHTS)
    return Start(source, "decoder", manifest, source / files.PROJECTOR)


def _model(source: str, device: str, say: quantised.Say) -> Start:
    config = unpacked.check_llava(source)
    grids = unpacked.grids_of(source, config)
    parts = unpacked.unpack(source, say)
    configs = {
        "llm": llava.read_config(parts.llm, "language model"),
        "tower": llava.read_config(parts.tower, "vision tower"),
    }
    tokenizer = repository.read_tokenizer(parts.llm)
    family = zoo.family_of(configs["llm"].model_type, source)
    marked = config.get("image_token_index", config.get("image_token_id"))
    sources = Sources(
        parts.llm,
        parts.tower,
        image_token=None if marked is None else tokenizer.convert_ids_to_tokens(marked),
        pad_token=tokenizer.pad_token,
        dtype=devices.choose_dtype("auto", device),
        tower_layer=config.get("vision_feature_layer", -2),
        exif=config.get(unpacked.EXIF_KEY, "ignore"),
        background=config.get(unpacked.BACKGROUND_KEY, WHITE),
        tiles=1 if grids is None else max(rows * columns for rows, columns in grids),
        grids=grids,
    )
    manifest = {
        "stage": 1,
        "sources": checkpoint.named(sources),
        "template": conversation.choose_template(tokenizer, family.template, say),
        "method": {"basic": False},
        "llm": checkpoint.identity(parts.llm, configs["llm"]),
        "tower": checkpoint.identity(parts.tower, configs["tower"]),
        "grids": grids and [list(grid) for grid in grids],
    }
    return Start(Path(source), "model", manifest, parts.projector, _scale(Path(source), configs["llm"]))


def _scale(folder: Path, decoder: Any) -> float:
    """Return what a model's own class multiplies visual embeddings by; an old Gemma's by its export alone."""
    if (folder / "export.json").is_file():
        export = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        if export.get("old_gemma"):
            return decoder.hidden_size**0.5
    return getattr(decoder, "embedding_multiplier", 1.0)
