"""Layouts of published rows: one function each, from the row as stored to a `RawRow`.

To add a layout, write such a function and enter it in `LAYOUTS` with the columns that tell it from the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from basic_lite.conversation import IMAGE
from basic_lite.data.samples import RawRow, RowFault
from basic_lite.data.texts import shown

MAX_IMAGES: int = 4096
"""Most images of one row."""

ROLES: dict[str, str] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def llava(row: Mapping[str, Any]) -> RawRow:
    """Read `{id, image?, conversations: [{from, value}]}`: LLaVA, LLaVA-NeXT-Data, LLaVA-ReCap."""
    conversations = row.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise RowFault("malformed_row", "'conversations' must be a list of at least one {from, value}")
    turns = []
    for place, turn in enumerate(conversations):
        speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise RowFault("malformed_row", f"turn {place} must be {{'from': text, 'value': text}}")
        role = ROLES.get(speaker)
        if role is None:
            raise RowFault("bad_roles", f"turn {place} is from {shown(speaker)}; allowed: {', '.join(ROLES)}")
        turns.append((role, text))
    images = row.get("image")
    images = [] if images is None else images if isinstance(images, list) else [images]
    source = row.get("data_source")
    return RawRow(row_id(row), images, turns, source if isinstance(source, str) else "")


def question_answer(row: Mapping[str, Any]) -> RawRow:
    """Read `{images: [...], texts: [{user, assistant, source?}], source?}`: the_cauldron, FineVision."""
    texts, images = row.get("texts"), row.get("images")
    if not isinstance(texts, list) or not texts:
        raise RowFault("malformed_row", "'texts' must be a list of at least one {user, assistant}")
    if images is not None and not isinstance(images, list):
        raise RowFault("malformed_row", f"'images' must be a list, got {type(images).__name__}")
    turns = []
    for place, pair in enumerate(texts):
        question, answer = (
            (pair.get("user"), pair.get("assistant")) if isinstance(pair, dict) else (None, None)
        )
        if not isinstance(question, str) or not isinstance(answer, str):
            raise RowFault("malformed_row", f"texts[{place}] must be {{'user': text, 'assistant': text}}")
        turns += [("user", question), ("assistant", answer)]
    images = images or []
    turns[0] = ("user", f"{IMAGE}\n" * len(images) + turns[0][1])
    source = row.get("source") or texts[0].get("source")
    return RawRow(row_id(row), images, turns, source if isinstance(source, str) else "")


LAYOUTS: dict[str, Callable[[Mapping[str, Any]], RawRow]] = {"conversations": llava, "texts": question_answer}
"""The column that gives a layout away, and its reader."""


def read_row(row: object, *, stored: bool = False) -> RawRow:
    """Read a row of any known layout.

    Args:
        row: the row as stored.
        stored: whether its images may be bytes or `{"bytes", "path"}`, as `datasets` keeps them, besides
        paths.

    Returns:
        Its id, images and turns.

    Raises:
        RowFault: `malformed_row` or `bad_roles`.
    """
    if not isinstance(row, Mapping):
        raise RowFault("malformed_row", f"a row must be an object, got {type(row).__name__}")
    for column, layout in LAYOUTS.items():
        if column in row:
            raw = layout(row)
            break
    else:
        keys = ", ".join(shown(key, 20) for key in list(row)[:6]) or "no columns"
        raise RowFault("malformed_row", f"none of the columns {', '.join(LAYOUTS)} in a row with {keys}")
    for place, (_, text) in enumerate(raw.turns):
        if not (text.isascii() or _whole(text)):
            raise RowFault(
                "malformed_row", f"turn {place} holds half of a character, which no tokenizer reads"
            )
    if len(raw.images) > MAX_IMAGES:
        raise RowFault("malformed_row", f"{len(raw.images)} images in one row; at most {MAX_IMAGES} are read")
    for image in raw.images:
        if not isinstance(image, (str, bytes, Mapping) if stored else str):
            raise RowFault("malformed_row", f"an image must be a path, got {type(image).__name__}")
        if isinstance(image, str) and not image.strip():
            raise RowFault("malformed_row", "an image path is empty; a text-only row has no 'image' at all")
    return raw


def row_id(row: Mapping[str, Any]) -> str:
    """Return the row's id as text, empty where it has none."""
    value = row.get("id", "")
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # some mixes number their rows
    if value is None:
        return ""
    raise RowFault("malformed_row", f"'id' must be text or a number, got {type(value).__name__}")


def _whole(text: str) -> bool:
    """Return whether every character is one: JSON may write half of a pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
