"""One model shown every picture: matches at every layer, and what stand-ins for it lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from basic_lite.analysis import replacement
from basic_lite.analysis.exhibits import Exhibit
from basic_lite.analysis.found import Depth, Look, Said
from basic_lite.analysis.layers import LayerMatches, watch_layers
from basic_lite.analysis.matching import match_tokens
from basic_lite.analysis.meaning import Judge
from basic_lite.capture import Weighting, layer_weights, parts_of, supervised_layers
from basic_lite.conversation import encode, encode_prompt
from basic_lite.modeling import Assembled, for_inference
from basic_lite.prompting import tower_pixels
from basic_lite.templates import Template
from basic_lite.tower import up_to_the_features


@dataclass(frozen=True)
class Plan:
    """How a model is looked at.

    Attributes:
        template: how the conversation about a picture is written.
        aspect: image preparation, as the stage's.
        layers: k of the target; `None` for half.
        weighting: of layers 1..k.
        ends: ids of tokens that end a text or a line.
        views: pictures to keep in full.
        tried: depths whose matches are tried as stand-ins beside the initial ones; `None` for k/2, k and L.
        max_new_tokens: longest greedy text; 0 generates none.
    """

    template: Template
    aspect: str
    layers: int | None = None
    weighting: Weighting = "quadratic"
    ends: frozenset[int] = frozenset()
    views: int = 6
    tried: tuple[int, ...] | None = None
    max_new_tokens: int = 48


@torch.no_grad()
def look(
    assembled: Assembled,
    exhibits: list[Exhibit],
    judges: list[Judge | None],
    plan: Plan,
    advance: Callable[[], None] = lambda: None,
) -> Look:
    """Show a model every picture, one at a time.

    Held at a time: one row's forward pass, or four with stand-ins; of every picture `(L + 2, P)` numbers.

    Args:
        assembled: the model.
        exhibits: at least one.
        judges: who judges each picture's matches, or `None`.
        plan: how to look.
        advance: called after each picture.
    """
    parts = parts_of(assembled.model)
    for_inference(assembled.model)
    decoder = parts.decoder.config
    k, depth = supervised_layers(decoder, plan.layers), decoder.num_hidden_layers
    tried = plan.tried if plan.tried is not None else tuple(sorted({max(k // 2, 1), k, depth}))
    tally, found = _Tally(depth, plan.ends), Look()
    blank = _features(assembled, None, plan)
    previous = _features(assembled, exhibits[-1], plan) if len(exhibits) > 1 else None
    for exhibit, judge in zip(exhibits, judges, strict=True):
        features = _features(assembled, exhibit, plan)
        prompt = _ids(assembled, exhibit, plan, answered=False)
        answered = exhibit.caption is not None
        ids, labels = _ids(assembled, exhibit, plan, answered=True) if answered else (prompt, None)
        embeds = replacement.put_in(assembled, ids, [features])
        places = torch.tensor(ids, device=embeds.device).eq(assembled.image_token_id).nonzero().squeeze(1)
        with watch_layers(assembled.model, places, layer_weights(k, plan.weighting)) as seen:
            own = _run(assembled, embeds, labels)
        target = match_tokens(seen.target, parts.embedding)
        toward = F.cosine_similarity(seen.target, features.float(), dim=1).cpu()
        verdicts = tally.add(seen, (target[0].cpu(), target[1].cpu(), toward), judge)
        if len(found.views) < plan.views:
            rows = [tokens.tolist() for tokens in [*seen.tokens, target[0].cpu()]]
            found.views.append((rows, verdicts))
        floors = {replacement.BLANK: blank}
        if previous is not None:
            floors[replacement.SHUFFLED] = previous
        stand_ins = replacement.token_stand_ins(assembled, seen.tokens[0], features) | floors
        losses, by_layer = {}, {}
        if answered:
            by = {
                str(layer): replacement.token_stand_ins(assembled, seen.tokens[layer], features)[
                    replacement.DIRECTION
                ]
                for layer in tried
            }
            losses = {replacement.ORIGINAL: own}
            losses |= replacement.caption_losses(assembled, ids, labels, stand_ins)
            by_layer = {"initial": losses[replacement.DIRECTION]}
            by_layer |= replacement.caption_losses(assembled, ids, labels, by)
        texts = {}
        if plan.max_new_tokens:
            every = {replacement.ORIGINAL: features} | stand_ins
            texts = replacement.greedy_texts(assembled, plan.template, prompt, every, plan.max_new_tokens)
        found.said.append(Said(losses, by_layer, texts, exhibit.caption))
        previous = features
        advance()
    found.depths = list(tally.depths())
    return found


def _run(assembled: Assembled, embeds: torch.Tensor, labels: list[int] | None) -> float | None:
    """Run one row; return its caption's loss, or `None` without a caption."""
    if labels is not None:
        return replacement.loss_of(assembled, embeds, labels)[0]
    nothing = torch.zeros(0, dtype=torch.long, device=embeds.device)
    assembled.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=nothing)
    return None


def _ids(assembled: Assembled, exhibit: Exhibit, plan: Plan, answered: bool) -> object:
    about = {"image_token_id": assembled.image_token_id, "tokens_per_image": assembled.tokens_per_image}
    turns = exhibit.turns(answered)
    if not answered:
        return encode_prompt(plan.template, assembled.tokenizer, turns, **about)
    encoded = encode(plan.template, assembled.tokenizer, turns, **about)
    return encoded.input_ids, encoded.labels


def _features(assembled: Assembled, exhibit: Exhibit | None, plan: Plan) -> torch.Tensor:
    """Return the visual embeddings `(P, D)` that the decoder receives; of a blank picture for `None`."""
    llava, transform = parts_of(assembled.model).llava, assembled.transform(plan.aspect)
    if exhibit is None:  # the mean colour is 0 in the space that the tower receives
        pixels = torch.zeros(1, 3, assembled.image_size, assembled.image_size)
    else:
        pixels = transform(exhibit.open())[None]
    pixels = tower_pixels(assembled.model, pixels, transform)
    with up_to_the_features(llava.vision_tower, llava.config.vision_feature_layer):
        features = torch.cat(list(llava.get_image_features(pixels).pooler_output))
    return features.to(llava.get_input_embeddings().weight.dtype)


class _Tally:
    """Adds up what is found at every depth, picture by picture."""

    def __init__(self, layers: int, ends: frozenset[int]) -> None:
        self.names = ["initial", *map(str, range(1, layers + 1)), "target"]
        self.ends = ends
        self.common = [Counter() for _ in self.names]
        self.judged, self.meaningful = [0] * len(self.names), [0] * len(self.names)
        self.cosine = [[] for _ in self.names]
        self.similarity = [[] for _ in self.names]
        self.judges = 0

    def add(
        self,
        seen: LayerMatches,
        target: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        judge: Judge | None,
    ) -> list[list[bool | None]] | None:
        every = zip(
            [*seen.tokens, target[0]],
            [*seen.similarity, target[1]],
            [*seen.cosine, target[2]],
            strict=True,
        )
        verdicts = []
        self.judges += judge is not None
        for place, (tokens, similarity, cosine) in enumerate(every):
            ids = tokens.tolist()
            self.common[place].update(ids)
            self.cosine[place].append(cosine)
            self.similarity[place].append(similarity)
            if judge is not None:
                verdicts.append(judge(ids))
                self.judged[place] += sum(value is not None for value in verdicts[-1])
                self.meaningful[place] += sum(value is True for value in verdicts[-1])
        return verdicts or None

    def depths(self) -> Iterator[Depth]:
        for place, name in enumerate(self.names):
            cosine = torch.cat(self.cosine[place]).double().numpy()
            quartiles = np.percentile(cosine, [25, 50, 75]).tolist()
            summary = dict(zip(("q1", "median", "q3"), quartiles, strict=True)) | {
                "mean": float(cosine.mean())
            }
            yield Depth(
                name,
                len(cosine),
                self.judged[place],
                self.meaningful[place] if self.judges else None,
                sum(count for token, count in self.common[place].items() if token in self.ends),
                float(torch.cat(self.similarity[place]).double().mean()),
                summary,
                self.common[place].most_common(12),
            )
