"""How much of an attention map exists at once where no kernel of torch's makes it; needs no torch."""

from __future__ import annotations

MAP_ELEMENTS: int = 1 << 24
"""Most elements of a piece: 64 MB in fp32."""

_QUERIES: int = 256
"""Fewest queries of a piece that is not the whole; keys that none of its queries can see are left out."""

WORKING: float = 4.5
"""Pieces in fp32 that backward holds: scores, attention, its gradient, their product, half a narrow one."""


def queries_per_piece(rows: int, heads: int, count: int, width: int) -> int:
    """Return how many queries go through at once; `count` and `width` are queries and keys per row."""
    return min(max(MAP_ELEMENTS // (rows * heads * width), 1), max(count // 4, _QUERIES), count)


def working_bytes(rows: int, heads: int, count: int, width: int) -> float:
    """Return the bytes that backward through capped attention holds for its map."""
    return WORKING * 4 * rows * heads * queries_per_piece(rows, heads, count, width) * width
