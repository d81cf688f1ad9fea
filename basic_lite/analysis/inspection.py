"""One model shown every picture: nearest tokens at every layer, and the results of the replacement test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
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
    """One picture through the decoder; entry 0 is what goes in, entry l what layer l (of 1..L) leaves.

    The last layer is taken as it leaves the layer, before the decoder's final norm: the space that the first
    layer receives.

    Attributes:
        tokens: `(P,)` int64 each, the token nearest to each patch's state by cosine.
        similarity: `(P,)` fp32 each, that cosine.
        cosine: `(P,)` fp32 each, the cosine of the state to the initial embedding; all ones at entry 0.
        target: `(P, D)` fp32, the weighted sum of the states after layers 1..k.
    """

    tokens: list[torch.Tensor] = field(default_factory=list)
    similarity: list[torch.Tensor] = field(default_factory=list)
    cosine: list[torch.Tensor] = field(default_factory=list)
    target: torch.Tensor | None = None


@contextmanager
def watch_layers(model: nn.Module, patch: torch.Tensor, weights: Sequence[float]) -> Iterator[LayerMatches]:
    """Match the patches' states after every decoder layer, while one row passes.

    A hook on each layer gathers `(P, D)` states, matches them and lets them go: beside the forward pass
    itself the initial embeddings and the target are all that is held.

    Args:
        model: the LLaVA, wrapped or not.
        patch: `(P,)` int64, where the patches stand in the row, on the model's device.
        weights: `w_1 .. w_k` of the target.

    Yields:
        The matches, complete when the forward pass is done.
    """
    parts, seen = parts_of(model), LayerMatches()
    initial: list[torch.Tensor] = []

    def note(states: torch.Tensor) -> None:
        ids, values = match_tokens(states, parts.embedding)
        seen.tokens.append(ids.cpu())
        seen.similarity.append(values.cpu())
        seen.cosine.append(F.cosine_similarity(states.float(), initial[0], dim=1).cpu())

    def receive(decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        states = kwargs["inputs_embeds"][0].index_select(0, patch)
        initial.append(states.float())
        seen.target = torch.zeros_like(initial[0])
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


FEWEST: int = 8
"""With fewer captions it is not reported how much survives."""


@dataclass(frozen=True)
class DepthResults:
    """The results at one depth of the decoder, over all pictures.

    Attributes:
        name: `"initial"`, a layer's number from 1, or `"target"`.
        patches: how many there were.
        judged: those of them whose match can be right or wrong.
        meaningful: those of them whose match means something; `None` without a judge.
        ends: patches whose match is a special token or a newline.
        similarity: mean cosine of a patch and its match.
        cosine: quartiles and mean of the cosine to the initial embedding, `q1`, `median`, `q3`, `mean`.
        common: the most frequent matches, id and count.
    """

    name: str
    patches: int
    judged: int
    meaningful: int | None
    ends: int
    similarity: float
    cosine: dict[str, float]
    common: list[tuple[int, int]]

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
    """The replacement test on one picture.

    Attributes:
        losses: kind of `replacement.KINDS` -> caption loss, nats per token; empty without a caption.
        by_layer: depth -> caption loss with the tokens matched there, scaled as `replacement.DIRECTION`.
        texts: kind -> greedy text.
        caption: what the picture shows, where a caption is given.
    """

    losses: dict[str, float]
    by_layer: dict[str, float]
    texts: dict[str, str]
    caption: str | None


@dataclass
class ModelResults:
    """The results of one model on all pictures.

    Attributes:
        depths: initial, layers 1..L, target.
        pictures: one for each picture.
        views: the first pictures' matches, `(depths, P)` ids, and a verdict for each where there is a judge.
    """

    depths: list[DepthResults] = field(default_factory=list)
    pictures: list[PictureResults] = field(default_factory=list)
    views: list[tuple[list[list[int]], list[list[bool | None]] | None]] = field(default_factory=list)

    def loss(self, kind: str) -> float | None:
        """Return the mean caption loss with `kind` in the picture's place; `None` where it was not tried."""
        return _mean([picture.losses[kind] for picture in self.pictures if kind in picture.losses])

    def loss_by_layer(self) -> dict[str, float]:
        """Return the mean caption loss with the tokens matched at each of some depths."""
        names = dict.fromkeys(name for picture in self.pictures for name in picture.by_layer)
        return {
            name: _mean([picture.by_layer[name] for picture in self.pictures if name in picture.by_layer])
            for name in names
        }

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

        Returns:
            `token_f1` and `content_kept` against the original's text; `caption_said`, the share of the
            caption's content words that the text has. Means over pictures.
        """
        own = replacement.ORIGINAL
        both = [picture for picture in self.pictures if kind in picture.texts]
        kept = [content_kept(picture.texts[kind], picture.texts[own]) for picture in both]
        caption = [
            content_kept(picture.texts[kind], picture.caption)
            for picture in both
            if picture.caption is not None
        ]
        return {
            "token_f1": _mean([token_f1(picture.texts[kind], picture.texts[own]) for picture in both]),
            "content_kept": _mean([share for share in kept if share is not None]),
            "caption_said": _mean([share for share in caption if share is not None]),
        }

    def as_dict(self) -> dict[str, object]:
        """Return what goes into `tokens.json`, ids as they are."""
        return {
            "depths": [asdict(depth) for depth in self.depths],
            "pictures": [asdict(s) for s in self.pictures],
        }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class InspectionSettings:
    """How a model is inspected.

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
def inspect_layers(
    assembled: Assembled,
    samples: list[Sample],
    judges: list[Judge | None],
    settings: InspectionSettings,
    advance: Callable[[], None] = lambda: None,
) -> ModelResults:
    """Show a model every picture, one at a time.

    Held at a time: one row's forward pass, or four with stand-ins; of every picture `(L + 2, P)` numbers.

    Args:
        assembled: the model.
        samples: at least one.
        judges: the judge of each picture's matches, or `None`.
        settings: how to inspect it.
        advance: called after each picture.
    """
    parts = parts_of(assembled.model)
    for_inference(assembled.model)
    decoder = parts.decoder.config
    k, depth = supervised_layers(decoder, settings.layers), decoder.num_hidden_layers
    tried = settings.tried if settings.tried is not None else tuple(sorted({max(k // 2, 1), k, depth}))
    tally, results = _Tally(depth, settings.ends), ModelResults()
    base = slice(assembled.tokens_per_image)
    blank = previous = None
    for number, (sample, judge) in enumerate(zip(samples, judges, strict=True)):
        size = None if assembled.tiling is None else _size(assembled, sample)
        kept = _patches(assembled, size)
        features = _features(assembled, sample, settings, size)
        if blank is None or size is not None:  # the floors take as many tokens as the picture
            blank = _features(assembled, None, settings, size)
        if len(samples) > 1 and (previous is None or size is not None):
            previous = _features(assembled, samples[number - 1], settings, size)
        prompt = _ids(assembled, sample, settings, size, answered=False)
        answered = sample.caption is not None
        ids, labels = _ids(assembled, sample, settings, size, answered=True) if answered else (prompt, None)
        embeds = replacement.put_in(assembled, ids, [features])
        places = torch.tensor(ids, device=embeds.device).eq(assembled.image_token_id).nonzero().squeeze(1)
        with watch_layers(assembled.model, places[kept], layer_weights(k, settings.weighting)) as seen:
            own = _run(assembled, embeds, labels)
        target = match_tokens(seen.target, parts.embedding)
        toward = F.cosine_similarity(seen.target, features[kept].float(), dim=1).cpu()
        verdicts = tally.add(seen, (target[0].cpu(), target[1].cpu(), toward), judge, base)
        if len(results.views) < settings.views:
            rows = [tokens[base].tolist() for tokens in [*seen.tokens, target[0].cpu()]]
            results.views.append((rows, verdicts))
        floors = {replacement.BLANK: blank}
        if previous is not None:
            floors[replacement.SHUFFLED] = previous

        def matched(
            tokens: torch.Tensor, features: Any = features, kept: Any = kept
        ) -> dict[str, torch.Tensor]:
            made = replacement.token_stand_ins(assembled, tokens, features[kept])
            if assembled.tiling is None:
                return made
            return {name: features.index_copy(0, kept, some) for name, some in made.items()}

        stand_ins = matched(seen.tokens[0]) | floors
        losses, by_layer = {}, {}
        if answered:
            by = {str(layer): matched(seen.tokens[layer])[replacement.DIRECTION] for layer in tried}
            losses = {replacement.ORIGINAL: own}
            losses |= replacement.caption_losses(assembled, ids, labels, stand_ins)
            by_layer = {"initial": losses[replacement.DIRECTION]}
            by_layer |= replacement.caption_losses(assembled, ids, labels, by)
        texts = {}
        if settings.max_new_tokens:
            every = {replacement.ORIGINAL: features} | stand_ins
            texts = replacement.greedy_texts(
                assembled, settings.template, prompt, every, settings.max_new_tokens
            )
        results.pictures.append(PictureResults(losses, by_layer, texts, sample.caption))
        previous = features
        advance()
    results.depths = list(tally.depths())
    return results


def _run(assembled: Assembled, embeds: torch.Tensor, labels: list[int] | None) -> float | None:
    """Run one row; return its caption's loss, or `None` without a caption."""
    if labels is not None:
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


def _ids(
    assembled: Assembled, sample: Sample, settings: InspectionSettings, size: Size | None, answered: bool
) -> object:
    tokens = assembled.image_tokens([] if size is None else [size])
    about = {"image_token_id": assembled.image_token_id, "tokens_per_image": tokens}
    turns = sample.turns(answered)
    if not answered:
        return encode_prompt(settings.template, assembled.tokenizer, turns, **about)
    encoded = encode(settings.template, assembled.tokenizer, turns, **about)
    return encoded.input_ids, encoded.labels


def _features(
    assembled: Assembled, sample: Sample | None, settings: InspectionSettings, size: Size | None = None
) -> torch.Tensor:
    """Return the visual embeddings that the decoder receives; of a blank picture for `None`.

    Args:
        assembled: the model.
        sample: the picture.
        settings: how to inspect it.
        size: with tiles, height and width that the picture is brought to, to take as many tokens.

    Returns:
        `(P, D)`; with tiles newlines are among them.
    """
    llava, transform = parts_of(assembled.model).llava, assembled.transform(settings.aspect)
    if sample is None:  # the mean colour is 0 in the space that the tower receives
        squares = 1 if assembled.tiling is None or size is None else assembled.tiling.block(size).squares
        pixels = torch.zeros(squares, 3, assembled.image_size, assembled.image_size)
    else:
        picture = transform.upright(sample.open())
        pixels = transform(picture if size in (None, picture.size[::-1]) else picture.resize(size[::-1]))
        pixels = pixels if pixels.dim() == 4 else pixels[None]
    pixels = tower_pixels(assembled.model, pixels, transform)
    sizes = {} if size is None else {"image_sizes": [size]}
    with up_to_the_features(llava.vision_tower, llava.config.vision_feature_layer):
        features = torch.cat(list(llava.get_image_features(pixels, **sizes).pooler_output))
    return features.to(llava.get_input_embeddings().weight.dtype)


class _Tally:
    """Adds up the matches at every depth, picture by picture."""

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
        base: slice,
    ) -> list[list[bool | None]] | None:
        """Add one picture; of its patches those of the whole picture, `base`, are judged."""
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
                verdicts.append(judge(ids[base]))
                self.judged[place] += sum(value is not None for value in verdicts[-1])
                self.meaningful[place] += sum(value is True for value in verdicts[-1])
        return verdicts or None

    def depths(self) -> Iterator[DepthResults]:
        for place, name in enumerate(self.names):
            cosine = torch.cat(self.cosine[place]).double().numpy()
            quartiles = np.percentile(cosine, [25, 50, 75]).tolist()
            summary = dict(zip(("q1", "median", "q3"), quartiles, strict=True)) | {
                "mean": float(cosine.mean())
            }
            yield DepthResults(
                name,
                len(cosine),
                self.judged[place],
                self.meaningful[place] if self.judges else None,
                sum(count for token, count in self.common[place].items() if token in self.ends),
                float(torch.cat(self.similarity[place]).double().mean()),
                summary,
                self.common[place].most_common(12),
            )
