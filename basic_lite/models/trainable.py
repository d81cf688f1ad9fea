"""What each stage trains, as a contract: attached, printed, asserted, checked on the first gradients.

PEFT freezes everything that is no adapter, and by suffix it also adapts the vision tower; both have cost
people whole runs (a projector silently frozen, a tower silently trained).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.table import Column, Table
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from basic_lite.models import devices, zoo
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of, piece
from basic_lite.models.tower import layers_to_the_features, parameters_of_features


class DroppedLinear(nn.Linear):
    """A linear layer with dropout on its input, which it draws anew in backward.

    Autograd would keep a mask and a copy of the input for every adapted layer: for query, key and value three
    copies of one tensor. Here the input alone is kept, which those three share, and backward draws from the
    same state of the random generator: the same numbers from fewer bytes.
    """

    dropout: float  # share of the input that is set to 0 while training

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not torch.is_grad_enabled():
            return self._dropped(input)
        # Backward asks for nothing after the dropout but the product's input: the product is not repeated.
        return checkpoint(self._dropped, input, use_reentrant=False)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x, self.dropout, self.training))


def draw_again_in_backward(model: nn.Module) -> None:
    """Let every adapter of a PEFT model hold its dropout in its first matrix, as `DroppedLinear`.

    Names, weights and PEFT's configuration stay as they are, and so does every number that is drawn.
    """
    layer: Any
    for layer in model.modules():
        for name, dropout in getattr(layer, "lora_dropout", {}).items():
            if isinstance(dropout, nn.Dropout) and type(layer.lora_A[name]) is nn.Linear:
                layer.lora_A[name].__class__ = DroppedLinear
                layer.lora_A[name].dropout = dropout.p
                layer.lora_dropout[name] = nn.Identity()


def keep_dropout(model: nn.Module) -> None:
    """Undo `draw_again_in_backward`: dropout stands in front of the adapters again, and is kept."""
    layer: Any
    for layer in model.modules():
        for name in getattr(layer, "lora_dropout", {}):
            if isinstance(layer.lora_A[name], DroppedLinear):
                layer.lora_A[name].__class__ = nn.Linear
                layer.lora_dropout[name] = nn.Dropout(layer.lora_A[name].dropout)


_PROJECTOR = (
    r"(^|\.)multi_modal_projector\.(modules_to_save\.default\.)?(linear_[12]\.(weight|bias)|image_newline)$"
)
_ADAPTER = r"(^|\.)language_model\.layers\.\d+\..*\.lora_[AB]\.default\.weight$"
_TOWER_ADAPTER = r"(^|\.)vision_tower\..*\.lora_[AB]\.default\.weight$"
_DECODER = r"(^|\.)(language_model\.(embed_tokens|layers|norm)\.|lm_head\.)"

TOWER_LAYERS: str = r"vision_tower\..*"
"""By which PEFT's settings tell the tower's adapters, of a rank of their own, from the decoder's."""


@dataclass(frozen=True)
class Adapters:
    """LoRA as LLaVA-1.5 uses it."""

    rank: int = zoo.RANK  # of the update
    alpha: int = 2 * zoo.RANK  # its scale times the rank
    dropout: float = zoo.DROPOUT  # on the adapters' input
    tower_rank: int = 0  # of the vision tower's own, scaled by 2; 0 for none


def train_projector(assembled: Assembled) -> None:
    """Stage 1: the projector's four tensors, nothing else."""
    assembled.model.requires_grad_(False)
    parts_of(assembled.model).llava.multi_modal_projector.requires_grad_(True)
    check_contract(assembled.model, "projector")


def train_adapters(assembled: Assembled, adapters: Adapters, seed: int = 0) -> None:
    """Stage 2 with LoRA: adapters on the decoder's linear layers, and the projector in full.

    `prepare_model_for_kbit_training` is not called: it widens every bf16 tensor to fp32 (1.05 GB for
    Gemma-2B). Raises ValueError if the rank is below 1.
    """
    if adapters.rank < 1:
        raise ValueError(f"the adapters' rank must be at least 1, got {adapters.rank}")
    names = "|".join(assembled.family.lora_targets)
    # The whole name, not a suffix: "q_proj" alone also hits CLIP's layers.
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules=rf".*language_model\.layers\.\d+\.[\w.]+\.({names})",
        modules_to_save=["multi_modal_projector"],
    )
    if adapters.tower_rank:
        config.target_modules = f"{config.target_modules}|{_linear_layers_of_tower(assembled)}"
        config.rank_pattern = {TOWER_LAYERS: adapters.tower_rank}
        config.alpha_pattern = {TOWER_LAYERS: 2 * adapters.tower_rank}
    model: Any = assembled.model
    bits = assembled.sources.bits
    # PEFT chooses its 4-bit layer by this mark, which transformers sets on the decoder alone.
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = bits == 4, bits == 8
    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws on the host
            torch.manual_seed(seed)
            wrapped = get_peft_model(model, config)
    finally:
        del model.is_loaded_in_4bit, model.is_loaded_in_8bit
    _drop_the_original(parts_of(wrapped).llava.multi_modal_projector)
    draw_again_in_backward(wrapped)
    assembled.model = wrapped
    if adapters.tower_rank:
        _run_for_backward(assembled)
    check_contract(wrapped, "adapters")


def _linear_layers_of_tower(assembled: Assembled) -> str:
    """Return a pattern of the names of the linear layers that a tower's features pass."""
    llava = parts_of(assembled.model).llava
    layers = layers_to_the_features(llava.vision_tower, llava.config.vision_feature_layer)
    linear = {id(module) for module in layers.modules() if isinstance(module, nn.Linear)}
    if not linear:
        raise ValueError(
            f"--tower-layer {llava.config.vision_feature_layer} leaves no layer for --tower-lora"
        )
    names = [name for name, module in llava.vision_tower.named_modules() if id(module) in linear]
    return rf".*vision_tower\.({'|'.join(re.escape(name) for name in names)})"


def train_tower(assembled: Assembled) -> None:
    """Stage 2: what the tower's features depend on, in fp32, beside what else is trained already.

    Not trained are the layers after the feature layer and what follows them: nothing reads what they make.
    """
    llava = parts_of(assembled.model).llava
    llava.vision_tower.float()  # as `train_everything`
    for parameter in parameters_of_features(llava.vision_tower, llava.config.vision_feature_layer).values():
        parameter.requires_grad_(True)
    _run_for_backward(assembled)


def _run_for_backward(assembled: Assembled) -> None:
    """Let a tower that is trained multiply in the decoder's precision, and run its layers twice.

    It is called outside the trainer's autocast. A layer that runs twice keeps its input alone: that costs 1
    to 3 % of a 7B's step, where 23 layers of CLIP-L would keep 3 GB for four pictures.
    """
    tower: Any = parts_of(assembled.model).llava.vision_tower
    devices.recompute_all(tower)
    dtype, forward = assembled.sources.dtype, tower.forward
    if dtype == torch.float32:
        return

    def narrowed(pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Cached, the narrow copies would stay until the pass ends, as in the trainer.
        with torch.autocast(pixel_values.device.type, dtype, cache_enabled=False):
            return forward(pixel_values, *args, **kwargs)

    tower.forward = narrowed


def _drop_the_original(projector: Any) -> None:
    """Let PEFT's frozen original of the projector be the trained copy: alone it is 84 MB of a 7B's memory.

    The features enter through the copy, and a merge puts it in the original's place.
    """
    for name, trained in projector.modules_to_save["default"].named_parameters():
        owner, _, leaf = name.rpartition(".")
        alike = nn.Parameter(trained.detach(), requires_grad=False)
        setattr(projector.original_module.get_submodule(owner), leaf, alike)


def train_everything(assembled: Assembled) -> None:
    """Stage 2 without LoRA, the paper's own: the whole decoder with its head, and the projector, in fp32.

    Raises ValueError if the decoder is quantised.
    """
    if assembled.sources.bits != 16:
        raise ValueError(
            f"a {assembled.sources.bits}-bit decoder cannot be tuned as a whole; add --lora or take --bits 16"
        )
    parts = parts_of(assembled.model)
    assembled.model.requires_grad_(False)
    for part in (parts.decoder, parts.head, parts.llava.multi_modal_projector):
        part.float().requires_grad_(True)  # Adam on bf16 weights loses every update below 1/256 of the weight
    check_contract(assembled.model, "decoder")


def train_decoder(
    assembled: Assembled, adapters: Adapters | None, seed: int = 0, *, tower: bool = False
) -> None:
    """Stage 2: adapters or, where there are none, the whole decoder; the projector, and the tower if asked.

    Raises ValueError if a decoder that is trained whole is quantised.
    """
    if adapters is None:
        train_everything(assembled)
    else:
        train_adapters(assembled, adapters, seed)
    if tower:
        train_tower(assembled)


def freeze_projector(assembled: Assembled) -> None:
    """Stage 2 with the projector as stage 1 left it; what else is trained stays so.

    `Forward` then finds no gradient at the visual embeddings: BASIC's terms are measured and train nothing.
    """
    for name, parameter in assembled.model.named_parameters():
        if re.search(_PROJECTOR, name):
            parameter.requires_grad_(False)


_CONTRACTS = {
    "projector": (_PROJECTOR,),
    "adapters": (_PROJECTOR, _ADAPTER, _TOWER_ADAPTER),
    "decoder": (_PROJECTOR, _DECODER),
}


def check_contract(model: nn.Module, kind: str) -> None:
    """Assert that exactly what `kind` names is trained, in fp32: projector, adapters or decoder."""
    patterns = _CONTRACTS[kind]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert any(re.search(pattern, name) for pattern in patterns), (
            f"{name} must not be trained in this stage"
        )
        assert parameter.dtype == torch.float32, f"{name} is trained in {parameter.dtype}, not fp32"
    projector = [name for name in trained if re.search(_PROJECTOR, name)]
    parts = parts_of(model)
    wanted = 4 if parts.tiling is None else 5  # with the newline
    assert len(projector) == wanted, f"the projector's {wanted} tensors must be trained, found {projector}"
    if kind == "adapters":
        layers = {_ADAPTER: parts.decoder.layers, _TOWER_ADAPTER: parts.llava.vision_tower}
        for pattern, modules in layers.items():
            linear = [m for m in modules.modules() if hasattr(m, "lora_A")]
            adapters = [name for name in trained if re.search(pattern, name)]
            assert linear or pattern != _ADAPTER, "no linear layer of the decoder got an adapter"
            assert len(adapters) == 2 * len(linear), (
                f"{len(linear)} adapted layers but {len(adapters)} adapter tensors"
            )
    if kind == "decoder":
        whole = [*parts.decoder.parameters(), *parts.head.parameters()]
        assert all(p.requires_grad for p in whole), "a part of the decoder is frozen"


def trainable_table(model: nn.Module) -> Table:
    """Show what is trained: names, dtypes and counts, the layers' numbers folded."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            short = re.sub(r"^(base_model\.model\.)?(model\.)?", "", name)
            short = short.replace(".modules_to_save.default", "").replace(".default.", ".")
            short = re.sub(r"\.(layers?)\.\d+\.", r".\1.*.", short)
            dtype = str(parameter.dtype).removeprefix("torch.")
            groups.setdefault((short, dtype), []).append(parameter.numel())
    numbers = (Column(head, justify="right") for head in ("tensors", "parameters"))
    table = Table(Column("trained", overflow="fold"), "dtype", *numbers)
    for (name, dtype), sizes in groups.items():
        table.add_row(name, dtype, str(len(sizes)), f"{sum(sizes):,}")
    every = [size for sizes in groups.values() for size in sizes]
    table.add_section()
    table.add_row("all", "", str(len(every)), f"{sum(every):,}")
    return table


class Beginning:
    """Some values of every trained tensor as they were, to see in the end whether any of them has moved.

    The first ones of a tensor, not all: adapters of a 7B are 1.3 GB. Adam moves every value that has a
    gradient, and of an adapter it is B that moves first.
    """

    VALUES: int = 1024

    def __init__(self, model: nn.Module) -> None:
        """Copy them, before training begins or a checkpoint is read, and before layers are cut."""
        self.values = {n: self._first(p) for n, p in model.named_parameters() if p.requires_grad}

    def _first(self, parameter: nn.Parameter) -> torch.Tensor:
        return piece(parameter.detach()).reshape(-1)[: self.VALUES].clone()

    def has_moved(self, model: nn.Module) -> bool:
        """Whether a tensor is another one now. Where layers are cut, the first process has the first rows."""
        named = dict(model.named_parameters())
        now = {name: self._first(named[name]) for name in self.values}
        return any(not torch.equal(now[n].to(v.device), v[: len(now[n])]) for n, v in self.values.items())
