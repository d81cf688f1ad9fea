"""The one record that every benchmark is read into, and how its picture is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

Id = int | str


@dataclass(frozen=True)
class StoredImage:
    """A picture in a column of a Hugging Face data set, read only when it is needed.

    Attributes:
        table: The data set, with the column not decoded.
        row: Row number.
        column: Name of the image column.
        of_several: The cell is a list of frames, of which the middle one is taken.
    """

    table: Any = field(repr=False)
    row: int
    column: str = "image"
    of_several: bool = False

    def source(self) -> bytes | Path:
        """Return the encoded picture, or the file that holds it."""
        cell = self.table[self.row][self.column]
        if self.of_several:
            cell = cell[len(cell) // 2]
        return cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"])

    def read(self) -> bytes:
        """Return the encoded picture."""
        source = self.source()
        return source if isinstance(source, bytes) else source.read_bytes()


ImageSource = Path | bytes | StoredImage | None


@dataclass(frozen=True)
class Question:
    """One question as a model is asked it, with what its scorer needs.

    Attributes:
        id: As the benchmark's prediction and submission files name it.
        text: The user turn without the image token; generation puts it, and a newline, before the text.
        image: A file, encoded bytes, a cell of a data set, or `None` for a text-only question.
        max_new_tokens: Length limit of the benchmark's published decoding.
        answer: The reference answer or letter; `None` where labels are not public.
        answers: All human answers, where there are several.
        choices: Letter -> text, for multiple choice.
        category: What the results are broken down by.
        picture: What tells the picture from others. Answers about one picture are no independent draws: they
            are resampled together. `None` where the benchmark asks once about each picture.
        fields: What only this benchmark's scorer or export needs, under the names of its files.
    """

    id: Id
    text: str
    image: ImageSource
    max_new_tokens: int
    answer: str | None = None
    answers: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    category: str = ""
    picture: Id | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_label(self) -> bool:
        """Whether there is something to score against."""
        return self.answer is not None or any(answer.strip() for answer in self.answers)

    def open_image(self) -> Image | None:
        """Return the picture, decoded as training decodes it, in RGB; `None` for a text-only question.

        Raises:
            ValueError: If the file is missing, too large, or does not decode.
        """
        if self.image is None:
            return None
        from basic_lite.data.pictures import open_picture

        return self._opened(open_picture)

    def image_size(self) -> tuple[int, int] | None:
        """Return the picture's height and width, not decoded; `None` for a text-only question.

        Raises:
            ValueError: If the file is missing, too large, or no picture.
        """
        if self.image is None:
            return None
        from basic_lite.data.pictures import picture_size

        return self._opened(picture_size)

    def _opened(self, read: Callable[[Path | bytes, str], Any]) -> Any:
        from basic_lite.data.rows import RowFault

        assert self.image is not None
        source = self.image.source() if isinstance(self.image, StoredImage) else self.image
        try:
            return read(source, str(source) if isinstance(source, Path) else str(self.id))
        except RowFault as fault:
            remedy = ": check the image folder" if fault.code == "missing_image" else ""
            raise ValueError(f"Picture of question {self.id}: {fault}{remedy}.") from None


# The request that ends a question, as LLaVA-1.5 was trained to read it.
#
# Source: LLaVA `docs/Evaluation.md` and the question files of its `eval.zip`.

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
