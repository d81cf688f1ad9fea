"""What the figures mean for a training, in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from basic_lite.premise.measuring import Figures, Measured
from basic_lite.targets import TargetKind

HOLDS: float = 0.5
"""Share of tokens nearest to their own row from which a target is called one that speaks of its token."""

PARTLY: float = 0.1
"""The share below which a target is called no teacher at all; a guess is right in one case of V."""

Case = Literal["holds", "mended", "fails", "untrained"]


@dataclass(frozen=True)
class Verdict:
    """Whether a decoder can teach, and with which target.

    Attributes:
        case: `"holds"` (the paper's target will do), `"mended"` (a fitted one does better, or is the only one
            that does), `"fails"` (no target that was tried does), `"untrained"` (the model does not know this
            text: nothing to learn).
        words: the same in a sentence or two.
        target: the recommended kind; `None` where there is none.
        layers: the recommended k.
    """

    case: Case
    words: str
    target: TargetKind | None
    layers: int | None

    def json(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self)


def judge(found: Measured, tried: bool = True) -> Verdict:
    """Judge a decoder by what was measured.

    A decoder that predicts text no better than the frequencies of its tokens knows nothing, whatever its
    states look like: those of random weights may hold their token, too. Otherwise the simplest target is
    taken that finds its own token in at least half of the cases, at the largest k that was looked at; if none
    does there, at the next.

    Args:
        found: what was measured; its targets are looked at in the order raw, centred, translated.
        tried: whether fitted targets were tried at all.
    """
    if found.loss >= found.unigram:
        return Verdict("untrained", _untrained(found), None, None)
    raw = found.targets["raw"]
    half = max(raw)
    for k in sorted(raw, reverse=True):
        for kind, by_layers in found.targets.items():
            if k in by_layers and by_layers[k].own >= HOLDS:
                fewer = "" if k == half else f" with k = {k} instead of {half}"
                if kind == "raw":
                    words = f"The premise holds{fewer}: {_share(by_layers[k])}."
                    return Verdict("holds", words, kind, k)
                means = "taking the mean state off" if kind == "centred" else "a linear map per layer"
                mended = f"The states do hold their token: {means} brings it back{fewer}"
                words = f"{_stands(raw[half], half)} {mended} ({_share(by_layers[k])})."
                return Verdict("mended", words, kind, k)
    words = _stands(raw[half], half)
    if not tried:
        return Verdict("fails", f"{words} Linear maps were not tried.", None, None)
    best = {kind: by[half].own for kind, by in found.targets.items()}
    kind = max(best, key=lambda name: best[name])
    words += f" Of what was tried {kind} is best, with {_percent(best[kind])}: too little for a teacher."
    return Verdict("fails", words, None, None)


def _stands(raw: Figures, k: int) -> str:
    """Say how the paper's target stands at k."""
    fails = "fails" if raw.own < PARTLY else "holds in part only"
    return (
        f"The premise {fails}: over layers 1 to {k} {_share(raw)}, and a constant "
        f"makes up {_percent(raw.common)} of it."
    )


def _untrained(found: Measured) -> str:
    return (
        f"Nothing to learn from: the model predicts this text at {found.loss:.2f} nats per token, no better "
        f"than the frequencies of its tokens ({found.unigram:.2f}; a guess: "
        f"{math.log(found.vocabulary):.2f}). Its weights are random or broken, or the text is of a language "
        "that it never read."
    )


def _share(figures: Figures) -> str:
    return (
        f"{_percent(figures.own)} of the tokens are nearest to their own row, at cosine {figures.cosine:.2f}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
