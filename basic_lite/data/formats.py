"""Formats of rows: the columns that data sets have, and what becomes of each."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from basic_lite.data.conversation import HALF_CHARACTER, IMAGE, Turn
from basic_lite.data.rows import RawRow, RowFault, shown

_UNUSED = ("objects", "bbox", "bboxes", "boxes", "tools", "chosen", "rejected", "rejected_response")
"""Columns that a row may have, and of which nothing is trained on."""

MAX_IMAGES: int = 4096
"""Most images of one row."""

ROLES: dict[str, str] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    "system": "system",
}

IMAGE_COLUMNS: tuple[str, ...] = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_files"),
    *("image_url", "image_urls", "img", "picture", "pictures"),
)
"""Columns that hold a row's pictures, one or a list; the first that has any counts."""


def _first(stored: Mapping[str, Any], *keys: str) -> Any:
    """Return the first value among `keys` that is not null."""
    return next((stored[key] for key in keys if stored.get(key) is not None), None)


def _weights(stored: Mapping[str, Any]) -> list[Any]:
    """Return the values that a row or a turn has for its loss."""
    return [stored[key] for key in ("weight", "train", "loss") if stored.get(key) is not None]


def turns_of(column: str, row: Mapping[str, Any]) -> RawRow:
    """Read `{COLUMN: [turn, ...]}`, a turn being `{from, value}` (LLaVA) or `{role, content}` (chat).

    `content` may be a list of parts: `{"type": "text", "text"}`, `{"type": "image"}` with or without the
    picture itself, `{"type": "image_url", "image_url": {"url"}}`. `weight: 0`, `train: false` and
    `loss: false` keep an answer from the loss.
    """
    stored = row.get(column)
    if not isinstance(stored, list) or not stored:
        raise RowFault("malformed_row", f"{column!r} must be a list of at least one turn")
    inside: list[Any] = []
    turns, silent, notes = _turns(stored, 0, inside)
    source = row.get("data_source")
    source = source if isinstance(source, str) else ""
    images = inside or row_images(row)
    return RawRow(row_id(row), images, turns, source, frozenset(silent), frozenset(notes))


def _turns(stored: list[Any], start: int, images: list[Any]) -> tuple[list[Turn], set[int], set[str]]:
    """Return turns that are numbered from `start`, the places of answers without loss, and notes.

    Pictures that turns hold are added to `images`.
    """
    turns: list[Turn] = []
    silent, notes = set(), set()
    for place, turn in enumerate(stored, start):
        turn = turn if isinstance(turn, Mapping) else {}
        speaker, text = _first(turn, "from", "role"), _first(turn, "value", "content")
        if isinstance(text, list) and speaker is not None:
            text = _joined(text, place, images)
        if not isinstance(speaker, str) or not isinstance(text, str):
            detail = f"turn {place} must be {{'from', 'value'}} or {{'role', 'content'}}, of texts"
            raise RowFault("malformed_row", detail)
        role = ROLES.get(speaker)
        if role is None:
            raise RowFault("bad_roles", f"turn {place} is from {shown(speaker)}; allowed: {', '.join(ROLES)}")
        weights = _weights(turn)
        if role == "assistant" and any(value == 0 for value in weights):
            silent.add(place)
        elif any(value != (role == "assistant") for value in weights):
            notes.add("weight_ignored")
        if any(turn.get(key) for key in ("tool_calls", "reasoning_content", "reasoning", "thinking")):
            notes.add("not_used")
        turns.append((role, text))
    return turns, silent, notes


def _joined(parts: list[Any], place: int, images: list[Any]) -> str:
    """Return the text of a turn's parts, with placeholders; add the pictures that parts hold to `images`."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        part = part if isinstance(part, Mapping) else {}
        kind = part.get("type") or next((key for key in ("text", "image", "image_url") if part.get(key)), "")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url", "input_image"):
            image = _first(part, "image", "image_url", "path", "url", "image_path")
            if isinstance(image, Mapping) and isinstance(image.get("url"), str):
                image = image["url"]
            if image is not None:
                images.append(image)
            texts.append(f"{IMAGE}\n")
        elif kind in ("video", "audio", "video_url", "input_audio"):
            detail = f"turn {place} holds {kind!r}: pictures and text are trained on"
            raise RowFault("unsupported_media", detail)
        else:
            detail = f"turn {place} has a part of type {shown(kind)}; text and image are read"
            raise RowFault("malformed_row", detail)
    return "".join(texts)


def question_answer(row: Mapping[str, Any]) -> RawRow:
    """Read `{images: [...], texts: [{user, assistant, source?}], source?}`: the_cauldron, FineVision."""
    texts = row.get("texts")
    if not isinstance(texts, list) or not texts:
        raise RowFault("malformed_row", "'texts' must be a list of at least one {user, assistant}")
    images = row_images(row)
    turns: list[Turn] = []
    for place, pair in enumerate(texts):
        pair = pair if isinstance(pair, dict) else {}
        question, answer = pair.get("user"), pair.get("assistant")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise RowFault("malformed_row", f"texts[{place}] must be {{'user': text, 'assistant': text}}")
        turns += [("user", question), ("assistant", answer)]
    if not any(IMAGE in text for _, text in turns[::2]):  # as usual in this layout, so without a note
        turns[0] = ("user", f"{IMAGE}\n" * len(images) + turns[0][1])
    source = row.get("source") or texts[0].get("source")
    return RawRow(row_id(row), images, turns, source if isinstance(source, str) else "")


EXCHANGES: dict[str, tuple[str, ...]] = {
    "query": ("response",),  # ms-swift
    "instruction": ("output",),  # Alpaca
    "question": ("answer", "answers"),
    "prompt": ("completion", "response"),  # TRL
}
"""Columns of a question, and those of its answer: the first that is there counts."""

_BESIDE_QUESTIONS = ("choices", "options", "context", "hint")
"""Columns that may be part of what is asked, and are not read."""


def exchange(column: str, row: Mapping[str, Any]) -> RawRow:
    """Read one question and its answer, of the columns in `EXCHANGES`, after the pairs of a `history`.

    `input` follows the question on a line of its own (Alpaca, as LLaMA-Factory joins them). Question and
    answer may be lists of turns (TRL), and then those of the question have no loss. Of a list of answers to
    one question (VQAv2, TextVQA) the most frequent counts, among equals the first.
    """
    answered = next(name for name in EXCHANGES[column] if row.get(name) is not None)
    question, answer, history = row[column], row[answered], row.get("history") or []
    if _first(row, "label", "kto_tag") is False:
        raise RowFault("no_supervision", "the row itself says that its answer is a bad one ('label': false)")
    unread = {*chain(*EXCHANGES.values()), *_BESIDE_QUESTIONS} - {answered}
    notes = {"not_used"} if any(_holds(row.get(name)) for name in unread) else set()
    if answered == "answers" and isinstance(answer, list):
        given = [said.get("answer") if isinstance(said, Mapping) else said for said in answer]
        counts = Counter(text for text in given if isinstance(text, str))
        answer = counts.most_common(1)[0][0] if counts else None
        notes |= {"not_used"} if len(counts) > 1 else set()
    if _holds(added := row.get("input")):
        both = isinstance(question, str) and isinstance(added, str)
        question = "\n".join(filter(None, (question, added))) if both else None
    turns: list[Turn] = []
    inside: list[Any] = []
    silent: set[int] = set()
    for pair in [*(history if isinstance(history, list) else [history]), [question, answer]]:
        pair = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        for role, said in zip(("user", "assistant"), pair, strict=True):
            stored = [{"role": role, "content": said}] if isinstance(said, str) else said
            if not isinstance(stored, list) or not all(isinstance(turn, Mapping) for turn in stored):
                detail = f"{column!r} and {answered!r}, 'input' and each pair of 'history' must be texts"
                raise RowFault("malformed_row", detail)
            part, quiet, noted = _turns(stored, len(turns), inside)
            if role == "user":
                quiet = {place for place, turn in enumerate(part, len(turns)) if turn[0] == "assistant"}
            turns, silent, notes = turns + part, silent | quiet, notes | noted
    return RawRow(row_id(row), inside or row_images(row), turns, "", frozenset(silent), frozenset(notes))


def _holds(value: object) -> bool:
    return value not in (None, "", "[]", [], {})


def caption_row(row: Mapping[str, Any]) -> RawRow:
    """Read `{caption, image}`, as WebDataset shards of captions have it."""
    text = row.get("caption")
    if not isinstance(text, str):
        raise RowFault("malformed_row", "'caption' must be a text")
    images = row_images(row)
    return RawRow(row_id(row), images, [("user", f"{IMAGE}\n" * len(images)), ("assistant", text)])


def row_images(row: Mapping[str, Any]) -> list[Any]:
    """Return a row's pictures, from the first column of `IMAGE_COLUMNS` that has any.

    Raises RowFault `malformed_row` if another column has another number of them, or other names.
    """
    columns = {}
    for column in IMAGE_COLUMNS:
        held = row.get(column)
        held = held if isinstance(held, list) else [] if held is None else [held]
        if held:
            columns[column] = held
    if len({len(held) for held in columns.values()}) > 1:
        counts = ", ".join(f"{len(held)} in {column!r}" for column, held in columns.items())
        raise RowFault("malformed_row", f"which pictures are the row's? {counts}")
    first, *others = columns.items() or [("", [])]
    for column, held in others:
        if any(map(_is_another, first[1], held)):
            raise RowFault(
                "malformed_row", f"which pictures are the row's? {first[0]!r} and {column!r} differ"
            )
    return first[1]


def _is_another(path: object, other: object) -> bool:
    """Whether two paths end in different names; bytes and web addresses may be of the same picture."""
    if not (isinstance(path, str) and isinstance(other, str)) or "://" in path + other:
        return False
    return path.replace("\\", "/").rpartition("/")[2] != other.replace("\\", "/").rpartition("/")[2]


FORMATS: dict[str, Callable[[Mapping[str, Any]], RawRow]] = {
    "conversations": lambda row: turns_of("conversations", row),
    "messages": lambda row: turns_of("messages", row),
    "texts": question_answer,
    **{column: partial(exchange, column) for column in EXCHANGES},
    "caption": caption_row,
}
"""The column by which each format is recognised, and the reader of its rows."""


def format_of(row: Mapping[str, Any]) -> str | None:
    """Return the column of `FORMATS` that a row is read by; a question without an answer is none."""
    for column in FORMATS:
        answers = EXCHANGES.get(column, (column,))
        if row.get(column) is not None and any(row.get(name) is not None for name in answers):
            return column
    return None


_VIDEO_LINE = re.compile(r"^[^\S\n]*<(video|audio)>[^\S\n]*$", re.MULTILINE)  # within one line, as above
_PATH_IN_TEXT = re.compile(r"<img>[^<\n]+</img>")  # as Qwen-VL's rows name their pictures


def read_row(row: object, *, stored: bool = False) -> RawRow:
    """Read a row of any known format.

    `stored` says whether its images may be bytes or `{"bytes", "path"}`, as `datasets` keeps them, besides
    paths. Raises RowFault `malformed_row`, `bad_roles`, `unsupported_media`, or `no_supervision` of a row
    that says so itself.
    """
    if not isinstance(row, Mapping):
        raise RowFault("malformed_row", f"a row must be an object, got {type(row).__name__}")
    column = format_of(row)
    if column in (None, *EXCHANGES) and (row.get("chosen") is not None or row.get("rejected") is not None):
        detail = "preferences ('chosen', 'rejected') are not trained on: give one answer, as 'completion'"
        raise RowFault("malformed_row", detail)
    if column is None:
        keys = ", ".join(shown(key, 20) for key in list(row)[:6]) or "no columns"
        asked = next((name for name in EXCHANGES if row.get(name) is not None), None)
        lacks = f"none of the columns {', '.join(FORMATS)}"
        if asked is not None:
            lacks = f"{asked!r} has no answer in {' or '.join(map(repr, EXCHANGES[asked]))},"
        raise RowFault("malformed_row", f"{lacks} in a row with {keys}")
    for media in ("video", "videos", "audio", "audios"):
        if row.get(media):
            raise RowFault("unsupported_media", f"the row has a {media!r}: pictures and text are trained on")
    weights = _weights(row)
    if any(value == 0 for value in weights):
        raise RowFault("no_supervision", "the row itself says not to train on it (weight, train or loss)")
    raw = FORMATS[column](row)
    turns, silent, notes = raw.turns, raw.silent, set(raw.notes)
    if any(value != 1 for value in weights):
        notes.add("weight_ignored")
    if any(_holds(row.get(key)) for key in (*_UNUSED, *(FORMATS.keys() - {column}))):
        notes.add("not_used")
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        turns, silent = [("system", system), *turns], frozenset(place + 1 for place in silent)
    for place, (role, text) in enumerate(turns):
        if not text.isascii() and HALF_CHARACTER.search(text):
            detail = f"turn {place} holds half of a character, which no tokenizer reads"
            raise RowFault("malformed_row", detail)
        if role == "user" and "<" in text and (line := _VIDEO_LINE.search(text)):
            detail = f"turn {place} asks about a {line[1]}: pictures are trained on"
            raise RowFault("unsupported_media", detail)
        if role == "user" and not raw.images and (named := _PATH_IN_TEXT.search(text)):
            detail = (
                f"turn {place} names a picture, {shown(named[0])}, that no column holds: give its path in "
            )
            raise RowFault("placeholder_mismatch", f"{detail}'images', and {IMAGE} in its place")
    if len(raw.images) > MAX_IMAGES:
        raise RowFault("malformed_row", f"{len(raw.images)} images in one row; at most {MAX_IMAGES} are read")
    images = [_image(image, stored) for image in raw.images]
    return replace(raw, images=images, turns=turns, silent=silent, notes=frozenset(notes))


def _image(image: object, stored: bool) -> object:
    if isinstance(image, Mapping) and not stored:  # in JSON only a path or a URL can stand there
        path = _first(image, "path", "url", "image")
        image = image if path is None else path
    if isinstance(image, str) and image.startswith("data:"):
        try:
            return base64.b64decode(image.partition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            raise RowFault("undecodable_image", "an image given as a data: URL is no base64") from None
    if not isinstance(image, (str, bytes, Mapping) if stored else str):
        raise RowFault("malformed_row", f"an image must be a path, got {type(image).__name__}")
    if isinstance(image, str) and not image.strip():
        raise RowFault("malformed_row", "an image path is empty; a text-only row has no 'image' at all")
    return image


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
