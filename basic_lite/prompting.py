"""What a model is asked and what it said, the same for evaluation, chat and parity."""

from __future__ import annotations

from collections.abc import Sequence

from basic_lite.conversation import Turn, encode_prompt, stop_ids
from basic_lite.modeling import Assembled


def prompt_ids(assembled: Assembled, turns: Sequence[Turn]) -> list[int]:
    """Return the ids to answer from, in the template that the model was trained with.

    Args:
        assembled: the model.
        turns: alternating, from the user to the user, with an `<image>` for every picture.

    Raises:
        ValueError: As `conversation.encode`.
    """
    return encode_prompt(
        assembled.template,
        assembled.tokenizer,
        turns,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
    )


def stops_of(assembled: Assembled) -> list[int]:
    """Return the ids that end an answer."""
    return stop_ids(assembled.template, assembled.tokenizer)


def until_stop(produced: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Return what was produced before the first id that ends an answer."""
    end = next((place for place, token in enumerate(produced) if token in stops), len(produced))
    return list(produced[:end])


def text_of(assembled: Assembled, produced: Sequence[int]) -> str:
    """Return an answer's text: what stands before its end, without special tokens."""
    ids = until_stop(produced, stops_of(assembled))
    return assembled.tokenizer.decode(ids, skip_special_tokens=True).strip()
