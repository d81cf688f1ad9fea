"""One model shown every picture: nearest tokens at every layer, and the results of the replacement test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from basic_lite.analysis import replacement
from basic_lite.analysis.judges import Judge, content_kept, token_f1
from basic_lite.analysis.samples import Sample
from basic_lite.data.conversation import encode, encode_prompt
from basic_lite.data.pictures import Aspect
from basic_lite.data.templates import Template
from basic_lite.data.tiles import Size
from basic_lite.method.fit import match_tokens
from basic_lite.method.targets import layer_weights, supervised_layers
from basic_lite.method.types import Weighting
from basic_lite.models.generate import tower_pixels
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of
from basic_lite.models.tower import up_to_the_features


@dataclass
class LayerMatches:
    """One picture through the decoder: what enters, what layers 1..L leave before the norm, the target."""

    # `L + 2` times `(P,)` int64, the token nearest to each patch's state by cosine
    tokens: list[torch.Tensor] = field(default_factory=list)
    similarity: list[torch.Tensor] = field(default_factory=list)  # `(P,)` fp32 each, that cosine
    # `(P,)` fp32 each, the cosine of the state to the initial embedding; all ones at first
    cosine: list[torch.Tensor] = field(default_factory=list)
    target: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # `(P, D)` fp32


@contextmanager
def watch_layers(model: nn.Module, patch: torch.Tensor, weights: Sequence[float]) -> Iterator[LayerMatches]:
    """Match the patches' states after every decoder layer, while one row passes; complete when it has.

    Beside the forward pass itself the initial embeddings and the target are all that is held. `patch` `(P,)`
    int64 says where the patches stand in the row, `weights` are `w_1 .. w_k` of the target.
    """
    parts, seen = parts_of(model), LayerMatches()
    initial = torch.empty(0)

    def note(states: torch.Tensor) -> None:
        ids, values = match_tokens(states, parts.embedding)
        seen.tokens.append(ids.cpu())
        seen.similarity.append(values.cpu())
        seen.cosine.append(F.cosine_similarity(states.float(), initial, dim=1).cpu())

    def receive(decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal initial
        states = kwargs["inputs_embeds"][0].index_select(0, patch)
        initial, seen.target = states.float(), torch.zeros_like(states, dtype=torch.float32)
        note(states)

    def leave(index: int) -> Callable[[nn.Module, tuple, torch.Tensor | tuple], None]:
        def hook(layer: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            states = hidden[0].index_select(0, patch)
            if index < len(weights):
                seen.target.add_(states.float(), alpha=weights[index])
            note(states)

        return hook

    with ExitStack() as stack, torch.no_grad():
        hooks = [parts.decoder.register_forward_pre_hook(receive, with_kwargs=True)]
        hooks += [layer.register_forward_hook(leave(i)) for i, layer in enumerate(parts.decoder.layers)]
        for hook in hooks:
            stack.callback(hook.remove)
        yield seen
        note(seen.target)


FEWEST: int = 8  # with fewer captions it is not reported how much survives


@dataclass(frozen=True)
class DepthResults:
    """The results at one depth of the decoder, over all pictures."""

    name: str  # `"initial"`, a layer's number from 1, or `"target"`
    patches: int  # how many there were
    judged: int  # those whose match can be right or wrong
    meaningful: int | None  # those whose match means something; `None` without a judge
    ends: int  # those whose match is a special token or a newline
    similarity: float  # mean cosine of a patch and its match
    # Quartiles and mean of the cosine to the initial embedding, `q1`, `median`, `q3`, `mean`
    cosine: dict[str, float]
    common: list[tuple[int, int]]  # the most frequent matches, id and count

    @property
    def meaningful_share(self) -> float | None:
        """Share of the judged patches whose match means something."""
        return None if self.meaningful is None or not self.judged else self.meaningful / self.judged

    @property
    def end_share(self) -> float:
        """Share of all patches whose match ends a text or a line."""
        return self.ends / self.patches


@dataclass(frozen=True)
class PictureResults:
    # Kind of `replacement.KINDS` -> caption loss, nats per token; empty without a caption
    losses: dict[str, float]
    # Depth -> caption loss with the tokens matched there, scaled as `replacement.DIRECTION`
    by_layer: dict[str, float]
    texts: dict[str, str]  # kind -> greedy text
    caption: str | None  # what the picture shows, where a caption is given


@dataclass
class ModelResults:
    depths: list[DepthResults] = field(default_factory=list)  # initial, layers 1..L, target
    pictures: list[PictureResults] = field(default_factory=list)  # one for each picture
    # The first pictures' matches, `(depths, P)` ids, and a verdict for each where there is a judge
    views: list[tuple[list[list[int]], list[list[bool | None]] | None]] = field(default_factory=list)

    def loss(self, kind: str) -> float | None:
        """Return the mean caption loss with `kind` in the picture's place; `None` where it was not tried."""
        return _mean(picture.losses.get(kind) for picture in self.pictures)

    def loss_by_layer(self) -> dict[str, float]:
        """Return the mean caption loss with the tokens matched at each of some depths."""
        losses: dict[str, list[float]] = {}
        for picture in self.pictures:
            for name, loss in picture.by_layer.items():
                losses.setdefault(name, []).append(loss)
        return {name: sum(values) / len(values) for name, values in losses.items()}

    @property
    def tried(self) -> bool:
        """Whether anything stood in for a picture: a caption to lose, or a text to compare."""
        return any(picture.losses or picture.texts for picture in self.pictures)

    def floor(self) -> float | None:
        """Return the lower of the losses with another picture and with a blank one."""
        losses = [self.loss(kind) for kind in (replacement.SHUFFLED, replacement.BLANK)]
        return min((loss for loss in losses if loss is not None), default=None)

    def survives(self, kind: str) -> float | None:
        """Return how much of a picture's use for its caption is left: 1 all, 0 no more than the floor.

            (floor - loss with kind) / (floor - loss with the picture's own embeddings)

        `None` where a loss is missing, for fewer than `FEWEST` captions, or where the picture itself does not
        lower the loss by two standard errors of the paired differences to the floor: there is nothing then
        that could survive.
        """
        own, kept, floor = self.loss(replacement.ORIGINAL), self.loss(kind), self.floor()
        if own is None or kept is None or floor is None:
            return None
        best = replacement.BLANK if self.loss(replacement.BLANK) == floor else replacement.SHUFFLED
        gains = [
            picture.losses[best] - picture.losses[replacement.ORIGINAL]
            for picture in self.pictures
            if picture.losses
        ]
        if len(gains) < FEWEST or floor - own <= 2 * stdev(gains) / len(gains) ** 0.5:
            return None
        return (floor - kept) / (floor - own)

    def overlap(self, kind: str) -> dict[str, float | None]:
        """Compare the greedy texts of `kind` with those of the original embeddings and the captions.

        `caption_said` is the share of the caption's content words that the text has.
        """
        own = replacement.ORIGINAL
        texts = [(p.texts[kind], p.texts[own], p.caption) for p in self.pictures if kind in p.texts]
        return {
            "token_f1": _mean(token_f1(text, original) for text, original, _ in texts),
            "content_kept": _mean(content_kept(text, original) for text, original, _ in texts),
            "caption_said": _mean(content_kept(text, said) for text, _, said in texts if said is not None),
        }


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


@dataclass(frozen=True)
class InspectionSettings:
    template: Template  # how the conversation about a picture is written
    aspect: Aspect  # image preparation, as the stage's
    layers: int | None = None  # k of the target; `None` for half
    weighting: Weighting = "quadratic"  # of layers 1..k
    ends: frozenset[int] = frozenset()  # ids of tokens that end a text or a line
    views: int = 6  # pictures to keep in full
    max_new_tokens: int = 48  # longest greedy text; 0 generates none


@torch.no_grad()
def inspect_layers(
    assembled: Assembled,
    samples: list[Sample],
    judges: list[Judge | None],
    settings: InspectionSettings,
    advance: Callable[[], None] = lambda: None,
) -> ModelResults:
    """Show a model every picture, one at a time, each with the judge of its matches or `None`.

    Held at a time: one row's forward pass, or four with stand-ins; of every picture `(L + 2, P)` numbers.
    """
    for_inference(assembled.model)
    decoder = parts_of(assembled.model).decoder.config
    k, depth = supervised_layers(decoder, settings.layers), decoder.num_hidden_layers
    tried = sorted({max(k // 2, 1), k, depth})  # depths whose matches stand in, beside the initial ones
    matches: dict[str, list[Matches]] = {
        name: [] for name in ("initial", *map(str, range(1, depth + 1)), "target")
    }
    results = ModelResults()
    base = slice(assembled.tokens_per_image)  # with tiles, the patches of the whole picture alone are judged
    blank = previous = None
    for number, (sample, judge) in enumerate(zip(samples, judges, strict=True)):
        size = None if assembled.tiling is None else _size(assembled, sample)
        kept = _patches(assembled, size)
        features = _features(assembled, sample, settings, size)
        if blank is None or size is not None:  # the floors take as many tokens as the picture
            blank = _features(assembled, None, settings, size)
        if len(samples) > 1 and (previous is None or size is not None):
            previous = _features(assembled, samples[number - 1], settings, size)
        prompt, ids, labels = _encoded(assembled, sample, settings, size)
        embeds = replacement.put_in(assembled, ids, [features])
        places = torch.tensor(ids, device=embeds.device).eq(assembled.image_token_id).nonzero().squeeze(1)
        with watch_layers(assembled.model, places[kept], layer_weights(k, settings.weighting)) as seen:
            own = _run(assembled, embeds, labels)
        rows = [tokens.tolist() for tokens in seen.tokens]
        verdicts = None if judge is None else [judge(row[base]) for row in rows]
        for place, at_depth in enumerate(matches.values()):
            judged = None if verdicts is None else verdicts[place]
            at_depth.append((rows[place], seen.similarity[place], seen.cosine[place], judged))
        if len(results.views) < settings.views:
            results.views.append(([row[base] for row in rows], verdicts))
        floors = {replacement.BLANK: blank}
        if previous is not None:
            floors[replacement.SHUFFLED] = previous
        stand_ins = _matched(assembled, seen.tokens[0], features, kept) | floors
        losses, by_layer, texts = {}, {}, {}
        if own is not None:
            deeper = {str(at): _matched(assembled, seen.tokens[at], features, kept) for at in tried}
            by = {name: made[replacement.DIRECTION] for name, made in deeper.items()}
            losses = {replacement.ORIGINAL: own}
            losses |= replacement.caption_losses(assembled, ids, labels, stand_ins)
            by_layer = {"initial": losses[replacement.DIRECTION]}
            by_layer |= replacement.caption_losses(assembled, ids, labels, by)
        if settings.max_new_tokens:
            shown = {replacement.ORIGINAL: features} | stand_ins
            texts = replacement.greedy_texts(
                assembled, settings.template, prompt, shown, settings.max_new_tokens
            )
        results.pictures.append(PictureResults(losses, by_layer, texts, sample.caption))
        previous = features
        advance()
    results.depths = [_depth_results(*pair, settings.ends) for pair in matches.items()]
    return results


def _matched(
    assembled: Assembled, tokens: torch.Tensor, features: torch.Tensor, kept: Any
) -> dict[str, torch.Tensor]:
    """Return a picture's embeddings with matched tokens in place of its patches; newlines stay."""
    made = replacement.token_stand_ins(assembled, tokens, features[kept])
    if assembled.tiling is None:
        return made
    return {name: features.index_copy(0, kept, some) for name, some in made.items()}


def _run(assembled: Assembled, embeds: torch.Tensor, labels: list[int]) -> float | None:
    """Run one row; return its caption's loss, or `None` without a caption."""
    if labels:
        return replacement.loss_of(assembled, embeds, labels)[0]
    nothing = torch.zeros(0, dtype=torch.long, device=embeds.device)
    assembled.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=nothing)
    return None


def _size(assembled: Assembled, sample: Sample) -> Size:
    picture = assembled.transform("pad").upright(sample.open())
    return picture.height, picture.width


def _patches(assembled: Assembled, size: Size | None) -> Any:
    """Return which of a picture's image tokens are patches: all, or with tiles those that are no newline."""
    if assembled.tiling is None or size is None:
        return slice(None)
    return assembled.tiling.block(size).is_patch().nonzero().squeeze(1)


def _encoded(
    assembled: Assembled, sample: Sample, settings: InspectionSettings, size: Size | None
) -> tuple[list[int], list[int], list[int]]:
    """Return the prompt's ids, and those of prompt and caption with their labels (none without a caption)."""
    about: dict[str, Any] = {
        "image_token_id": assembled.image_token_id,
        "tokens_per_image": assembled.image_tokens([] if size is None else [size]),
    }
    prompt = encode_prompt(settings.template, assembled.tokenizer, sample.turns(False), **about)
    if sample.caption is None:
        return prompt, prompt, []
    encoded = encode(settings.template, assembled.tokenizer, sample.turns(True), **about)
    return prompt, encoded.input_ids, encoded.labels


def _features(
    assembled: Assembled, sample: Sample | None, settings: InspectionSettings, size: Size | None
) -> torch.Tensor:
    """Return the visual embeddings that the decoder receives, `(P, D)`; with tiles newlines are among them.

    The sample is `None` for a blank picture, brought to `size` with tiles, to take as many tokens.
    """
    llava, transform = parts_of(assembled.model).llava, assembled.transform(settings.aspect)
    if sample is None:  # the mean colour is 0 in the space that the tower receives
        squares = 1 if assembled.tiling is None or size is None else assembled.tiling.block(size).squares
        pixels = torch.zeros(squares, 3, assembled.image_size, assembled.image_size)
    else:
        picture = transform.upright(sample.open())
        if size is not None and size != (picture.height, picture.width):
            picture = picture.resize((size[1], size[0]))
        pixels = transform(picture)
        pixels = pixels if pixels.dim() == 4 else pixels[None]
    pixels = tower_pixels(assembled.model, pixels, transform)
    sizes: dict[str, Any] = {} if size is None else {"image_sizes": [size]}
    with up_to_the_features(llava.vision_tower, llava.config.vision_feature_layer):
        made: Any = llava.get_image_features(pixels, **sizes)
    return torch.cat(list(made.pooler_output)).to(parts_of(assembled.model).embedding.dtype)


Matches = tuple[list[int], torch.Tensor, torch.Tensor, list[bool | None] | None]
"""One picture's at one depth: ids, similarity and cosine as of `LayerMatches`, and the judge's verdicts."""


def _depth_results(name: str, matches: list[Matches], ends: frozenset[int]) -> DepthResults:
    ids, similarities, cosines, verdicts = zip(*matches, strict=True)
    common = Counter(token for row in ids for token in row)
    cosine = torch.cat(cosines).double().numpy()
    quartiles = np.percentile(cosine, [25, 50, 75]).tolist()
    known = [row for row in verdicts if row is not None]
    judged = [verdict for row in known for verdict in row if verdict is not None]
    return DepthResults(
        name,
        patches=len(cosine),
        judged=len(judged),
        meaningful=sum(judged) if known else None,
        ends=sum(count for token, count in common.items() if token in ends),
        similarity=float(torch.cat(similarities).double().mean()),
        cosine=dict(zip(("q1", "median", "q3"), quartiles, strict=True)) | {"mean": float(cosine.mean())},
        common=common.most_common(12),
    )
