"""Which patches of a picture hold text: those with thin strokes and thin gaps between them.

What tells letters from things is how thin they are (Epshtein et al., "Detecting Text in Natural Scenes with
Stroke Width Transform", CVPR 2010). Two top-hats of the brightness show it without a search: a closing fills
dark strokes narrower than its square, an opening removes bright ones, and each pixel that either changes by
`CONTRAST` is a stroke's. Text has both, ink and the gaps inside and between letters, whichever of the two is
the darker; a rope or a window bar has one of them. Fences and fine fabric are taken for text, too; letters
with strokes of `WIDTH` pixels and more, or of their ground's brightness, are not.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

WIDTH: int = 5
"""Side of the square in pixels of the tower's input: strokes and gaps narrower than this are seen."""

CONTRAST: int = 40
"""Of 255: how much a stroke differs from its ground."""

SHARE: float = 0.08
"""Share of a patch's pixels that must be dark strokes, and bright ones as well."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def lettering(squares: torch.Tensor, patch: int) -> torch.Tensor:
    """Return `(squares, h // patch, w // patch)` bool: which patches of `(squares, 3, h, w)` uint8 hold text.

    The squares, on the CPU, are what the tower receives before it is normalised. `patch` is the side of one
    in pixels; pooled patches count as one. A rest at the right and bottom is ignored.
    """
    luma = torch.einsum("schw,c->shw", squares.float(), torch.tensor(_LUMA)).round_().to(torch.uint8)
    dark, bright = _lowest(_highest(luma)) - luma, luma - _highest(_lowest(luma))
    shares = (F.avg_pool2d((strokes > CONTRAST).float(), patch) for strokes in (dark, bright))
    return torch.minimum(*shares) >= SHARE


def _highest(values: torch.Tensor) -> torch.Tensor:
    """Return the highest value of the square around each pixel, `(S, h, w)`.

    By maxima of shifted bytes along one side after the other: thirty times as fast as pooling of floats.
    """
    for side in (1, 2):
        length, half = values.shape[side], WIDTH // 2
        first, last = values.narrow(side, 0, 1), values.narrow(side, length - 1, 1)
        padded = torch.cat([*[first] * half, values, *[last] * half], side)
        values = padded.narrow(side, 0, length)
        for shift in range(1, WIDTH):
            values = torch.maximum(values, padded.narrow(side, shift, length))
    return values


def _lowest(values: torch.Tensor) -> torch.Tensor:
    return 255 - _highest(255 - values)
