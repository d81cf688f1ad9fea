"""The text of training rows alone, for what is fitted or measured without a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from basic_lite.data.samples import RowFault

if TYPE_CHECKING:
    from basic_lite.data.readers import Rows


def answers_of(rows: Rows) -> Iterator[str]:
    """Yield what the assistant says in the usable rows, in a mixed order that is always the same."""
    for row in np.random.default_rng(0).permutation(np.flatnonzero(rows.usable)):
        try:
            turns = rows[int(row)].turns
        except RowFault:
            continue  # such a row is left out or replaced while training
        yield from (text for role, text in turns if role == "assistant")
