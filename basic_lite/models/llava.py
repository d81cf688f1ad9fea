"""Put a vision tower, a projector and a decoder together as one LLaVA of transformers.

A standard `LlavaForConditionalGeneration`; with tiles a `LlavaNextForConditionalGeneration`, of which one
vector is held elsewhere (see `NewlineProjector`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from torch import nn
from transformers import (
    AutoConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from basic_lite.data import conversation, hub, templates
from basic_lite.data.batches import Collator
from basic_lite.data.dataset import SupervisedRows, TextEncoder
from basic_lite.data.pictures import Aspect, ImageTransform
from basic_lite.data.readers import Rows
from basic_lite.data.rows import WHITE, Exif, colour
from basic_lite.data.tiles import Size, TiledTransform, Tiling
from basic_lite.data.tokenise import check_vocabulary
from basic_lite.data.world import parts as data_world_parts
from basic_lite.models import decoder as models_decoder
from basic_lite.models import quantised, repository, zoo
from basic_lite.models.parts import parts_of
from basic_lite.models.projector import NewlineProjector, Projector
from basic_lite.models.tower import check_tower_layer, load_tower, native_size, read_processor, vision_config
from basic_lite.models.zoo import Bits


class _TiledModel(LlavaNextModel):
    @property
    def image_newline(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.multi_modal_projector.image_newline  # pyright: ignore[reportReturnType]


_RESERVED = ("<image>", "<unused0>", "<|placeholder1|>", "<|reserved_special_token_0|>", "<reponame>")
_RESERVED += ("<|image_pad|>", "<|image|>", "[IMG]", "<|extra_id_0|>")
_RESERVED += ("<|reserved_special_token_2|>",)  # SmolLM3 has given the first ones to its thoughts
"""Tokens that exist for uses like this one, in the vocabularies of the supported families."""


def find_image_token(
    tokenizer: PreTrainedTokenizerBase, template: templates.Template, vocabulary: int, wanted: str | None
) -> int:
    """Find a vocabulary row for patches without adding one; raises ValueError if no row is free."""
    ends: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    taken = {*ends, *conversation.stop_ids(template, tokenizer)}
    known = tokenizer.get_vocab()
    for token in (wanted,) if wanted else _RESERVED:
        if token in known and known[token] < vocabulary and known[token] not in taken:
            return known[token]
    if wanted:
        raise ValueError(f"the image token {wanted!r} is not a free token of this tokenizer")
    if len(tokenizer) < vocabulary:
        return len(tokenizer)  # a padded row of the embedding matrix: no token has it
    spoken: Any = tokenizer.unk_token_id
    if spoken is not None and spoken not in taken and "<0x0A>" in known:
        return spoken  # byte fallback spells every unknown character, so no text becomes <unk>
    raise ValueError(
        "this tokenizer has no free row to mark patches (no reserved token, no padded row, no unused <unk>); "
        "name one with --image-token"
    )


def find_pad_token(tokenizer: PreTrainedTokenizerBase, image_token_id: int, wanted: str | None) -> int:
    """Return the id that fills a batch: never the image's."""
    candidates: list[Any] = [tokenizer.get_vocab().get(wanted) if wanted else None, tokenizer.pad_token_id]
    candidates += [tokenizer.eos_token_id, tokenizer.bos_token_id, 0]
    return next(c for c in candidates if c is not None and c != image_token_id)


def check_quantisation(model: nn.Module) -> None:
    """Assert that nothing outside the decoder's layers is quantised: `L_sds` multiplies by the embeddings."""
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            inside = ".language_model." in name and ".layers." in name
            assert inside, f"{name} must not be quantised"
    parts = parts_of(model)
    for what, weight in (("embeddings", parts.embedding), ("head", parts.head.weight)):
        plain = weight.is_floating_point() and weight.dim() == 2
        assert plain, f"the {what} must be a plain matrix"


@torch.no_grad()
def check_embedding_path(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Assert that the first layer receives the same from ids and from their embeddings: nothing is rescaled.

    Some releases scaled all of `inputs_embeds` inside the decoder (Gemma's sqrt(D)); a projector trained
    there is wrong by that factor here.
    """

    class Look(nn.Module):
        """Stands in for all layers: a 7B in 4 bits takes its time for a pass on a CPU."""

        def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            seen.append(hidden_states.float())
            return hidden_states

    seen: list[torch.Tensor] = []
    decoder = parts_of(model).decoder
    embed, layers = decoder.get_input_embeddings(), decoder.layers
    ids = torch.arange(4, 12, device=embed.weight.device)[None]
    decoder.layers = nn.ModuleList([Look()])
    try:
        model(input_ids=ids)
        model(inputs_embeds=embed(ids))
    finally:
        decoder.layers = layers
    by_id, by_embedding = seen
    gap = (by_id - by_embedding).abs().max() / by_id.abs().max()
    assert gap < 1e-3, f"inputs_embeds are rescaled inside the decoder (relative gap {gap:.2g})"


@dataclass(frozen=True)
class Sources:
    """Where the two pretrained parts come from and how the decoder is held."""

    llm: str  # hub id or folder of the decoder
    tower: str  # hub id or folder of the vision tower
    # Key in `conversation.TEMPLATES`; `None` takes the table's, or the tokenizer's own form
    template: str | None = None
    # Token that marks a patch; `None` takes the table's or finds an unused one
    image_token: str | None = None
    pad_token: str | None = None  # token that fills a batch; `None` takes the table's or the tokenizer's
    bits: Bits = 4  # 4 (nf4 with double quantisation), 8 or 16
    # Of activations, embeddings, head, and of the weights that are not quantised
    dtype: torch.dtype = torch.bfloat16
    image_size: int | None = None  # side of the tower's input; `None` takes the tower's own
    tower_layer: int = -2  # which hidden states are its features
    tiles: int = 1  # most tiles of a picture beside its whole; 1 for the picture alone, in one square
    # Rows and columns of the grids of tiles, as a LLaVA-NeXT lists them; `None` takes those of `tiles`
    grids: tuple[Size, ...] | None = None
    # Side of the squares of patches that become one visual embedding each; 1 for every patch its own
    pool: int = 1
    exif: Exif = "ignore"  # whether pictures are turned as their EXIF says
    background: str = WHITE  # what transparent pictures are put on; a name, kept as `#rrggbb`

    def __post_init__(self) -> None:
        """Raise ValueError for unknown `bits`, `tiles` or `pool` below 1, or a `background` of no colour."""
        object.__setattr__(self, "background", colour(self.background))
        if self.grids is not None:  # lists in a manifest
            object.__setattr__(self, "grids", tuple((rows, columns) for rows, columns in self.grids))
        if self.pool < 1:
            raise ValueError(f"pool must be 1 (every patch by itself) or more, got {self.pool}")
        if self.bits not in get_args(Bits):
            raise ValueError(f"bits must be 4, 8 or 16, got {self.bits}")
        if self.tiles < 1:
            raise ValueError(f"tiles must be 1 (the picture alone) or more, got {self.tiles}")

    @classmethod
    def named(cls, model: str, tower: str | None = None, llm: str | None = None, **settings: Any) -> Sources:
        """Resolve names of the zoo; an `llm`, or a tower that is no name, is a hub id or a folder.

        Raises ValueError if `model` is not in the table.
        """
        known = zoo.LLMS.get(model) if llm is None else None
        tower = tower or (known or zoo.LLM).tower
        tower_id = zoo.TOWERS[tower].hub_id if tower in zoo.TOWERS else tower
        if llm is not None:
            return cls(llm, tower_id, **settings)
        if known is None:
            raise ValueError(zoo.no_model(model))
        for name in ("template", "image_token", "pad_token"):
            settings[name] = settings.get(name) or getattr(known, name)
        return cls(known.hub_id, tower_id, **settings)


@dataclass
class Outline:
    """How a model will read its rows: known from configurations and tokenizer, before a weight is read."""

    tokenizer: PreTrainedTokenizerBase  # of the decoder, unchanged
    template: templates.Template  # how conversations are written
    processor: dict  # the tower's image settings (`preprocessor_config.json`)
    image_size: int  # side of the tower's input in pixels
    image_token_id: int  # id that marks a patch
    pad_token_id: int  # id that fills a batch
    # Patches of an image in one square; with tiles, of the whole picture, the first one
    tokens_per_image: int
    family: zoo.Family  # the decoder's family
    sources: Sources  # where it came from
    tiling: Tiling | None = None  # grids of tiles; `None` for one square per picture
    decoder: PretrainedConfig | None = None  # the decoder's configuration; tiles go by its positions

    def transform(self, aspect: Aspect) -> ImageTransform:
        """Return the image preparation: `"crop"` in stage 1, `"pad"` in stage 2 and evaluation.

        With tiles it is LLaVA-NeXT's everywhere, which cuts nothing off and pads with black.
        """
        how: dict[str, Any] = {"size": self.image_size, "aspect": aspect, "exif": self.sources.exif}
        how["background"] = self.sources.background
        transform = ImageTransform.from_processor(self.processor, **how)
        return transform if self.tiling is None else TiledTransform.of(transform, self.tiling)

    def image_tokens(self, sizes: Sequence[Sequence[int]]) -> int | list[int]:
        """Return the tokens of an image, or with tiles those of images of these `(height, width)`."""
        if self.tiling is None:
            return self.tokens_per_image
        return [block.tokens for block in self.tiling.blocks(sizes)]

    def longest(self, max_length: int) -> int:
        """Return the most tokens of a row: those of tiles come on top, as far as its positions go."""
        if self.tiling is None:
            return max_length
        return longest_with(self.tiling, max_length, self.decoder)

    def text_encoder(self, template: templates.Template, max_length: int | None) -> TextEncoder:
        ids = self.image_token_id, self.tokens_per_image
        return TextEncoder(template, self.tokenizer, *ids, max_length, self.tiling)

    def supervised(
        self, rows: Rows, template: templates.Template, transform: ImageTransform, **limits: Any
    ) -> SupervisedRows:
        """Return rows as this model takes them; `limits` are those of `SupervisedRows`."""
        return SupervisedRows(
            rows,
            template=template,
            tokenizer=self.tokenizer,
            transform=transform,
            image_token_id=self.image_token_id,
            tokens_per_image=self.tokens_per_image,
            tiling=self.tiling,
            **limits,
        )

    def collator(self) -> Collator:
        return Collator(
            pad_token_id=self.pad_token_id, image_token_id=self.image_token_id, tiling=self.tiling
        )


@dataclass
class Assembled(Outline):
    """A model ready for a stage, with everything that must agree with it."""

    model: nn.Module = field(kw_only=True)  # the LLaVA, possibly wrapped by PEFT

    @property
    def patch_side(self) -> int:
        """Side in pixels of what becomes one visual embedding: a patch, or those that are pooled."""
        tower: Any = parts_of(self.model).llava.config.vision_config
        return tower.patch_size


def tiling_for(sources: Sources, tower: PretrainedConfig) -> Tiling | None:
    """Return the grids of tiles that a model will have; `None` for one square per picture. Loads nothing.

    Raises ValueError if the tower's pictures are not square, or LLaVA-NeXT could not tell their size.
    """
    if sources.tiles == 1:
        return None
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(tower, name), int):
            raise ValueError(
                f"--tiles takes a tower of square pictures and patches; {sources.tower} has "
                f"{name} {getattr(tower, name)}: take another --tower, or leave --tiles out"
            )
    native = native_size(read_processor(sources.tower), tower)
    size = native if sources.image_size is None else sources.image_size
    family = zoo.tower_family_of(tower.model_type, sources.tower)
    if family.any_size and size != tower.image_size:
        # LLaVA-NeXT counts patches by the configuration, which such a tower's position table depends on.
        raise ValueError(
            f"with --tiles a tower of this kind works at its own size: add --image-size {tower.image_size} "
            f"(it would be {size})"
        )
    patch = tower.patch_size * sources.pool
    if sources.grids is not None:
        return Tiling(size, size // patch, sources.grids)
    return Tiling.up_to(sources.tiles, size, patch)


def check_pool(sources: Sources, tower: PretrainedConfig) -> None:
    """Raise ValueError if patches would be left over when joined as `sources.pool` asks; loads nothing."""
    if sources.pool == 1:
        return
    native = native_size(read_processor(sources.tower), tower)
    size = native if sources.image_size is None else sources.image_size
    zoo.check_pool(sources.pool, sources.tower, size, tower.patch_size)


def longest_with(tiling: Tiling, max_length: int, decoder: object) -> int:
    """Return `max_length` plus the tokens of the most tiles, at most the positions of the decoder, if known.

    Raises ValueError if those do not suffice for a picture.
    """
    most = getattr(decoder, "max_position_embeddings", None) or 1 << 30
    largest = tiling.largest().tokens
    if largest >= most:
        tiles = max(rows * columns for rows, columns in tiling.grids)
        raise ValueError(
            f"a picture of --tiles {tiles} takes up to {largest:,} tokens, and the decoder was made for "
            f"{most:,}: take fewer tiles, or --pool 2"
        )
    return max(max_length, min(max_length + largest - tiling.across**2, most))


def read_config(source: str, what: str) -> PretrainedConfig:
    """Load a configuration from a folder or the hub; its `_commit_hash` is the hub's commit.

    Raises ValueError if neither has it.
    """
    located = data_world_parts.located(source)
    if not os.path.isdir(located):
        hub.silence()
    try:
        config = AutoConfig.from_pretrained(located)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no {what} can be loaded from {source!r}: give a folder with config.json and safetensors, "
            f"or a hub id while a hub can be reached ({repository.why(source, error)})"
        ) from error
    config._commit_hash = repository.commit_of(source)
    return config


def outline(sources: Sources, say: quantised.Say = quantised.silent) -> Outline:
    """Find out how a model of these parts will read its rows; no weight is read.

    `say` takes a line where the tokenizer's own chat template is none of ours. Raises ValueError for anything
    a user can have wrong: unsupported or missing parts, ids beyond the embedding matrix, no free vocabulary
    row.
    """
    llm_config = read_config(sources.llm, "language model")
    family = zoo.family_of(llm_config.model_type, sources.llm)
    tower_config = vision_config(read_config(sources.tower, "vision tower"))
    zoo.tower_family_of(tower_config.model_type, sources.tower)
    processor = read_processor(sources.tower)
    size = native_size(processor, tower_config) if sources.image_size is None else sources.image_size
    if size < tower_config.patch_size:
        raise ValueError(f"an image size of {size} holds no {tower_config.patch_size}-pixel patch")
    check_tower_layer(sources.tower_layer, tower_config)
    check_pool(sources, tower_config)
    tiling = tiling_for(sources, tower_config)

    tokenizer = repository.read_tokenizer(sources.llm)
    name = sources.template or conversation.choose_template(tokenizer, family.template, say)
    if name not in templates.TEMPLATES:
        raise ValueError(f"no template is named {name!r}; known: {', '.join(templates.TEMPLATES)}")
    template = templates.TEMPLATES[name]
    conversation.check_tokenizer(template, tokenizer)
    check_vocabulary(tokenizer, template, llm_config.vocab_size)
    image_token_id = find_image_token(tokenizer, template, llm_config.vocab_size, sources.image_token)
    pad_token_id = find_pad_token(tokenizer, image_token_id, sources.pad_token)
    tokens = (size // tower_config.patch_size // sources.pool) ** 2
    ids = image_token_id, pad_token_id, tokens
    return Outline(tokenizer, template, processor, size, *ids, family, sources, tiling, llm_config)


def assemble(
    sources: Sources,
    device: torch.device | str = "cpu",
    seed: int = 0,
    *,
    copies: quantised.Copies = "read",
    say: quantised.Say = quantised.silent,
) -> Assembled:
    """Load tower and decoder, add a fresh projector, check everything; all weights are frozen afterwards.

    The decoder is loaded alone, so that bitsandbytes never sees tower, projector, embeddings or head. `seed`
    is of the projector's initial weights; `copies` says whether the decoder's pre-quantised copy may be read,
    and written where there is none, and `say` takes a line about that. Raises ValueError as `outline`.
    """
    known = outline(sources, say)
    tower_config = vision_config(read_config(sources.tower, "vision tower"))
    tower_family = zoo.tower_family_of(tower_config.model_type, sources.tower)
    tower = load_tower(sources.tower, tower_config, known.image_size, sources.dtype, device, say)
    causal = load_decoder_alone(sources, device, copies, say)
    vision = copy.deepcopy(tower.config) if sources.pool > 1 else tower.config
    vision.patch_size *= sources.pool  # by which LLaVA-NeXT lays the projector's output out
    configure: Any = LlavaConfig
    kind: Any = LlavaForConditionalGeneration
    projecting: Any = Projector
    if known.tiling is not None:
        configure = partial(LlavaNextConfig, image_grid_pinpoints=known.tiling.pinpoints)
        kind, projecting = LlavaNextForConditionalGeneration, NewlineProjector
    config = configure(
        text_config=causal.config,
        vision_config=vision,
        image_token_index=known.image_token_id,
        image_seq_length=known.tokens_per_image,
        vision_feature_layer=sources.tower_layer,
        vision_feature_select_strategy=tower_family.select_strategy,
        projector_hidden_act="gelu",
        tie_word_embeddings=causal.config.tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # torch's own initialisation of linear layers, as LLaVA's
        projector = projecting(config, sources.pool).float()
    with torch.device("meta"):
        model: Any = kind(config)
    if known.tiling is not None:
        del model.model.image_newline
        model.model.__class__ = _TiledModel
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector.to(device)
    model.model.language_model = causal.model
    model.lm_head = causal.lm_head
    model.config.dtype = sources.dtype
    model.generation_config = causal.generation_config
    model.generation_config.pad_token_id = known.pad_token_id
    # Vicuna's file asks for a temperature without sampling, which refuses to be saved after training.
    model.generation_config.do_sample = False
    model.generation_config.temperature = model.generation_config.top_p = model.generation_config.top_k = None
    model.requires_grad_(False)
    model.train()
    check_quantisation(model)
    check_embedding_path(model, known.tokenizer)
    return Assembled(**vars(known), model=model)


def for_inference(model: nn.Module) -> None:
    """Switch dropout off, and keep 4-bit layers as they were trained.

    On a CPU with bf16 instructions bitsandbytes repacks a 4-bit layer in its first `eval()` + `no_grad`
    pass: its scales are rounded to bf16, shapes that are no multiple of 64 fail, and no gradient ever
    passes it again.
    """
    model.eval()
    for module in model.modules():
        ours = type(module).__module__.startswith("bitsandbytes")  # PEFT has a class of the same name
        if ours and type(module).__name__ == "Linear4bit" and module.weight.device.type == "cpu":
            module.training = True  # the layer itself has no other use for the flag


def load_decoder_alone(
    sources: Sources,
    device: torch.device | str,
    copies: quantised.Copies = "read",
    say: quantised.Say = quantised.silent,
) -> PreTrainedModel:
    """Load the decoder with its head, quantised in its layers only (see `decoder.load_decoder`)."""
    config = read_config(sources.llm, "language model")
    causal = models_decoder.load_decoder(
        sources.llm, config, sources.bits, sources.dtype, device, copies=copies, say=say
    )
    return models_decoder.fold_scales(causal)
