"""What a model is asked and what it said, the same for evaluation, chat and parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from basic_lite.data.conversation import Turn, check_tokenizer, choose_template, encode_prompt, stop_ids
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.templates import TEMPLATES
from basic_lite.models import zoo
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of
from basic_lite.models.repository import read_tokenizer


def counting_encoder(
    llm: str, template: str | None, *, tokens_per_image: int, max_length: int
) -> TextEncoder:
    """Return an encoder whose ids are those of an LLM, but for the id that marks a patch.

    `llm` is a name of the zoo, a folder with the tokenizer's files, or a hub id; `template` a key in
    `conversation.TEMPLATES`, `None` for the one that the tokenizer asks for. Raises ValueError if there is no
    such tokenizer, or it does not go with the template.
    """
    row = zoo.LLMS.get(llm)
    tokenizer = read_tokenizer(row.hub_id if row else llm)
    name = template or (row.template if row else choose_template(tokenizer))
    if name not in TEMPLATES:
        raise ValueError(f"no template is named {name!r}; known: {', '.join(TEMPLATES)}")
    check_tokenizer(name, tokenizer)
    return TextEncoder(name, tokenizer, len(tokenizer), tokens_per_image, max_length)


def prompt_ids(assembled: Assembled, turns: Sequence[Turn], sizes: Sequence[Sequence[int]] = ()) -> list[int]:
    """Return the ids to answer from, in the template that the model was trained with.

    `turns` alternate, from the user to the user, with an `<image>` for every picture; `sizes` are their
    `(height, width)`, needed with tiles. Raises ValueError as `conversation.encode`.
    """
    return encode_prompt(
        assembled.template,
        assembled.tokenizer,
        turns,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.image_tokens(sizes),
    )


def stops_of(assembled: Assembled) -> list[int]:
    """Return the ids that end an answer."""
    return stop_ids(assembled.template, assembled.tokenizer)


def forward_inputs(
    model: torch.nn.Module, batch: Mapping[str, Any], transform: ImageTransform | None = None
) -> dict[str, Any]:
    """Return what a LLaVA's forward pass takes of a batch, on the model's device; labels stay behind.

    The batch has `input_ids` and `attention_mask` `(B, S)`, and `pixel_values` where there are pictures, with
    tiles their `image_sizes` too; `transform` is needed where they are uint8.
    """
    weight = next(parts_of(model).llava.vision_tower.parameters())
    inputs: dict[str, Any] = {name: batch[name].to(weight.device) for name in ("input_ids", "attention_mask")}
    if batch.get("pixel_values") is not None:
        inputs["pixel_values"] = tower_pixels(model, batch["pixel_values"], transform)
        if parts_of(model).tiling is not None:
            inputs["image_sizes"] = torch.tensor(batch["image_sizes"])  # stays on the host, which reads it
    return inputs


def tower_pixels(
    model: torch.nn.Module, pixels: torch.Tensor, transform: ImageTransform | None = None
) -> torch.Tensor:
    """Return pictures as the vision tower takes them, `(I, 3, h, w)`, on its device and in its dtype.

    `pixels` are of that shape, normalised, or uint8 for `transform` to normalise on the device.
    """
    weight = next(parts_of(model).llava.vision_tower.parameters())
    pixels = pixels.to(weight.device)
    if pixels.dtype == torch.uint8:
        assert transform is not None, "uint8 pictures need the transform that normalises them"
        return transform.normalise(pixels, weight.dtype)
    return pixels.to(weight.dtype)


def one_row(
    model: torch.nn.Module,
    ids: Sequence[int],
    pixels: torch.Tensor | None = None,
    transform: ImageTransform | None = None,
    sizes: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Return a prompt as a LLaVA takes it: a batch of one, on the model's device.

    `pixels` are `(I, 3, h, w)`, normalised, or uint8 with their transform, `None` for text alone; `sizes` are
    the pictures' `(height, width)`, needed with tiles.
    """
    row = torch.tensor([list(ids)])
    batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "pixel_values": pixels}
    batch["image_sizes"] = sizes
    return forward_inputs(model, batch, transform)


def greedily(stops: list[int], pad: int, longest: int, never: Sequence[int] = ()) -> dict[str, Any]:
    """Return `generate`'s options for greedy answers of at most `longest` tokens, without ids of `never`."""
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": longest}
    options |= {"eos_token_id": stops, "pad_token_id": pad}
    return options | ({"suppress_tokens": list(never)} if never else {})


def until_stop(produced: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Return what was produced before the first id that ends an answer."""
    end = next((place for place, token in enumerate(produced) if token in stops), len(produced))
    return list(produced[:end])


def text_of(assembled: Assembled, produced: Sequence[int]) -> str:
    """Return an answer's text: what stands before its end, without special tokens."""
    ids = until_stop(produced, stops_of(assembled))
    text: Any = assembled.tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()
