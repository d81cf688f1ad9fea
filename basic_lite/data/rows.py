"""The normal form of a training row, and the faults that keep a row from having one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from basic_lite.data.conversation import IMAGE, Turn


@dataclass(frozen=True)
class Finding:
    """Something wrong with a row.

    Attributes:
        row: its number, from 0.
        id: its own name.
        code: one of `basic_lite.data.rows.CODES`.
        detail: one line for a person.
    """

    row: int
    id: str
    code: str
    detail: str

    def as_dict(self) -> dict[str, object]:
        """Return the finding as a JSON object; of an endless id, the start."""
        return asdict(self) | {"id": self.id[:1000]}


NOTES: frozenset[str] = frozenset({"wrong_suffix"})
"""Codes of findings that do not keep a row from training as it stands."""

CODES: tuple[str, ...] = (
    "missing_image",
    "undecodable_image",
    "wrong_suffix",
    "placeholder_mismatch",
    "bad_roles",
    "empty_answer",
    "no_supervision",
    "too_long",
    "duplicate_id",
    "path_outside_root",
    "oversized_image",
    "malformed_row",
)
"""Every code that a finding may carry."""

STILL_TRAINS: frozenset[str] = NOTES | {"too_long", "duplicate_id"}
"""Codes of rows that training keeps: a long row is cut behind some supervision, an id is only a name."""


class RowFault(ValueError):
    """A row that cannot be trained on: `code` is one of `CODES`, the text says what is wrong."""

    def __init__(self, code: str, detail: str | None = None) -> None:
        if detail is None:  # DataLoader raises a worker's error anew, from the text of its traceback alone
            code, detail = "malformed_row", code.rstrip().rpartition("\n")[2].removeprefix(_NAME)
        assert code in CODES, code
        super().__init__(detail)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.code, self.detail)  # else pickle would give the text alone


_NAME: str = f"{RowFault.__module__}.{RowFault.__qualname__}: "


@dataclass(frozen=True)
class ImageRef:
    """Where the bytes of one picture are.

    Attributes:
        name: the picture's path under `root`, as the row gives it; a label where `data` is given.
        root: folder or archive that the path is relative to.
        data: the encoded bytes themselves, for rows that carry them.
        follow_links: whether links under `root` may lead out of it.
    """

    name: str
    root: str | None = None
    data: bytes | None = field(default=None, repr=False)
    follow_links: bool = False


@dataclass(frozen=True)
class Sample:
    """A row in normal form.

    The turns start with the user, alternate and end with the assistant; there is one `<image>` per image and
    all of them stand in the first user turn.

    Attributes:
        id: the row's own name; not necessarily unique.
        images: where the pictures are, in the order of their placeholders.
        turns: `(role, text)` with role `"user"` or `"assistant"`.
        source: which data set the row is from, empty where the file does not say.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: list[Turn]
    source: str = ""


@dataclass(frozen=True)
class RawRow:
    """What a layout's reader makes of a row, before the turns are checked.

    Attributes:
        id: the row's own name.
        images: paths, encoded bytes, or `{"bytes", "path"}` mappings as `datasets` stores undecoded pictures.
        turns: `(role, text)` in file order, roles not yet checked.
        source: which data set the row is from.
    """

    id: str
    images: list[object]
    turns: list[Turn]
    source: str = ""


def caption_fault(images: int, turns: int) -> RowFault | None:
    """Return what keeps a row in normal form from stage 1, which takes one image and its caption."""
    if images != 1:
        return RowFault("placeholder_mismatch", f"{images} images: stage 1 takes one image and its caption")
    if turns != 2:
        return RowFault("bad_roles", f"{turns} turns: stage 1 takes one question and its caption")
    return None


def normal_form(raw: RawRow) -> tuple[list[object], list[Turn]]:
    """Check a row's turns and put the placeholders where the model expects them.

    A leading assistant turn is dropped, as LLaVA does. Placeholders move to the head of the first user turn,
    each on a line of its own (`preprocess_multimodal` of LLaVA).

    Args:
        raw: what the layout's reader found.

    Returns:
        The images and the turns.

    Raises:
        RowFault: `bad_roles`, `empty_answer`, `no_supervision` or `placeholder_mismatch`.
    """
    turns = raw.turns
    if turns and turns[0][0] == "assistant":
        turns = turns[1:]
    if not any(role == "assistant" for role, _ in turns):
        raise RowFault("no_supervision", f"no answer behind a question among {len(raw.turns)} turns")
    for place, (role, text) in enumerate(turns):
        expected = "assistant" if place % 2 else "user"
        if role != expected:
            raise RowFault("bad_roles", f"turn {place} is {role!r} where {expected!r} belongs")
        if place % 2 and not text.strip():
            raise RowFault("empty_answer", f"turn {place}, an answer, is empty")
    if len(turns) % 2:
        raise RowFault("bad_roles", "the last turn is 'user': a row ends with an answer")
    placed = sum(text.count(IMAGE) for _, text in turns)
    if placed != len(raw.images):
        raise RowFault("placeholder_mismatch", f"{placed} {IMAGE} in the turns for {len(raw.images)} images")
    if not placed:
        return raw.images, turns
    first = turns[0][1]
    if first.count(IMAGE) != placed:
        raise RowFault("placeholder_mismatch", f"{IMAGE} outside the first user turn")
    text = (f"{IMAGE}\n" * placed + first.replace(IMAGE, "").strip()).strip()
    return raw.images, [("user", text), *turns[1:]]


# Texts that strangers wrote, for messages and for comparison.


def shown(value: object, limit: int = 80) -> str:
    """Return `value` as it appears in a message: quoted, one line, at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


def text_hash(text: str) -> int:
    """Return 64 bits that tell texts apart, the same in every process; 0 for the empty text."""
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


# Layouts of published rows: one function each, from the row as stored to a `RawRow`.
#
# To add a layout, write such a function and enter it in `LAYOUTS` with the columns that tell it from the
# others.

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
