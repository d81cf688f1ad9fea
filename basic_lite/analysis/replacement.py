"""The replacement test: captions and texts with other vectors in place of a picture's (section 4.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from basic_lite.data.conversation import stop_ids
from basic_lite.data.templates import Template
from basic_lite.models.generate import greedily, until_stop
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of

ORIGINAL = "original"
DIRECTION = "matched tokens"
AS_TEXT = "matched, as text"
SHUFFLED = "another picture"
BLANK = "blank picture"

KINDS: dict[str, str] = {
    ORIGINAL: "what the projector makes of the picture",
    DIRECTION: "every patch's nearest token embedding, scaled to the norm of what it replaces",
    AS_TEXT: "the same tokens exactly as the decoder receives them in a text (Gemma: times sqrt(D))",
    SHUFFLED: "the embeddings of the picture shown before: a floor",
    BLANK: "the embeddings of a picture of the tower's mean colour: a floor",
}
"""What stands at the patches, and in words what that is."""


@torch.no_grad()
def token_stand_ins(
    assembled: Assembled, ids: torch.Tensor, initial: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return what stands in for visual embeddings `(P, D)`, made of the tokens `(P,)` that they match.

    DIRECTION:  E[ids] / |E[ids]| * |initial|     only the direction is replaced
    AS_TEXT:    embed_tokens(ids)                 the patch becomes a word of text, its norm included
    """
    parts = parts_of(assembled.model)
    ids = ids.to(initial.device)
    direction = F.normalize(parts.embedding[ids].float(), dim=1)
    scaled = direction * initial.float().norm(dim=1, keepdim=True)
    as_text = parts.llava.get_input_embeddings()(ids)
    return {DIRECTION: scaled.to(initial.dtype), AS_TEXT: as_text.to(initial.dtype)}


@torch.no_grad()
def caption_losses(
    assembled: Assembled,
    input_ids: list[int],
    labels: list[int],
    patches: Mapping[str, torch.Tensor],
    rows: int = 4,
) -> dict[str, float]:
    """Return the mean loss per caption token, in nats, with each of `patches` `(P, D)` as the picture.

    `input_ids` and `labels` are of one conversation with one picture; `rows` forward passes go at a time.
    """
    results: dict[str, float] = {}
    for names, embeds in _in_rows(assembled, input_ids, patches, rows):
        results |= dict(zip(names, loss_of(assembled, embeds, labels), strict=True))
    return results


def _in_rows(
    assembled: Assembled, ids: list[int], patches: Mapping[str, torch.Tensor], rows: int
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield the names of some patches and the embeddings of the text with each of them, `rows` at a time."""
    names = list(patches)
    for start in range(0, len(names), rows):
        chosen = names[start : start + rows]
        yield chosen, put_in(assembled, ids, [patches[name] for name in chosen])


def put_in(assembled: Assembled, input_ids: list[int], patches: list[torch.Tensor]) -> torch.Tensor:
    """Return `(B, S, D)`: the text's embeddings, with each of `patches` `(P, D)` at the image tokens."""
    embed = parts_of(assembled.model).llava.get_input_embeddings()
    ids = torch.tensor(input_ids, device=parts_of(assembled.model).embedding.device)
    places = (ids == assembled.image_token_id).nonzero().squeeze(1)
    text = embed(ids)
    return torch.stack([text.index_copy(0, places, own.to(text.dtype)) for own in patches])


def loss_of(assembled: Assembled, embeds: torch.Tensor, labels: list[int]) -> list[float]:
    """Return the mean loss of each row; the head sees supervised positions alone."""
    target = torch.tensor(labels, device=embeds.device)[1:]
    places = target.ge(0).nonzero().squeeze(1)
    logits = assembled.model(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
        use_cache=False,
        logits_to_keep=places,
    ).logits
    each = F.cross_entropy(
        logits.float().transpose(1, 2), target[places].expand(len(embeds), -1), reduction="none"
    )
    return each.mean(1).tolist()


@torch.no_grad()
def greedy_texts(
    assembled: Assembled,
    template: Template,
    prompt: list[int],
    patches: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    rows: int = 4,
) -> dict[str, str]:
    """Return the decoder's greedy answers with each of `patches` `(P, D)` at the place of the picture."""
    stops, results = stop_ids(template, assembled.tokenizer), {}
    generate: Any = assembled.model.generate
    for names, embeds in _in_rows(assembled, prompt, patches, rows):
        produced = generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            **greedily(stops, assembled.pad_token_id, max_new_tokens, [assembled.image_token_id]),
        )
        for name, row in zip(names, produced.tolist(), strict=True):
            ids = until_stop(row, stops)
            results[name] = str(assembled.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return results
