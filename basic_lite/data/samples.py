"""The normal form of a training row, and the faults that keep a row from having one."""

from __future__ import annotations

from dataclasses import dataclass, field

from basic_lite.conversation import IMAGE, Turn

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
