"""The normal form of a training row, and the faults that keep a row from having one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from basic_lite.data.conversation import IMAGE, Turn

Exif = Literal["ignore", "rotate"]
"""What is done with the rotation that EXIF asks for.

`ignore` is what LLaVA does, and what boxes and answers about COCO's pictures refer to; `rotate` shows a
phone's photos upright, as a viewer and transformers' `load_image` do. Whatever a run was trained with,
evaluation, chat and its export's users must do, too: it belongs to the run's transform.
"""

MAX_LENGTH: int = 2048
"""Default limit on the tokens of a row, image tokens included: LLaVA-1.5's."""

TOKENS_PER_IMAGE: int = 576
"""Those of LLaVA-1.5's tower, CLIP-L-336, where no tower is named."""

WHITE: str = "#ffffff"
"""Default background of transparent pictures."""


def colour(text: str) -> str:
    """Return a colour as `#rrggbb`; raises ValueError if it is no HTML name and not of that form."""
    from PIL import ImageColor

    name = text.strip().lower()
    if name in ImageColor.colormap or re.fullmatch("#[0-9a-f]{6}", name):
        return "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(name))
    raise ValueError(f"a colour is a name such as white, or #rrggbb, got {text!r}")


@dataclass(frozen=True)
class Finding:
    """Something wrong with a row."""

    row: int  # its number, from 0
    id: str  # its own id
    code: str  # one of `CODES`
    detail: str  # one line for a person
    file: str = ""  # in a mix of data sets, the one that it is from
    row_in_file: int = 0  # its number there

    @property
    def where(self) -> str:
        """The row, in a mix with its file, as messages name it."""
        return f"row {self.row_in_file} of {self.file}" if self.file else f"row {self.row}"

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a JSON object; a very long id is cut."""
        known = asdict(self) | {"id": self.id[:1000]}
        return known if self.file else {key: known[key] for key in ("row", "id", "code", "detail")}


ROW_NOTES: tuple[str, ...] = ("no_placeholder", "dropped_turn", "weight_ignored", "not_used")
"""Codes of notes about a row's text, in the order of the bits that an index keeps of them."""

PICTURE_NOTES: tuple[str, ...] = ("wrong_suffix", "other_name", "one_colour", "scaled_range", "exif_rotation")
"""Codes of notes about a picture."""

NOTES: frozenset[str] = frozenset((*ROW_NOTES, *PICTURE_NOTES))
"""Codes of findings that do not keep a row from training as it stands."""

CODES: tuple[str, ...] = (
    *("missing_image", "undecodable_image", "wrong_suffix", "placeholder_mismatch", "bad_roles"),
    *("empty_answer", "no_supervision", "too_long", "duplicate_id", "path_outside_root"),
    *("oversized_image", "malformed_row", "unsupported_media"),
    *("other_name", "one_colour", "scaled_range", "exif_rotation"),
    *ROW_NOTES,
)
"""Every code of a finding. Index files and tables of pictures hold their places: add at the end."""

STILL_TRAINS: frozenset[str] = NOTES | {"too_long", "duplicate_id"}
"""Codes of rows that training keeps: a long row is cut after some supervision, an id is only a name."""


class RowFault(ValueError):
    """A row that cannot be trained on: `code` is one of `CODES`, the text is the reason."""

    def __init__(self, code: str, detail: str | None = None) -> None:
        if detail is None:  # DataLoader raises a worker's error again, from its traceback's text
            code, detail = "malformed_row", code.rstrip().rpartition("\n")[2].removeprefix(_NAME)
        assert code in CODES, code
        super().__init__(detail)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.code, self.detail)  # pickle would keep the text alone


_NAME: str = f"{RowFault.__module__}.{RowFault.__qualname__}: "


@dataclass(frozen=True)
class ImageRef:
    """Where the bytes of one picture are."""

    name: str  # path under `root`, as the row gives it; a label where `data` is given
    root: str | None = None  # folder or archive that the path is relative to
    data: bytes | None = field(default=None, repr=False)  # the encoded bytes, if the row holds them
    follow_links: bool = False  # whether links under `root` may lead out of it


@dataclass(frozen=True)
class Sample:
    """A row in normal form.

    The turns start with the user, alternate and end with the assistant; there is one `<image>` per image, in
    user turns. In an answer `<image>` is text.
    """

    id: str  # not necessarily unique
    images: tuple[ImageRef, ...]  # in the order of their placeholders
    turns: list[Turn]  # `(role, text)` with role `"user"` or `"assistant"`
    source: str = ""  # the data set that the row is from, if the file says so
    silent: frozenset[int] = frozenset()  # places of answers without loss
    where: str = ""  # what messages call the row, if its number is not enough
    notes: frozenset[str] = frozenset()  # codes of `ROW_NOTES`: what is not done as the row says


@dataclass(frozen=True)
class RawRow:
    """What a layout's reader makes of a row; see `normal_form` and `Sample`."""

    id: str
    images: list[Any]  # paths, encoded bytes, or `{"bytes", "path"}` as `datasets` stores undecoded pictures
    turns: list[Turn]  # in file order, roles not yet checked; `"system"` may come first
    source: str = ""
    silent: frozenset[int] = frozenset()
    notes: frozenset[str] = frozenset()


def caption_fault(images: int, turns: int) -> RowFault | None:
    """Return what keeps a row in normal form from stage 1, which takes one image and its caption."""
    if images != 1:
        return RowFault("placeholder_mismatch", f"{images} images: stage 1 takes one image and its caption")
    if turns != 2:
        return RowFault("bad_roles", f"{turns} turns: stage 1 takes one question and its caption")
    return None


_NAMED_PICTURE = re.compile(rf"^[^\S\n]*\S[^\n]*:[ \t]*{IMAGE}", re.MULTILINE)
"""A placeholder with a name before it, as in `Image-1: <image>`.

From the line's start: looked for from anywhere it would take the square of a long line.
"""


def normal_form(raw: RawRow) -> RawRow:
    """Check a row's turns and put the placeholders where the model expects them; see `Sample`.

    A leading assistant turn is dropped, as LLaVA does. Placeholders move to the head of their user turn, each
    on a line of its own (`preprocess_multimodal` of LLaVA), but where a text names them they stay. Pictures
    of a row without any placeholder come before its first question, and so does a system text, since not
    every LLM has a place for one. Raises RowFault `bad_roles`, `empty_answer`, `no_supervision` or
    `placeholder_mismatch`.
    """
    turns, silent, notes = list(raw.turns), set(raw.silent), set(raw.notes)
    system = ""
    while turns and turns[0][0] == "system":
        system = f"{system}\n{turns.pop(0)[1].strip()}".strip()
        silent = {place - 1 for place in silent}
    if turns and turns[0][0] == "assistant":
        turns.pop(0)
        silent = {place - 1 for place in silent}
        notes.add("dropped_turn")
    answers = {place for place, (role, _) in enumerate(turns) if role == "assistant"}
    if not answers:
        raise RowFault("no_supervision", f"no answer after a question among {len(raw.turns)} turns")
    for place, (role, text) in enumerate(turns):
        expected = "assistant" if place % 2 else "user"
        if role != expected:
            raise RowFault("bad_roles", f"turn {place} is {role!r} where {expected!r} belongs")
        if place % 2 and not text.strip():
            raise RowFault("empty_answer", f"turn {place}, an answer, is empty")
    if len(turns) % 2:
        raise RowFault("bad_roles", "the last turn is 'user': a row ends with an answer")
    if answers <= silent:
        raise RowFault("no_supervision", "the row keeps each of its answers from the loss")
    ahead = system.count(IMAGE)  # of a system text, which goes in front of the first question
    system = system.replace(IMAGE, "").strip()
    placed = ahead + sum(text.count(IMAGE) for _, text in turns[::2])
    if not placed and raw.images:
        turns[0] = ("user", f"{IMAGE}\n" * len(raw.images) + turns[0][1])
        placed = len(raw.images)
        notes.add("no_placeholder")
    if placed != len(raw.images):
        raise RowFault("placeholder_mismatch", f"{placed} {IMAGE} in the turns for {len(raw.images)} images")
    for place in range(0, len(turns), 2):
        text = turns[place][1]
        before = f"{system}\n\n" if system and not place else ""
        first = 0 if place else ahead
        if (count := first + text.count(IMAGE)) and not _NAMED_PICTURE.search(text):
            text = (f"{IMAGE}\n" * count + before + text.replace(IMAGE, "").strip()).strip()
        else:
            text = f"{IMAGE}\n" * first + before + text
        turns[place] = ("user", text)
    return replace(raw, turns=turns, silent=frozenset(silent & answers), notes=frozenset(notes))


def shown(value: object, limit: int = 80) -> str:
    """Return `value` as it appears in a message: quoted, one line, at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


def text_hash(text: str | bytes) -> int:
    """Return a 64-bit hash of a text or bytes, the same in every process; 0 for what is empty."""
    if not text:
        return 0
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
