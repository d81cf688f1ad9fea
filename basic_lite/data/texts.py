"""Texts that strangers wrote, for messages and for comparison."""

from __future__ import annotations

import hashlib


def shown(value: object, limit: int = 80) -> str:
    """Return `value` as it appears in a message: quoted, one line, at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an error's text on one line, its kind where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def text_hash(text: str) -> int:
    """Return 64 bits that tell texts apart, the same in every process; 0 for the empty text."""
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
