"""A row as the model takes it: ids and labels, then pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from basic_lite import zoo
from basic_lite.conversation import TEMPLATES, Encoded, Template, check_tokenizer, choose_template, encode
from basic_lite.data.pictures import load_image
from basic_lite.data.samples import RowFault, Sample, caption_fault
from basic_lite.data.texts import shown
from basic_lite.repository import read_tokenizer
from basic_lite.templates import template_of

if TYPE_CHECKING:
    from basic_lite.data.images import ImageTransform


@dataclass(frozen=True)
class TextEncoder:
    """Makes ids and labels of a sample.

    Attributes:
        template: how the LLM's prompts are written.
        tokenizer: of the LLM.
        image_token_id: id that marks a patch.
        tokens_per_image: patches per image (`P`).
        max_length: most tokens of a row, image tokens included; `None` for no limit.
    """

    template: Template | str
    tokenizer: Any
    image_token_id: int
    tokens_per_image: int
    max_length: int | None

    def __call__(self, sample: Sample) -> Encoded:
        """Return ids, labels and how many tokens were cut off.

        Raises:
            RowFault: As `caption_fault` for the template of stage 1; `no_supervision` where the cut leaves
                none, else `malformed_row`.
        """
        if template_of(self.template).caption:
            fault = caption_fault(len(sample.images), len(sample.turns))
            if fault is not None:
                raise fault
        try:
            return encode(
                self.template,
                self.tokenizer,
                sample.turns,
                image_token_id=self.image_token_id,
                tokens_per_image=self.tokens_per_image,
                max_length=self.max_length,
            )
        except ValueError as error:
            code = "no_supervision" if "max_length" in str(error) else "malformed_row"
            raise RowFault(code, str(error)) from None


def counting_encoder(
    llm: str, template: str | None, *, tokens_per_image: int, max_length: int
) -> TextEncoder:
    """Return an encoder whose ids are those of an LLM, but for the id that marks a patch.

    Args:
        llm: a name of the zoo, a folder with the tokenizer's files, or a hub id.
        template: key in `conversation.TEMPLATES`; `None` for the one that the tokenizer asks for.
        tokens_per_image: patches per image.
        max_length: most tokens of a row.

    Raises:
        ValueError: If there is no such tokenizer, or it does not go with the template.
    """
    row = zoo.LLMS.get(llm)
    tokenizer = read_tokenizer(row.hub_id if row else llm)
    name = template or (row.template if row else choose_template(tokenizer, family=""))
    if name not in TEMPLATES:
        raise ValueError(f"no template is named {name!r}; known: {', '.join(TEMPLATES)}")
    check_tokenizer(name, tokenizer)
    return TextEncoder(name, tokenizer, len(tokenizer), tokens_per_image, max_length)


@dataclass(frozen=True)
class RowEncoder:
    """Makes ids, labels and pixels of a sample.

    Attributes:
        text: makes ids and labels.
        transform: from a picture to the tower's pixels.
    """

    text: TextEncoder
    transform: ImageTransform

    def __call__(self, sample: Sample, row: int) -> tuple[dict[str, Any], int]:
        """Return an item of `SupervisedRows` and how many tokens were cut off.

        Raises:
            RowFault: Names the row and its id.
        """
        try:
            encoded = self.text(sample)
            pixels = [self.transform(load_image(image)) for image in sample.images]
        except RowFault as fault:
            raise RowFault(fault.code, f"row {row} (id {shown(sample.id)}): {fault.detail}") from None
        item = {"input_ids": encoded.input_ids, "labels": encoded.labels, "pixels": pixels}
        return {**item, "row": row, "id": sample.id}, encoded.truncated
