"""The sizes that memory and time depend on, read from configurations; no weight is ever needed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from basic_lite.data.world import parts
from basic_lite.models import zoo

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from basic_lite.models.llava import Sources

# Configurations are read by their fields alone, so that what is known by name needs no transformers.
DECODERS = {name: SimpleNamespace(**config) for name, config in zoo.DECODER_CONFIGS.items()}
"""Published configurations of the decoders that are known by name."""

TOWERS = {name: SimpleNamespace(**config) for name, config in zoo.TOWER_CONFIGS.items()}
"""Published configurations of the towers that are known by name."""


_WHOLE_NORMS = ("olmo2", "olmo3")
"""Families that normalise query and key over all heads at once."""

_AFTER = ("olmo2", "olmo3", "gemma2", "gemma3_text", "glm4")
"""Families with a norm after attention and one after the MLP."""

_STREAMLINED = ("llama", "mistral", "qwen2", "gemma", "phi3")
"""Families whose layers train in few operations (`models.decoder_layer`)."""

FUSABLE = ("llama", "gemma", "phi3", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "olmo2")
FUSABLE += ("olmo3",)
"""Families for which Liger has modules (see `training.liger`)."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer, without bias."""

    name: str  # of the module
    inputs: int  # width in
    outputs: int  # width out

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class DecoderSize:
    family: str  # key in `zoo.FAMILIES`
    depth: int  # layers
    width: int  # D
    inner: int  # width of the MLP
    heads: int  # query heads
    kv_heads: int  # key heads
    head_dim: int  # width of a head
    vocabulary: int  # V
    tied: bool  # the head is the embedding matrix
    window: int | None = None  # tokens that a layer with a sliding window sees; `None` without such layers
    windowed: int = 0  # layers with a sliding window
    partial: bool = False  # only a part of each head is rotated
    # Tokens of the longest row; `None` where it is not known
    positions: int | None = field(default=None, compare=False)
    # Attention scores have a soft cap, so that sdpa's kernels do not run (`models.softcap`)
    capped: bool = False

    @classmethod
    def of(cls, config: PretrainedConfig | SimpleNamespace, source: str = "the decoder") -> DecoderSize:
        """Read a decoder's configuration; raises ValueError if the family is not supported."""
        family = zoo.family_of(config.model_type, source).model_type
        heads, depth = config.num_attention_heads, config.num_hidden_layers
        window = getattr(config, "sliding_window", None)
        rotary = getattr(config, "rope_parameters", None) or {}
        shares = rotary.get("partial_rotary_factor"), getattr(config, "partial_rotary_factor", None)
        return cls(
            family=family,
            depth=depth,
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            window=window,
            windowed=0 if window is None else _layers_with_a_window(config, family),
            partial=any(share not in (None, 1.0) for share in shares),
            positions=getattr(config, "max_position_embeddings", None),
            capped=zoo.FAMILIES[family].attention_cap is not None,
        )

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim

    @property
    def joined(self) -> bool:
        """Whether query, key and value come from one matrix, and gate and up from another (Phi-3)."""
        return "qkv_proj" in self._names

    @property
    def _names(self) -> tuple[str, ...]:
        return zoo.FAMILIES[self.family].lora_targets

    @property
    def norms(self) -> int:
        """Norms of the residual stream, per layer."""
        return zoo.FAMILIES[self.family].norms

    @property
    def norms_after(self) -> int:
        """How many of them take what attention or the MLP gave, and not the residual stream."""
        return 2 if self.family in _AFTER else 0

    @property
    def head_norms(self) -> bool:
        return zoo.FAMILIES[self.family].head_norms

    @property
    def whole_norms(self) -> bool:
        """Whether query and key are normalised over all heads at once."""
        return self.family in _WHOLE_NORMS

    @property
    def fusable(self) -> bool:
        """Whether Liger has modules for this family."""
        return self.family in FUSABLE

    @property
    def streamlined(self) -> bool:
        """Whether its layers train in few operations (`models.decoder_layer`), all but the last."""
        return self.family in _STREAMLINED and not self.partial

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, in order."""
        width, inner, query, keys = self.width, self.inner, self.query, self.keys
        shapes = {
            "qkv_proj": (width, query + 2 * keys),
            "q_proj": (width, query),
            "k_proj": (width, keys),
            "v_proj": (width, keys),
            "o_proj": (query, width),
            "gate_up_proj": (width, 2 * inner),
            "gate_proj": (width, inner),
            "up_proj": (width, inner),
            "down_proj": (inner, width),
        }
        return tuple(Linear(name, *shapes[name]) for name in self._names)

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of one layer's linear layers: what is quantised."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def scale_bytes(self) -> float:
        """Bytes of nf4's scales in all layers: one per 64 weights, and fp32 per 256 of those."""
        return self.depth * self.linear_parameters * (1 / 64 + 4 / (64 * 256))

    def linear_bytes(self, bits: int, width: int) -> float:
        """Bytes of all layers' linear layers in 4, 8 or 16 bits; `width` are those of a 16-bit element."""
        linear = self.depth * self.linear_parameters
        rows = self.depth * sum(layer.outputs for layer in self.linears)
        return {4: linear / 2 + self.scale_bytes, 8: linear + 4 * rows, 16: linear * width}[bits]

    @cached_property
    def norm_parameters(self) -> int:
        """Weights of all norms, and the biases of Qwen2's query, key and value."""
        heads = self.query + self.keys if self.whole_norms else 2 * self.head_dim
        layer = self.norms * self.width + (heads if self.head_norms else 0)
        layer += self.query + 2 * self.keys if zoo.FAMILIES[self.family].biases else 0
        return self.depth * layer + self.width

    @property
    def table_parameters(self) -> int:
        """Embeddings, and the head where it is a matrix of its own."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.depth * self.linear_parameters + self.norm_parameters + self.table_parameters

    def adapter_parameters(self, rank: int) -> int:
        """Weights of adapters on every linear layer."""
        return self.depth * sum(rank * (linear.inputs + linear.outputs) for linear in self.linears)


def _layers_with_a_window(config: PretrainedConfig | SimpleNamespace, family: str) -> int:
    """Count them by `layer_types`; without these, all but each second (Gemma 2) or sixth (Gemma 3)."""
    kinds, depth = getattr(config, "layer_types", None), config.num_hidden_layers
    if kinds is None:
        every = {"gemma2": 2, "gemma3_text": 6}.get(family)
        return depth - depth // every if every else depth
    return sum(kind == "sliding_attention" for kind in kinds)


@dataclass(frozen=True)
class TowerSize:
    """A vision tower at one image size."""

    family: str  # key in `zoo.TOWER_FAMILIES`
    depth: int  # layers
    width: int  # of its features
    inner: int  # width of the MLP
    image_size: int  # side of the input in pixels
    patch_size: int  # side of a patch in pixels
    head: bool = False  # SigLIP's pooling head, which is loaded although nothing uses it
    registers: int = 0  # tokens between class token and patches
    tiles: int = 1  # most tiles of a picture beside its whole; 1 for the picture alone
    grids: tuple[tuple[int, int], ...] | None = None  # rows and columns; `None` for those of `tiles`
    pool: int = 1  # side of the squares of patches that become one visual embedding each
    # Height and width of the picture that is cut into tiles; `None` for the one that takes most
    picture: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        config: PretrainedConfig | SimpleNamespace,
        image_size: int | None = None,
        source: str = "",
    ) -> TowerSize:
        """Read a vision configuration; `image_size` replaces the tower's own.

        Raises ValueError if the family is not supported or the image holds no patch.
        """
        family = zoo.tower_family_of(config.model_type, source or "the vision tower").model_type
        size = config.image_size if image_size is None else image_size
        if size < config.patch_size:
            raise ValueError(f"an image size of {size} holds no {config.patch_size}-pixel patch")
        ratio = getattr(config, "mlp_ratio", 4)
        inner = getattr(config, "intermediate_size", None) or int(config.hidden_size * ratio)
        head = family == "siglip_vision_model" and getattr(config, "vision_use_head", True)
        depth, width = config.num_hidden_layers, config.hidden_size
        registers = zoo.registers_of(config)
        return cls(family, depth, width, inner, size, config.patch_size, head, registers)

    @classmethod
    def of_sources(cls, sources: Sources, config: PretrainedConfig) -> TowerSize:
        """Read the vision configuration of a model's parts, with its tiles and joined patches."""
        from basic_lite.models.llava import tiling_for

        tiling = tiling_for(sources, config)
        side = sources.image_size if tiling is None else tiling.side
        size = cls.of(config, side, sources.tower)
        return replace(size, tiles=sources.tiles, grids=sources.grids, pool=sources.pool)

    @property
    def across(self) -> int:
        """Patches along a side of the tower's input."""
        return self.image_size // self.patch_size

    @cached_property
    def _image(self) -> tuple[int, int, int]:
        """Tokens, patches and squares per image."""
        patches = (self.across // self.pool) ** 2
        if self.tiles == 1:
            return patches, patches, 1
        from basic_lite.data.tiles import Tiling  # transformers with it, which a plan else does without

        tiling = Tiling.up_to(self.tiles, self.image_size, self.patch_size * self.pool)
        tiling = tiling if self.grids is None else replace(tiling, grids=self.grids)
        block = tiling.largest() if self.picture is None else tiling.block(self.picture)
        return block.tokens, block.patches, block.squares

    @property
    def tokens(self) -> int:
        """Tokens per image, newlines included."""
        return self._image[0]

    @property
    def patches(self) -> int:
        """P: visual embeddings per image, newlines apart."""
        return self._image[1]

    @property
    def features(self) -> int:
        """Numbers that the projector takes for one visual embedding."""
        return self.width * self.pool**2

    @property
    def squares(self) -> int:
        """Squares of pixels per image, each of them a pass through the tower."""
        return self._image[2]

    @property
    def positions(self) -> int:
        """Tokens inside the tower: patches of a square and what stands in front of them."""
        return self.across**2 + zoo.TOWER_FAMILIES[self.family].prefix_tokens + self.registers

    @property
    def parameters(self) -> int:
        """All weights; of DINOv3, AIMv2 and MLCD to within their biases and pooling heads (1 %)."""
        width, inner = self.width, self.inner
        attention, norm = 4 * (width * width + width), 2 * width
        mlp = 2 * width * inner + inner + width
        patches = 3 * self.patch_size**2 * width
        positions = self.positions * width
        layers = self.depth * (attention + mlp + 2 * norm)
        if self.family == "clip_vision_model":
            return patches + width + positions + norm + layers + norm  # class token, first and last norm
        if self.family == "siglip_vision_model":
            head = (width + attention + norm + mlp) if self.head else 0
            return patches + width + positions + layers + norm + head
        if self.family == "aimv2_vision_model":  # gate and up
            return patches + positions + layers + self.depth * width * inner
        if self.family == "mlcd_vision_model":  # rotary
            return patches + width + layers + 2 * norm
        scales = self.depth * 2 * width
        if self.family == "dinov3_vit":
            return patches + (2 + self.registers) * width + layers + scales + norm
        return patches + width + 2 * width + positions + layers + scales + norm  # class and mask token

    @property
    def layer_parameters(self) -> int:
        return self.parameters - replace(self, depth=self.depth - 1).parameters

    def parameters_to(self, depth: int) -> int:
        """Weights up to the states after `depth` layers: without later ones, last norm and pooling head."""
        return replace(self, depth=depth, head=False).parameters - 2 * self.width

    def adapter_parameters(self, rank: int, depth: int) -> int:
        """Weights of adapters on every linear layer of the first `depth` layers."""
        mlp = 3 if self.family == "aimv2_vision_model" else 2
        return depth * rank * (8 * self.width + mlp * (self.width + self.inner))


def projector_parameters(tower: TowerSize, decoder: DecoderSize) -> int:
    """Weights and biases of LLaVA's two-layer projector."""
    return tower.features * decoder.width + decoder.width + decoder.width**2 + decoder.width


def published_decoder(name: str) -> DecoderSize:
    """Return a decoder of the zoo, without its hub; raises ValueError if the name is unknown."""
    if name in zoo.LLMS and name not in DECODERS:  # embedded in the package
        return DecoderSize.of(_config(zoo.LLMS[name].hub_id, "language model"), name)
    if name not in DECODERS:
        raise ValueError(zoo.no_model(name))
    return DecoderSize.of(DECODERS[name])


def decoders_named(model: str | None, llm: str | None) -> list[tuple[str, DecoderSize]]:
    """Return name and sizes of `llm`, a folder or hub id, else of `model`, else of all known by name.

    Raises ValueError if the name is unknown or the configuration cannot be read.
    """
    if llm is not None:
        from basic_lite.models import unpacked
        from basic_lite.models.llava import read_config

        taken_out = unpacked.decoder_config(llm)
        return [(llm, DecoderSize.of(taken_out or read_config(llm, "language model"), llm))]
    return [(name, published_decoder(name)) for name in (DECODERS if model is None else [model])]


def towers_named(
    tower: str | None, image_size: int | None, every: bool, tiles: int = 1, pool: int = 1
) -> list[tuple[str, TowerSize]]:
    """Return name and sizes of one tower (a name, folder or hub id), or where none is given of the default.

    `every` gives the two of the published runs where none is given; `image_size` is a side in pixels, `None`
    for the tower's own. Raises ValueError if the configuration cannot be read, or a tower's patches cannot be
    joined in squares of `pool`.
    """
    names = list(TOWERS)[:2] if tower is None and every else [tower or next(iter(TOWERS))]
    towers = []
    for name in names:
        source = zoo.TOWERS[name].hub_id if name in zoo.TOWERS else name
        config = TOWERS.get(name) or _config(source, "vision tower")
        size = replace(TowerSize.of(config, image_size, name), tiles=tiles, pool=pool)
        zoo.check_pool(pool, name, size.image_size, size.patch_size)
        towers.append((name, size))
    return towers


def _config(source: str, what: str) -> PretrainedConfig | SimpleNamespace:
    """Read a configuration; only one that does not ship with the package takes transformers."""
    if source in parts.EMBEDDED:  # written by transformers with every field
        text = Path(parts.located(source), "config.json").read_text(encoding="utf-8")
        return SimpleNamespace(**json.loads(text))
    from basic_lite.models.llava import read_config
    from basic_lite.models.tower import vision_config

    return vision_config(read_config(source, what))
