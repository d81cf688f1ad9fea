"""The one record that every benchmark is read into, and how its picture is opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from basic_lite.data.rows import Exif

Id = int | str

AnswerBy = Literal["text", "likelihood", "option", "mutual-information"]
"""How a choice is answered: in text, with the letter that is likeliest to come next, or with the option whose
own words are likeliest, by lm-evaluation-harness's `acc_norm` or, against no picture, `acc_mutual_info`."""

BY_WORDS: tuple[AnswerBy, ...] = ("option", "mutual-information")
"""Ways in which the model is asked without the list of options, and these are compared by their words."""


@dataclass(frozen=True)
class StoredImage:
    """A picture in a column of a Hugging Face data set, read only when it is needed."""

    table: Any = field(repr=False)  # the data set, with the column not decoded
    row: int
    column: str = "image"  # name of the image column

    def source(self) -> bytes | Path:
        """Return the encoded picture, or the file that holds it."""
        cell = self.table[self.row][self.column]
        if isinstance(cell, list):  # frames of a video
            cell = cell[len(cell) // 2]
        return cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"])

    def read(self) -> bytes:
        source = self.source()
        return source if isinstance(source, bytes) else source.read_bytes()


@dataclass(frozen=True)
class Grid:
    """Several pictures of one question, put together and numbered where a model takes one picture.

    The geometry is that of MM-Vet v2's `v2/inference/utils.py`: as many columns as rows or one more, cells of
    the largest width and height with 20 and 30 pixels more, white between, the number above each.
    """

    pictures: tuple[Path | bytes | StoredImage, ...]

    def source(self) -> bytes:
        """Return the grid as PNG."""
        from PIL import Image, ImageDraw

        from basic_lite.data.pictures import open_picture

        sources = (
            picture.source() if isinstance(picture, StoredImage) else picture for picture in self.pictures
        )
        opened = [open_picture(source, str(number)) for number, source in enumerate(sources, start=1)]
        columns = math.ceil(math.sqrt(len(opened)))
        width = max(picture.width for picture in opened) + 20
        height = max(picture.height for picture in opened) + 30
        grid = Image.new("RGB", (columns * width, math.ceil(len(opened) / columns) * height), "white")
        draw = ImageDraw.Draw(grid)
        for number, picture in enumerate(opened):
            row, column = divmod(number, columns)
            left = column * width + (width - picture.width) // 2
            top = row * height + (height - picture.height - 10) // 2
            grid.paste(picture, (left, top + 20))
            draw.text((left + picture.width // 2, top), str(number + 1), fill="black")
        buffer = BytesIO()
        grid.save(buffer, "PNG")
        return buffer.getvalue()


ImageSource = Path | bytes | StoredImage | Grid | None


@dataclass(frozen=True)
class Question:
    """One question as a model is asked it, with what its scorer needs."""

    id: Id  # as the benchmark's prediction and submission files name it
    text: str  # the user turn without the image token; generation puts it, and a newline, before the text
    image: ImageSource  # a file, encoded bytes, a cell of a data set, or `None` for a text-only question
    max_new_tokens: int  # length limit of the benchmark's published decoding
    category: str = ""  # what the results are broken down by
    answer: str | None = None  # the reference answer or letter; `None` where labels are not public
    answers: tuple[str, ...] = ()  # all human answers, where there are several
    choices: Mapping[str, str] = field(default_factory=dict)  # letter -> text, for multiple choice
    # The question of a choice, with its context, without the options and the request for a letter, in LLaVA's
    # words under every prompt style; empty where the benchmark's rows do not have it alone
    stem: str = ""
    # What tells the picture from others. Answers about one picture are no independent draws: they are
    # resampled together. `None` where the benchmark asks once about each picture.
    picture: Id | None = None
    # What only this benchmark's scorer or export needs, under the names of its files
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_label(self) -> bool:
        return self.answer is not None or any(answer.strip() for answer in self.answers)

    @property
    def words(self) -> dict[str, str]:
        """Letter -> an option's text as an answer of its own."""
        return {letter: text.strip() for letter, text in self.choices.items()}

    def letter_of(self, words: str) -> str:
        """Return the first letter whose option has these words."""
        return next(letter for letter, own in self.words.items() if own == words)

    def open_image(self) -> Image | None:
        """Return the picture in RGB, decoded as training decodes it; `None` for a text-only question."""
        if self.image is None:
            return None
        from basic_lite.data.pictures import open_picture

        return self._opened(open_picture)

    def image_size(self, exif: Exif = "ignore") -> tuple[int, int] | None:
        """Return the picture's height and width for a transform with `exif`; `None` for text alone."""
        if self.image is None:
            return None
        from basic_lite.data.pictures import picture_size

        return self._opened(partial(picture_size, exif=exif))

    def _opened(self, read: Callable[[Path | bytes, str], Any]) -> Any:
        from basic_lite.data.rows import RowFault

        assert self.image is not None
        try:
            source = self.image.source() if isinstance(self.image, StoredImage | Grid) else self.image
            return read(source, str(source) if isinstance(source, Path) else str(self.id))
        except RowFault as fault:
            remedy = ": check the image folder" if fault.code == "missing_image" else ""
            raise ValueError(f"Picture of question {self.id}: {fault}{remedy}.") from None


def with_pictures_swapped(questions: Sequence[Question]) -> list[Question]:
    """Give each picture's questions the picture of another question, the same whenever it is called.

    The control of an evaluation: what is right then owes nothing to the picture. Raises ValueError if there
    are no two pictures.
    """
    keys = [None if q.image is None else q.id if q.picture is None else q.picture for q in questions]
    images = {key: q.image for key, q in zip(keys, questions, strict=True) if key is not None}
    if len(images) < 2:
        raise ValueError("--swap-pictures needs questions about two pictures at least: leave it out")
    order = list(images)
    Random(0).shuffle(order)
    other = {key: images[after] for key, after in zip(order, order[1:] + order[:1], strict=True)}
    return [
        q if key is None else replace(q, image=other[key]) for key, q in zip(keys, questions, strict=True)
    ]


def question_of(
    row: Mapping[str, Any], text: str, *, category: str = "", fields: Iterable[str] = (), **more: Any
) -> Question:
    """Make the question of a row that has `"id"`, `"image"` and, where it is known, `"picture"`.

    `category` names the row's entry that the results are broken down by, `fields` those that the scorer or
    export needs; `more` are other attributes of `Question`.
    """
    made: dict[str, Any] = {
        "max_new_tokens": TOKEN_LIMITS["llava"],
        "category": str(row.get(category) or ""),
        "picture": row.get("picture"),
        "fields": {name: row.get(name) for name in fields},
    }
    return Question(id=row["id"], text=text, image=row["image"], **(made | more))


SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
"""The requests that end a question, as LLaVA-1.5 was trained to read them (LLaVA `docs/Evaluation.md`)."""

TOKEN_LIMITS = {"llava": 128, "lmms": 16}
"""Most new tokens where lmms-eval has LLaVA-1.5's words and lets the model write less."""
SAME_STYLES: dict[str, None] = {"llava": None, "lmms": None}  # styles where it lets it write as much


def options_prompt(question: str, choices: Mapping[str, str]) -> str:
    """Return LLaVA-1.5's words for a choice: the question, an option a line, the request for a letter."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.items()), LETTER])
