"""Look into a model of the embedded world, where what every patch shows is known exactly."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field

import torch
from torch.nn import functional as F

from basic_lite.analysis import match_tokens
from basic_lite.capture import parts_of
from basic_lite.conversation import TEMPLATES, encode
from basic_lite.demo.grammar import caption
from basic_lite.demo.lexicon import LANGUAGES, is_meaningful
from basic_lite.demo.render import Picture, render
from basic_lite.demo.scenes import Scene, sample_scene
from basic_lite.modeling import Assembled, for_inference
from basic_lite.prompting import forward_inputs
from basic_lite.supervision import BasicSupervision
from basic_lite.types import IGNORE_INDEX

SHOWN = 0.2
"""A patch shows a thing that covers at least this share of it."""


@dataclass(frozen=True)
class View:
    """One picture with what its patches mean to the LLM, patch by patch, row by row.

    Attributes:
        tokens: Text of the vocabulary token nearest to each visual embedding by cosine.
        meaningful: Whether that token names something true of the thing there; `None` where no thing is.
        importance: How much the text attends to each patch.
    """

    tokens: list[str]
    meaningful: list[bool | None]
    importance: list[float]


@dataclass(frozen=True)
class Inspection:
    """What a model makes of held-out scenes, one number per scene.

    Attributes:
        caption_loss: Mean loss per token of a caption that says everything, in nats.
        cosine: Mean cosine between initial embeddings and their target from layers 1 to k.
        shown: Patches that show a thing.
        meaningful: Those of them whose nearest token names something true of it.
        views: The first scenes in full.
    """

    caption_loss: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    meaningful: list[int] = field(default_factory=list)
    views: list[View] = field(default_factory=list)

    def as_dict(self) -> dict[str, list]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, list]) -> Inspection:
        """Return what `as_dict` gave."""
        return cls(**{**content, "views": [View(**view) for view in content["views"]]})


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Return scenes of which each has a thing of a pair never seen in training."""
    rng = random.Random(f"inspection {seed}")
    return [sample_scene(rng, held_out=True) for _ in range(count)]


@torch.no_grad()
def inspect_model(
    assembled: Assembled,
    scenes: list[Scene],
    *,
    layers: int | None = None,
    views: int = 6,
    seed: int = 0,
    rows: int = 32,
) -> Inspection:
    """Show the model scenes with captions in either language, as stage 1 does.

    Args:
        assembled: The model, of the embedded world.
        scenes: What it is shown.
        layers: k; `None` for half.
        views: How many scenes to keep in full.
        seed: Of the captions' wording.
        rows: Scenes per forward pass.
    """
    model, found = assembled.model, Inspection()
    for_inference(model)
    transform = assembled.transform("pad")
    collate = assembled.collator()
    table = parts_of(model).embedding
    words = [assembled.tokenizer.decode([token]) for token in range(len(table))]
    rng = random.Random(f"captions {seed}")
    supervision = BasicSupervision(model, layers)
    for start in range(0, len(scenes), rows):
        shown = scenes[start : start + rows]
        pictures = [render(scene) for scene in shown]
        items = [_item(assembled, transform, scene, p, rng) for scene, p in zip(shown, pictures, strict=True)]
        batch = collate(items)
        with supervision:
            out = model(**forward_inputs(model, batch, transform), use_cache=False)
        labels = batch["labels"][:, 1:].to(out.logits.device)
        each = F.cross_entropy(
            out.logits[:, :-1].transpose(1, 2).float(), labels, ignore_index=IGNORE_INDEX, reduction="none"
        )
        found.caption_loss.extend((each.sum(1) / labels.ne(IGNORE_INDEX).sum(1)).tolist())
        seen = supervision.refinement
        patches = (len(shown), -1)
        cosine = F.cosine_similarity(seen.initial.float(), seen.target, dim=-1).view(patches)
        found.cosine.extend(cosine.mean(1).tolist())
        nearest = match_tokens(seen.initial, table)[0].view(patches).tolist()
        importance = seen.importance.view(patches).tolist()
        for scene, picture, ids, weights in zip(shown, pictures, nearest, importance, strict=True):
            tokens = [words[token] for token in ids]
            right = meaningful(scene, picture, tokens)
            found.shown.append(sum(value is not None for value in right))
            found.meaningful.append(sum(value is True for value in right))
            if len(found.views) < views:
                found.views.append(View(tokens, right, weights))
    return found


def _item(
    assembled: Assembled, transform: object, scene: Scene, picture: Picture, rng: random.Random
) -> dict[str, object]:
    said = caption(scene, rng.choice(LANGUAGES), rng)
    turns = [("user", "<image>"), ("assistant", said)]
    encoded = encode(
        TEMPLATES["plain"],
        assembled.tokenizer,
        turns,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
    )
    return {
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "pixels": [transform(picture.image)],
        "row": 0,
    }


def meaningful(scene: Scene, picture: Picture, tokens: list[str]) -> list[bool | None]:
    """Say of each patch whether its token names something true there; `None` where no thing is."""
    return [
        is_meaningful(token, scene.things[thing]) if share >= SHOWN else None
        for token, thing, share in zip(tokens, picture.thing, picture.share, strict=True)
    ]
