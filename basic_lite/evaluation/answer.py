"""Ask a model the questions of a benchmark, the longest prompts first; the answers go to a JSONL file."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from basic_lite.data.conversation import IMAGE, encode
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.templates import template_of
from basic_lite.data.tiles import Size, packed
from basic_lite.evaluation import predictions
from basic_lite.evaluation.distributed import ALONE, Processes
from basic_lite.evaluation.files import json_lines
from basic_lite.evaluation.hf_llava import EXIF, HfLlava
from basic_lite.evaluation.likelihood import log_likelihoods
from basic_lite.evaluation.question import BY_WORDS, AnswerBy, Id, Question
from basic_lite.memory.available import Halves
from basic_lite.memory.inference import batch_for
from basic_lite.models.generate import forward_inputs, greedily, prompt_ids, stops_of, until_stop
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of

Model = Assembled | HfLlava

DEFAULT_BATCH: int = 16  # prompts per batch without a GPU


class Prompt(NamedTuple):
    question: Question  # as it is asked
    ids: list[int]  # one image id for every patch
    # The picture's pixels, `(3, h, w)` or with tiles `(squares, 3, h, w)`, and its height and width
    shown: tuple[torch.Tensor, Size] | None = None
    of: Sequence[Question] = ()  # the benchmark's, that the answer is recorded for


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
    answer_by: AnswerBy = "text",  # how a choice is answered; all other questions in text
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
    prompts = sorted(_prompts(assembled, questions, done, answer_by), key=lambda prompt: -len(prompt.ids))
    if batch_size is None:
        longest = max((len(prompt.ids) for prompt in prompts), default=1)
        new = max((prompt.question.max_new_tokens for prompt in prompts), default=1)
        model = assembled.model  # of several cards the first decides: all take batches from one list
        batch_size, line = processes.first(
            lambda: batch_for(model.config, model, longest, new, DEFAULT_BATCH)
        )
        if line and prompts:
            say(line + ("; an option counts as a prompt" if answer_by in BY_WORDS else ""))
    chosen = [prompt for prompt in prompts if answer_by != "text" and prompt.question.choices]
    written = [prompt for prompt in prompts if not (answer_by != "text" and prompt.question.choices)]
    options = max((len(prompt.question.choices) for prompt in chosen), default=1)
    smaller = max(batch_size // options, 1) if answer_by in BY_WORDS else batch_size
    batches = [
        part[i : i + size]
        for part, size in ((chosen, smaller), (written, batch_size))
        for i in range(0, len(part), size)
    ][:max_batches]
    left, halves = sum(len(prompt.of) for prompt in prompts), Halves()
    for_inference(assembled.model)
    own = _with_pictures(assembled, batches[processes.rank :: processes.count])

    def answer_next() -> list[str]:
        batch = next(own, None)
        if batch is None:  # in the last round there may be fewer batches than processes
            return []
        ask = _ASK[answer_by if batch[0].question.choices else "text"]
        texts = halves(partial(_as_alone, assembled, ask), batch)
        by_words = answer_by in BY_WORDS and bool(batch[0].question.choices)
        return [
            json_lines([predictions.record(q, q.letter_of(text) if by_words else text, model_id)])
            for prompt, text in zip(batch, texts, strict=True)
            for q in prompt.of
        ]

    with closing(own):
        for _ in range(0, len(batches), processes.count):
            lines = [line for part in processes.gather(answer_next) for line in part]
            processes.first(lambda lines=lines: _append(path, lines))
            left -= len(lines)
            advance(len(lines))
    return left


def _prompts(
    assembled: Model, questions: Sequence[Question], done: Collection[Id], answer_by: AnswerBy
) -> Iterator[Prompt]:
    """Yield what is left to ask.

    Without the list of options a question's rotations are the same: it is asked once, about the words in one
    order whichever rotations are left, so that going on after a kill gives the same answers.
    """
    same: dict[Hashable, list[Question]] = {}
    for q in questions:
        key: Hashable = q.id
        if q.choices and answer_by in BY_WORDS:
            picture = q.image if isinstance(q.image, bytes | Path) else id(q.image)
            key = q.stem, picture, frozenset(q.words.values())
        same.setdefault(key, []).append(q)
    for rotations in same.values():
        left = [q for q in rotations if q.id not in done]
        if not left:
            continue
        asked = rotations[0]
        if asked.choices and answer_by in BY_WORDS:
            words = sorted(set(asked.words.values()))
            longest = max(len(option.encode()) for option in words)  # no token is shorter than a byte
            choices = {option: option for option in words}
            asked = replace(asked, text=asked.stem, choices=choices, max_new_tokens=longest)
        yield Prompt(asked, _prompt_ids(assembled, asked), of=left)


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
def _choose_letter(assembled: Model, batch: list[Prompt]) -> Answers:
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
        letters = list(prompt.question.choices)
        tokens = [_answer_ids(assembled, prompt, letter)[0] for letter in letters]
        if len(set(tokens)) < len(tokens):
            raise ValueError(
                f"Question {prompt.question.id}: this tokenizer begins several of its letters alike, so "
                "their likelihoods cannot be compared: leave --answer-by likelihood out."
            )
        letter, gap = _highest(letters, logits[tokens])
        answers.append(letter)
        gaps.append(gap)
    return answers, gaps


def _highest(answers: Sequence[str], scores: torch.Tensor) -> tuple[str, float]:
    """Return the answer with the highest score, the first of several, and how far the next one is."""
    best = scores.sort(descending=True, stable=True)
    gap = float(best.values[0] - best.values[1]) if len(answers) > 1 else math.inf
    return answers[int(best.indices[0])], gap


def _choose_words(assembled: Model, batch: list[Prompt], blind: bool) -> Answers:
    """Answer each choice with the likeliest words, per character, or `blind`, over those without the picture.

    A question without a picture has none to leave out, and is answered per character.
    Source: lm-evaluation-harness `api/task.py` (`acc_norm`, `acc_mutual_info`).
    """
    scores, without = _log_likelihoods(assembled, batch), {}
    pictured = [place for place, prompt in enumerate(batch) if blind and prompt.shown is not None]
    if pictured:
        asked = [replace(batch[place].question, image=None) for place in pictured]
        prompts = [Prompt(question, _prompt_ids(assembled, question)) for question in asked]
        without = dict(zip(pictured, _log_likelihoods(assembled, prompts), strict=True))
    answers, gaps = [], []
    for place, (prompt, score) in enumerate(zip(batch, scores, strict=True)):
        words = list(prompt.question.choices)
        lengths = torch.tensor([len(option) for option in words])
        answer, gap = _highest(words, score - without[place] if place in without else score / lengths)
        answers.append(answer)
        gaps.append(gap)
    return answers, gaps


def _log_likelihoods(assembled: Model, batch: list[Prompt]) -> list[torch.Tensor]:
    words = [
        [_answer_ids(assembled, prompt, option) for option in prompt.question.choices] for prompt in batch
    ]
    return log_likelihoods(assembled.model, _padded(assembled, batch), words)


def _answer_ids(assembled: Model, prompt: Prompt, words: str) -> list[int]:
    """Return the ids of an answer's words after a prompt's, without what ends an answer."""
    question = prompt.question
    if isinstance(assembled, HfLlava):
        ids = assembled.answer_ids(question.text, words, **_pictured(assembled, question))
    else:
        template = template_of(assembled.template)
        ids = encode(
            replace(template, answer=template.answer.rstrip(), end="", after=""),
            assembled.tokenizer,
            [("user", _turn(question)), ("assistant", words)],
            image_token_id=assembled.image_token_id,
            tokens_per_image=assembled.image_tokens(_sizes(assembled, question)),
        ).input_ids
    if ids[: len(prompt.ids)] != prompt.ids or len(ids) == len(prompt.ids):
        raise ValueError(
            f"Question {question.id}: this tokenizer joins the beginning of {words!r} with the words before "
            "it, so its likelihood cannot be told: leave --answer-by out."
        )
    return ids[len(prompt.ids) :]


_ASK: Mapping[AnswerBy, Callable[[Model, list[Prompt]], Answers]] = {
    "text": _answer,
    "likelihood": _choose_letter,
    "option": partial(_choose_words, blind=False),
    "mutual-information": partial(_choose_words, blind=True),
}


def answer_one(assembled: Model, question: Question) -> str:
    """Answer one question alone: no batch, no padding, its picture decoded here and now."""
    for_inference(assembled.model)
    prompt = Prompt(question, _prompt_ids(assembled, question))
    return _answer(assembled, [_with_picture(assembled.transform("pad"), prompt)])[0][0]
