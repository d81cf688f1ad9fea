"""What an analysis finds in one model: matches at every depth, and what stand-ins for a picture lead to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import stdev

from basic_lite.analysis import replacement
from basic_lite.analysis.words import content_kept, token_f1

FEWEST: int = 8
"""Captions below which nothing is said of how much survives."""


@dataclass(frozen=True)
class Depth:
    """What is known of one depth of the decoder, over all pictures.

    Attributes:
        name: `"initial"`, a layer's number from 1, or `"target"`.
        patches: how many there were.
        judged: those of them whose match can be right or wrong.
        meaningful: those of them whose match means something; `None` where nobody judges.
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
class Said:
    """What one picture's stand-ins led to.

    Attributes:
        losses: kind of `replacement.KINDS` -> caption loss, nats per token; empty without a caption.
        by_layer: depth -> caption loss with the tokens matched there, scaled as `replacement.DIRECTION`.
        texts: kind -> greedy text.
        caption: what the picture shows, where somebody has said it.
    """

    losses: dict[str, float]
    by_layer: dict[str, float]
    texts: dict[str, str]
    caption: str | None


@dataclass
class Look:
    """What one model makes of all pictures.

    Attributes:
        depths: initial, layers 1..L, target.
        said: one for each picture.
        views: the first pictures' matches, `(depths, P)` ids, and a verdict for each where somebody judges.
    """

    depths: list[Depth] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    views: list[tuple[list[list[int]], list[list[bool | None]] | None]] = field(default_factory=list)

    def loss(self, kind: str) -> float | None:
        """Return the mean caption loss with `kind` in the picture's place; `None` where it was not tried."""
        return _mean([one.losses[kind] for one in self.said if kind in one.losses])

    def loss_by_layer(self) -> dict[str, float]:
        """Return the mean caption loss with the tokens matched at each of some depths."""
        names = dict.fromkeys(name for one in self.said for name in one.by_layer)
        return {
            name: _mean([one.by_layer[name] for one in self.said if name in one.by_layer]) for name in names
        }

    @property
    def tried(self) -> bool:
        """Whether anything stood in for a picture: a caption to lose, or a text to compare."""
        return any(one.losses or one.texts for one in self.said)

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
        gains = [one.losses[best] - one.losses[replacement.ORIGINAL] for one in self.said if one.losses]
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
        both = [one for one in self.said if kind in one.texts]
        kept = [content_kept(one.texts[kind], one.texts[own]) for one in both]
        caption = [content_kept(one.texts[kind], one.caption) for one in both if one.caption is not None]
        return {
            "token_f1": _mean([token_f1(one.texts[kind], one.texts[own]) for one in both]),
            "content_kept": _mean([share for share in kept if share is not None]),
            "caption_said": _mean([share for share in caption if share is not None]),
        }

    def as_dict(self) -> dict[str, object]:
        """Return what goes into `tokens.json`, ids as they are."""
        return {
            "depths": [asdict(depth) for depth in self.depths],
            "pictures": [asdict(s) for s in self.said],
        }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
