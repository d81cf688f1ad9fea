"""Whether an exported folder says what the run says: same ids, pixels and text, logits within rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from basic_lite.data.conversation import IMAGE, Turn
from basic_lite.data.tiles import Size, Tiling, packed
from basic_lite.models.generate import greedily, one_row, prompt_ids, stops_of, text_of, until_stop
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of
from basic_lite.models.softcap import cap_logits

NEW_TOKENS: int = 12
LIMITS: dict[torch.dtype, float] = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest gap by the coarser dtype of run and folder: rms of the difference over rms of the logits, both
without their mean. A forgotten adapter, a wrong head or template is far above; rounding is far below."""

BASE_LIMIT: float = 0.5
"""Largest gap to a run that saw a quantised base, when the folder holds the base in full precision: the
quantisation itself is part of it. Above it the answers have little to do with what was trained."""

SIZES: tuple[tuple[int, int], ...] = ((61, 40), (38, 75))
"""Width and height of the fixed pictures: none is square, so that padding counts."""

PROMPTS: tuple[tuple[list[Turn], int], ...] = (
    ([("user", f"{IMAGE}\nWhat is in the picture?")], 1),
    (
        [
            ("user", f"{IMAGE}\nWhich colours do you see?"),
            ("assistant", "Many."),
            ("user", "Name one.\nUse one word."),
        ],
        1,
    ),
    ([("user", f"{IMAGE}\n{IMAGE}\nWhat differs?")], 2),
    ([("user", "Say “hello” in one word.")], 0),
)
"""Turns, and how many of the fixed pictures they show."""


@dataclass
class Answer:
    """What a model did with one prompt."""

    ids: list[int]  # of the prompt
    pixels: torch.Tensor | None  # `(I, 3, h, w)` fp32, or `None`; with tiles the squares of all pictures
    produced: list[int]  # ids that the logits follow: the greedy answer, or the one that was given
    logits: torch.Tensor  # `(answer + 1, V)` fp32, of the prompt's last position and the answer's
    text: str  # the answer


def pictures() -> list[Image.Image]:
    """Draw the fixed pictures: colour ramps and a block, the same everywhere."""
    drawn = []
    for number, (width, height) in enumerate(SIZES):
        y, x = np.indices((height, width))
        block = np.where((x // 9 + y // 7 + number) % 3 == 0, 180, 0)
        colours = np.stack([x * 255 // width, y * 255 // height, block], axis=-1)
        drawn.append(Image.fromarray(colours.astype(np.uint8)))
    return drawn


@torch.inference_mode()
def ask(
    model: Any,
    ids: list[int],
    pixels: torch.Tensor | None,
    stops: list[int],
    pad: int,
    along: list[int] | None = None,
    sizes: Sequence[Sequence[int]] = (),
) -> tuple[list[int], torch.Tensor]:
    """Answer greedily; return the ids without a stop, and `(answer + 1, V)` fp32 logits on the CPU.

    `pixels` is `(I, 3, h, w)`, `pad` fills a batch; the logits follow `along`, or the model's own answer.
    With tiles the height and width of each picture are needed (`sizes`).
    """
    never = [parts_of(model).llava.config.image_token_id]  # an answer shows no picture
    prompt = one_row(model, ids, pixels, sizes=sizes)
    row = model.generate(**prompt, **greedily(stops, pad, NEW_TOKENS, never))[0, len(ids) :].tolist()
    produced = until_stop(row, stops)
    along = produced if along is None else along
    logits = model(**one_row(model, ids + along, pixels, sizes=sizes)).logits
    return produced, logits[0, len(ids) - 1 :].float().cpu()


def ask_run(assembled: Assembled, along: list[Answer] | None = None) -> list[Answer]:
    """Ask the run the fixed prompts; `along` are answers whose course the logits follow."""
    for_inference(assembled.model)
    transform, shown = assembled.transform("pad"), pictures()
    stops, answers = stops_of(assembled), []
    for number, (turns, count) in enumerate(PROMPTS):
        sizes = sizes_of(number)
        ids = prompt_ids(assembled, turns, sizes)
        pixels = packed([transform(picture) for picture in shown[:count]])
        pixels = None if pixels is None else transform.normalise(pixels)
        follow = along[number].produced if along else None
        produced, logits = ask(assembled.model, ids, pixels, stops, assembled.pad_token_id, follow, sizes)
        answers.append(Answer(ids, pixels, follow or produced, logits, text_of(assembled, produced)))
    return answers


def sizes_of(number: int) -> list[Size]:
    """Return height and width of the pictures of a fixed prompt."""
    return [(height, width) for width, height in SIZES[: PROMPTS[number][1]]]


def messages(turns: list[Turn]) -> list[dict]:
    """Write turns as chat messages with a list of parts."""
    listed = []
    for role, text in turns:
        count = text.count(IMAGE) if role == "user" else 0
        parts = [{"type": "image"}] * count
        parts.append({"type": "text", "text": text.replace(f"{IMAGE}\n", "") if count else text})
        listed.append({"role": role, "content": parts})
    return listed


def relative_gap(here: torch.Tensor, there: torch.Tensor) -> float:
    """Return the rms of the difference over the rms of `there`, both less their means over the vocabulary."""
    here, there = (t - t.mean(-1, keepdim=True) for t in (here, there))
    return float((here - there).square().mean().sqrt() / there.square().mean().sqrt())


def compare_logits(here: list[Answer], there: list[Answer]) -> dict[str, float | int]:
    """Return the largest gap of two states of a run on the same prompts, and how many texts are equal."""
    pairs = list(zip(here, there, strict=True))
    return {
        "gap": max(relative_gap(a.logits, b.logits) for a, b in pairs),
        "largest_difference": max(float((a.logits - b.logits).abs().max()) for a, b in pairs),
        "equal_texts": sum(a.text == b.text for a, b in pairs),
        "texts": len(pairs),
    }


def open_folder(folder: Path, device: torch.device | str, image_scale: float = 1.0) -> tuple[Any, Any]:
    """Read an exported folder as a stranger would; returns its processor and model.

    Capped logits, which LLaVA's class leaves as they are, are capped here as other readers do. `image_scale`
    is what the folder's own readers multiply image features by, done here by hand.
    """
    processor = AutoProcessor.from_pretrained(folder)
    loading: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model, loaded = loading
    wrong = [*loaded["missing_keys"], *loaded["unexpected_keys"], *loaded["mismatched_keys"]]
    if wrong:
        raise ValueError(f"tensors are missing or have no place: {', '.join(map(str, wrong[:3]))}")
    model.to(device).eval()
    cap_logits(model)
    for parameter in model.model.multi_modal_projector.linear_2.parameters():
        parameter.requires_grad_(False).mul_(image_scale)
    if hasattr(model.model, "image_newline"):
        model.model.image_newline.requires_grad_(False).mul_(image_scale)
    return processor, model


def prepared(processor: Any, number: int) -> tuple[str, list[int], torch.Tensor | None]:
    """Return a fixed prompt as a folder's processor makes it: text, ids, and pixels where it has pictures.

    LLaVA-NeXT's processor pads every picture to as many squares as the largest has; they are packed here.
    """
    turns, count = PROMPTS[number]
    text = processor.apply_chat_template(messages(turns), add_generation_prompt=True, tokenize=False)
    batch = processor(text=[text], images=pictures()[:count] or None, return_tensors="pt")
    pixels = batch.get("pixel_values")
    if pixels is not None and pixels.dim() == 5:
        side = pixels.shape[-1]
        grids = [(h // side, w // side) for h, w in processor.image_processor.image_grid_pinpoints]
        blocks = Tiling(side, side // processor.patch_size, tuple(grids)).blocks(sizes_of(number))
        pixels = torch.cat([some[: block.squares] for some, block in zip(pixels, blocks, strict=True)])
    return text, batch["input_ids"][0].tolist(), pixels


def ask_folder(
    folder: Path, run: list[Answer], device: torch.device | str, image_scale: float = 1.0
) -> list[Answer]:
    """Read an exported folder as a stranger would, and ask it the fixed prompts; ids must be the run's.

    The logits follow the course of the run's answers, on their ids and pixels.
    """
    processor, model = open_folder(folder, device, image_scale)
    answers = []
    for number, known in enumerate(run):
        text, ids, pixels = prepared(processor, number)
        if ids != known.ids:
            raise ValueError(
                f"the exported processor writes {text!r} as {ids[:12]}..., not as {known.ids[:12]}..."
            )
        _, logits = ask(model, ids, known.pixels, *_ends(model), known.produced, sizes_of(number))
        produced, answer = _greedy(processor, model, number, ids, pixels)
        answers.append(Answer(ids, pixels, produced, logits, answer))
    return answers


def texts_of(folder: Path, device: torch.device | str) -> list[str]:
    """Return an exported folder's answers to the fixed prompts."""
    processor, model = open_folder(folder, device)
    prompts = (prepared(processor, number)[1:] for number in range(len(PROMPTS)))
    return [_greedy(processor, model, number, *prompt)[1] for number, prompt in enumerate(prompts)]


def _greedy(
    processor: Any, model: Any, number: int, ids: list[int], pixels: torch.Tensor | None
) -> tuple[list[int], str]:
    """Return ids and text of the answer to a fixed prompt, with the processor's own pixels."""
    produced, _ = ask(model, ids, pixels, *_ends(model), sizes=sizes_of(number))
    return produced, processor.decode(produced, skip_special_tokens=True).strip()


def _ends(model: Any) -> tuple[list[int], int]:
    generation: Any = model.generation_config
    return generation.eos_token_id, generation.pad_token_id


def pixel_gap(here: list[Answer], there: list[Answer]) -> float:
    """Return the largest difference of prepared pictures, in normalised units."""
    gaps = [
        float((a.pixels.float() - b.pixels.float()).abs().max())
        for a, b in zip(here, there, strict=True)
        if a.pixels is not None and b.pixels is not None
    ]
    return max(gaps, default=0.0)


@dataclass
class DecoderPass:
    """What entered the run's decoder, and what came out of its head."""

    embeds: torch.Tensor  # `(1, S, D)` on the CPU
    logits: torch.Tensor  # `(S, V)` fp32, on the CPU


@torch.inference_mode()
def record_decoder(assembled: Assembled, answers: list[Answer]) -> list[DecoderPass]:
    """Run prompts and answers through the run once more, and keep what its decoder receives."""
    decoder = parts_of(assembled.model).decoder
    received: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        received.append(kwargs["inputs_embeds"])

    hook, passes = decoder.register_forward_pre_hook(keep, with_kwargs=True), []
    try:
        for answer in answers:
            row = one_row(assembled.model, answer.ids + answer.produced, answer.pixels)
            logits = assembled.model(**row).logits
            passes.append(DecoderPass(received[-1].cpu(), logits[0].float().cpu()))
    finally:
        hook.remove()
    return passes


@torch.inference_mode()
def compare_decoder(causal: nn.Module, passes: list[DecoderPass], *dtypes: torch.dtype) -> dict[str, float]:
    """Compare another loader's causal LM on the run's embeddings; raises ValueError if the gap is too large.

    The coarser one of `dtypes`, of run and folder, sets the limit.
    """
    for_inference(causal)
    weight = next(causal.parameters())
    gap = 0.0
    for prompt in passes:
        logits = causal(inputs_embeds=prompt.embeds.to(weight.device)).logits[0].float().cpu()
        gap = max(gap, relative_gap(logits, prompt.logits))
    limit = max(LIMITS[dtype] for dtype in dtypes)
    if gap > limit:
        raise ValueError(
            f"the exported folder is not the run: gap {gap:.3g} (at most {limit:g}); nothing was kept, "
            "please report this"
        )
    return {"decoder_gap": gap, "limit": limit}
