"""Ask a model the questions of a benchmark, the longest prompts first; the answers go to a JSONL file."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from basic_lite.data.conversation import IMAGE, encode
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.tiles import Size, packed
from basic_lite.evaluation import predictions
from basic_lite.evaluation.distributed import ALONE, Processes
from basic_lite.evaluation.files import json_lines
from basic_lite.evaluation.hf_llava import EXIF, HfLlava
from basic_lite.evaluation.question import Question
from basic_lite.memory.available import Halves
from basic_lite.memory.inference import batch_for
from basic_lite.models.generate import forward_inputs, greedily, prompt_ids, stops_of, until_stop
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of

Model = Assembled | HfLlava

DEFAULT_BATCH: int = 16  # prompts per batch without a GPU


class Prompt(NamedTuple):
    question: Question
    ids: list[int]  # one image id for every patch
    # The picture's pixels, `(3, h, w)` or with tiles `(squares, 3, h, w)`, and its height and width
    shown: tuple[torch.Tensor, Size] | None = None


Answers = tuple[list[str], list[float]]
"""Texts, and of each the smallest gap between the logits of the two likeliest tokens on the way to it."""


def generate(
    assembled: Model,  # the model, in every process
    questions: Sequence[Question],  # of one benchmark, in every process
    path: Path,  # prediction file, appended to
    *,
    # Prompts per batch; `None` for as many as the card has room for, which is said
    batch_size: int | None = 16,
    model_id: str = "basic-lite",  # written into every line
    max_batches: int | None = None,  # stop after this many; `None` for all
    by_likelihood: bool = False,  # answer a choice with the letter that is likeliest to come next
    advance: Callable[[int], None] = lambda count: None,  # called with the number of new answers
    say: Callable[[str], None] = lambda line: None,  # called with a line about the batch size
    processes: Processes = ALONE,  # of this command
) -> int:
    """Answer every question that `path` does not answer yet, greedily; return how many are still unanswered.

    Rows of a batch are padded on the left; answers equal those of batch size 1. The longest prompts come
    first: if memory fails, it fails at once, and the batch is answered in halves.

    Several processes answer neighbouring batches at the same time, and the first writes them in order, so
    whoever goes on after a kill, in whatever number, ends with the same bytes.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    done = processes.first(lambda: predictions.answered(path, questions))
    prompts = [Prompt(q, _prompt_ids(assembled, q)) for q in questions if q.id not in done]
    prompts.sort(key=lambda prompt: -len(prompt.ids))
    if batch_size is None:
        longest = max((len(prompt.ids) for prompt in prompts), default=1)
        new = max((prompt.question.max_new_tokens for prompt in prompts), default=1)
        model = assembled.model  # of several cards the first decides: all take batches from one list
        batch_size, line = processes.first(
            lambda: batch_for(model.config, model, longest, new, DEFAULT_BATCH)
        )
        if line and prompts:
            say(line)
    chosen = [prompt for prompt in prompts if by_likelihood and prompt.question.choices]
    written = [prompt for prompt in prompts if not (by_likelihood and prompt.question.choices)]
    batches = [
        part[i : i + batch_size] for part in (chosen, written) for i in range(0, len(part), batch_size)
    ][:max_batches]
    left, halves = len(prompts), Halves()
    for_inference(assembled.model)
    own = _with_pictures(assembled, batches[processes.rank :: processes.count])

    def answer_next() -> list[str]:
        batch = next(own, None)
        if batch is None:  # in the last round there may be fewer batches than processes
            return []
        ask = _choose if by_likelihood and batch[0].question.choices else _answer
        texts = halves(partial(_as_alone, assembled, ask), batch)
        return [
            json_lines([predictions.record(prompt.question, text, model_id)])
            for prompt, text in zip(batch, texts, strict=True)
        ]

    with closing(own):
        for _ in range(0, len(batches), processes.count):
            lines = [line for part in processes.gather(answer_next) for line in part]
            processes.first(lambda lines=lines: _append(path, lines))
            left -= len(lines)
            advance(len(lines))
    return left


def _append(path: Path, lines: list[str]) -> None:
    """Add lines to a file so that they survive a kill, and the machine's too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _turn(question: Question) -> str:
    return question.text if question.image is None else f"{IMAGE}\n{question.text}"


def _prompt_ids(assembled: Model, question: Question) -> list[int]:
    if isinstance(assembled, HfLlava):
        return assembled.prompt_ids(question.text, **_pictured(assembled, question))
    return prompt_ids(assembled, [("user", _turn(question))], _sizes(assembled, question))


def _sizes(assembled: Model, question: Question) -> list[Size]:
    """Return the size of a question's picture, where tiles go by it."""
    exif = EXIF if isinstance(assembled, HfLlava) else assembled.sources.exif
    size = None if assembled.tiling is None else question.image_size(exif)
    return [] if size is None else [size]


def _pictured(assembled: HfLlava, question: Question) -> dict[str, Any]:
    """Return what a model is to know of a question's picture."""
    return {"pictured": question.image is not None, "size": next(iter(_sizes(assembled, question)), None)}


def _with_pictures(assembled: Model, batches: Sequence[list[Prompt]]) -> Generator[list[Prompt]]:
    """Decode the next two batches' pictures on other threads while the model answers this one."""
    transform = assembled.transform("pad")
    ahead: deque[Iterator[Prompt]] = deque()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for batch in batches:
            ahead.append(pool.map(partial(_with_picture, transform), batch))
            if len(ahead) > 2:
                yield list(ahead.popleft())
        while ahead:
            yield list(ahead.popleft())


def _with_picture(transform: ImageTransform, prompt: Prompt) -> Prompt:
    picture = prompt.question.open_image()
    if picture is None:
        return prompt
    picture = transform.upright(picture)
    return prompt._replace(shown=(transform(picture), (picture.height, picture.width)))


NEAR: float = 1e-3
"""Logits in fp32 that are further apart keep their order in every batch, whose sums round by some 1e-5."""


def _as_alone(
    assembled: Model, ask: Callable[[Model, list[Prompt]], Answers], prompts: list[Prompt]
) -> list[str]:
    """Answer some prompts at once as each of them is answered alone.

    How a matrix product rounds depends on the size of the batch. In fp32, where two tokens are all but
    equally likely, the question is asked again by itself; in bf16 that rounding is everywhere, and is left as
    it is.
    """
    texts, gaps = ask(assembled, prompts)
    if len(prompts) > 1 and parts_of(assembled.model).llava.dtype == torch.float32:
        for place, gap in enumerate(gaps):
            if gap < NEAR:
                texts[place] = ask(assembled, [prompts[place]])[0][0]
    return texts


class _Gaps(LogitsProcessor):
    """Keeps at every step how far the two likeliest tokens of each row are apart."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        first, second = scores.topk(2).values.unbind(-1)
        self.steps.append(first - second)
        return scores


@torch.inference_mode()
def _answer(assembled: Model, batch: list[Prompt]) -> Answers:
    """Decode one batch greedily."""
    stops = assembled.stops if isinstance(assembled, HfLlava) else stops_of(assembled)
    inputs, gaps = _padded(assembled, batch), _Gaps()
    model: Any = assembled.model
    tokenizer: Any = assembled.tokenizer
    longest = inputs["input_ids"].shape[1]
    produced = model.generate(
        **inputs,
        **greedily(stops, assembled.pad_token_id, max(prompt.question.max_new_tokens for prompt in batch)),
        logits_processor=LogitsProcessorList([gaps]),
    )
    rows = [
        until_stop(row, stops)[: prompt.question.max_new_tokens]
        for prompt, row in zip(batch, produced[:, longest:].tolist(), strict=True)
    ]
    steps = torch.stack(gaps.steps)  # one row for each token; what ends an answer was decided too
    nearest = [steps[: len(ids) + 1, row].min().item() for row, ids in enumerate(rows)]
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows], nearest


def _padded(assembled: Model, batch: list[Prompt]) -> dict[str, Any]:
    """Return the model's inputs, prompts padded on the left to the longest."""
    longest = max(len(prompt.ids) for prompt in batch)
    input_ids = torch.full((len(batch), longest), assembled.pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(batch):
        input_ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, longest - len(prompt.ids) :] = 1
    shown = [prompt.shown for prompt in batch if prompt.shown is not None]
    pictures = {"pixel_values": packed([pixels for pixels, _ in shown]), "image_sizes": [s for _, s in shown]}
    batched = {"input_ids": input_ids, "attention_mask": mask, **pictures}
    return forward_inputs(assembled.model, batched, assembled.transform("pad"))


@torch.inference_mode()
def _choose(assembled: Model, batch: list[Prompt]) -> Answers:
    """Answer each choice with the letter whose first token is likeliest."""
    model: Any = assembled.model
    produced = model.generate(
        **_padded(assembled, batch),
        **greedily([], assembled.pad_token_id, 1),
        output_logits=True,
        return_dict_in_generate=True,
    )
    answers, gaps = [], []
    for prompt, logits in zip(batch, produced.logits[0].float(), strict=True):
        tokens = {letter: _letter_token(assembled, prompt, letter) for letter in prompt.question.choices}
        if len(set(tokens.values())) < len(tokens):
            raise ValueError(
                f"Question {prompt.question.id}: this tokenizer begins several of its letters alike, so "
                "their likelihoods cannot be compared: leave --answer-by likelihood out."
            )
        likely = logits[list(tokens.values())].sort(descending=True, stable=True)
        answers.append(list(tokens)[int(likely.indices[0])])
        gaps.append(float(likely.values[0] - likely.values[1]) if len(tokens) > 1 else math.inf)
    return answers, gaps


def _letter_token(assembled: Model, prompt: Prompt, letter: str) -> int:
    """Return the token that an answer with this letter begins with."""
    question = prompt.question
    if isinstance(assembled, HfLlava):
        ids = assembled.answer_ids(question.text, letter, **_pictured(assembled, question))
    else:
        ids = encode(
            assembled.template,
            assembled.tokenizer,
            [("user", _turn(question)), ("assistant", letter)],
            image_token_id=assembled.image_token_id,
            tokens_per_image=assembled.image_tokens(_sizes(assembled, question)),
        ).input_ids
    return int(ids[len(prompt.ids)])


def answer_one(assembled: Model, question: Question) -> str:
    """Answer one question alone: no batch, no padding, its picture decoded here and now."""
    for_inference(assembled.model)
    prompt = Prompt(question, _prompt_ids(assembled, question))
    return _answer(assembled, [_with_picture(assembled.transform("pad"), prompt)])[0][0]
