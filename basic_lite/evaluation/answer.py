"""Ask a model the questions of a benchmark: batched, longest first, resumable at any moment.

Answers go to a JSONL file, one line each, in the order in which they are made; scoring reads that file
and never sees the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basic_lite.data.conversation import IMAGE, encode
from basic_lite.data.tiles import Size, packed
from basic_lite.evaluation import predictions
from basic_lite.evaluation.hf_llava import HfLlava
from basic_lite.evaluation.question import Question
from basic_lite.files import complete, write_json
from basic_lite.memory.available import Halves
from basic_lite.memory.inference import batch_for
from basic_lite.models.generate import forward_inputs, greedily, prompt_ids, stops_of, until_stop
from basic_lite.models.llava import Assembled, for_inference

Model = Assembled | HfLlava

DEFAULT_BATCH: int = 16
"""Prompts per batch without a GPU."""


def answered(path: Path, questions: Sequence[Question]) -> set[int | str]:
    """Return the ids that a prediction file already answers, and cut off a line that a kill left unfinished.

    Raises:
        ValueError: If the file is damaged or belongs to another benchmark; it is left as it is.
    """
    if not path.is_file():
        return set()
    answers = predictions.read(path, questions, drop_cut_end=True)
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return set(answers)
    with complete(path) as draft:
        draft.write_bytes(content[: content.rfind(b"\n") + 1])
    return set(predictions.read(path, questions))


def generate(
    assembled: Model,
    questions: Sequence[Question],
    path: Path,
    *,
    batch_size: int | None = 16,
    model_id: str = "basic-lite",
    max_batches: int | None = None,
    by_likelihood: bool = False,
    advance: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Answer every question that `path` does not answer yet: greedy decoding, the run's own template.

    Rows of a batch are padded on the left, so that every answer starts at the same position; the answers
    equal those of batch size 1. The longest prompts come first: if memory fails, it fails at once, and the
    batch is answered in halves.

    Args:
        assembled: the model.
        questions: of one benchmark.
        path: prediction file, appended to.
        batch_size: prompts per batch; `None` for as many as the card has room for.
        model_id: written into every line.
        max_batches: stop after this many; `None` for all.
        by_likelihood: answer a choice with the letter that is likeliest to come next.
        advance: called with the number of new answers.
        say: called with a line about the batch size that was chosen.

    Returns:
        How many questions of the benchmark are still without answer.

    Raises:
        ValueError: If a picture is missing or does not decode, or `path` belongs to another benchmark.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    done = answered(path, questions)
    advance(len(done))
    prompts = [(question, _prompt(assembled, question)) for question in questions if question.id not in done]
    prompts.sort(key=lambda pair: -len(pair[1]))
    if batch_size is None:
        longest = max((len(ids) for _, ids in prompts), default=1)
        new = max((question.max_new_tokens for question, _ in prompts), default=1)
        batch_size, line = batch_for(assembled.model.config, assembled.model, longest, new, DEFAULT_BATCH)
        if line and prompts:
            say(line)
    written = [pair for pair in prompts if not (by_likelihood and pair[0].choices)]
    chosen = [pair for pair in prompts if by_likelihood and pair[0].choices]
    batches = [
        part[i : i + batch_size] for part in (chosen, written) for i in range(0, len(part), batch_size)
    ]
    left, halves = len(prompts), Halves()
    for_inference(assembled.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for batch, pictures in _with_pixels(assembled, batches[:max_batches]):
            ask = _choose if by_likelihood and batch[0][0].choices else _answer
            texts = halves(partial(_ask_rows, assembled, ask), list(zip(batch, pictures, strict=True)))
            rows = [predictions.record(q, text, model_id) for (q, _), text in zip(batch, texts, strict=True)]
            file.write("".join(map(predictions.to_line, rows)))
            file.flush()
            os.fsync(file.fileno())
            left -= len(batch)
            advance(len(batch))
    return left


Batch = list[tuple[Question, list[int]]]
Shown = tuple[torch.Tensor, Size]
"""A picture's pixels, `(3, h, w)` or with tiles `(squares, 3, h, w)`, and its height and width."""
Row = tuple[tuple[Question, list[int]], Shown | None]


def _ask_rows(assembled: Model, ask: Callable[..., list[str]], rows: list[Row]) -> list[str]:
    """Ask some prompts of a batch."""
    shown = [picture for _, picture in rows if picture is not None]
    pixels, sizes = packed([pixels for pixels, _ in shown]), [size for _, size in shown]
    return ask(assembled, [pair for pair, _ in rows], pixels, sizes)


def _prompt(assembled: Model, question: Question) -> list[int]:
    if isinstance(assembled, HfLlava):
        return assembled.prompt_ids(question.text, pictured=question.image is not None)
    text = question.text if question.image is None else f"{IMAGE}\n{question.text}"
    return prompt_ids(assembled, [("user", text)], _sizes(assembled, question))


def _sizes(assembled: Assembled, question: Question) -> list[Size]:
    """Return the size of a question's picture, where tiles go by it."""
    size = None if assembled.tiling is None else question.image_size()
    return [] if size is None else [size]


def _with_pixels(assembled: Model, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Shown | None]]]:
    """Decode the next batch's pictures on other threads while the model answers this one."""
    transform = assembled.transform("pad")

    def load(question: Question) -> Shown | None:
        picture = question.open_image()
        return None if picture is None else (transform(picture), (picture.height, picture.width))

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        ahead = [[pool.submit(load, question) for question, _ in batch] for batch in batches[:2]]
        for number, batch in enumerate(batches):
            loaded = [future.result() for future in ahead.pop(0)]
            if number + 2 < len(batches):
                ahead.append([pool.submit(load, question) for question, _ in batches[number + 2]])
            yield batch, loaded


@torch.inference_mode()
def _answer(
    assembled: Model, batch: Batch, pixels: torch.Tensor | None, sizes: Sequence[Size] = ()
) -> list[str]:
    """Decode one batch greedily.

    Args:
        assembled: the model.
        batch: `B` prompts.
        pixels: `(I, 3, h, w)` uint8, in the order of the prompts that have a picture; with tiles all squares.
        sizes: height and width of the pictures.
    """
    model = assembled.model
    stops = assembled.stops if isinstance(assembled, HfLlava) else stops_of(assembled)
    inputs = _padded(assembled, batch, pixels, sizes)
    longest = inputs["input_ids"].shape[1]
    produced = model.generate(
        **inputs,
        **greedily(stops, assembled.pad_token_id, batch[0][0].max_new_tokens),
    )
    decode = assembled.tokenizer.decode
    ids = (until_stop(row, stops) for row in produced[:, longest:].tolist())
    return [decode(row, skip_special_tokens=True).strip() for row in ids]


def _padded(
    assembled: Model, batch: Batch, pixels: torch.Tensor | None, sizes: Sequence[Size]
) -> dict[str, Any]:
    """Return the model's inputs, prompts padded on the left to the longest."""
    longest = max(len(ids) for _, ids in batch)
    input_ids = torch.full((len(batch), longest), assembled.pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, (_, ids) in enumerate(batch):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
    batched = {"input_ids": input_ids, "attention_mask": mask, "pixel_values": pixels, "image_sizes": sizes}
    return forward_inputs(assembled.model, batched, assembled.transform("pad"))


@torch.inference_mode()
def _choose(
    assembled: Model, batch: Batch, pixels: torch.Tensor | None, sizes: Sequence[Size] = ()
) -> list[str]:
    """Answer each choice with the letter whose first token is likeliest; arguments as of `_answer`."""
    produced = assembled.model.generate(
        **_padded(assembled, batch, pixels, sizes),
        **greedily([], assembled.pad_token_id, 1),
        output_logits=True,
        return_dict_in_generate=True,
    )
    answers = []
    for (question, ids), logits in zip(batch, produced.logits[0].float(), strict=True):
        tokens = {letter: _letter_token(assembled, question, ids, letter) for letter in question.choices}
        if len(set(tokens.values())) < len(tokens):
            raise ValueError(
                f"Question {question.id}: this tokenizer begins several of its letters alike, so their "
                "likelihoods cannot be compared: leave --answer-by likelihood out."
            )
        answers.append(max(tokens, key=lambda letter: float(logits[tokens[letter]])))
    return answers


def _letter_token(assembled: Model, question: Question, ids: list[int], letter: str) -> int:
    """Return the token that an answer with this letter begins with."""
    if isinstance(assembled, HfLlava):
        return assembled.answer_ids(question.text, letter, pictured=question.image is not None)[len(ids)]
    text = question.text if question.image is None else f"{IMAGE}\n{question.text}"
    encoded = encode(
        assembled.template,
        assembled.tokenizer,
        [("user", text), ("assistant", letter)],
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.image_tokens(_sizes(assembled, question)),
    )
    return int(encoded.input_ids[len(ids)])


def answer_one(assembled: Model, question: Question) -> str:
    """Answer one question alone: no batch, no padding, its picture decoded here and now."""
    for_inference(assembled.model)
    picture = question.open_image()
    pixels, sizes = [], []
    if picture is not None:
        pixels, sizes = [assembled.transform("pad")(picture)], [(picture.height, picture.width)]
    return _answer(assembled, [(question, _prompt(assembled, question))], packed(pixels), sizes)[0]


def claim_predictions(path: Path, conditions: dict, overwrite: bool) -> None:
    """Make sure that a prediction file is continued under the conditions it was begun with.

    Args:
        path: prediction file; the conditions stand beside it.
        conditions: checkpoint, benchmark, prompts, decoding.
        overwrite: start the file again.

    Raises:
        ValueError: If the file was made under other conditions; nothing is overwritten.
    """
    beside = predictions.conditions_file(path)
    if overwrite:
        path.unlink(missing_ok=True)
    elif path.is_file():
        then = predictions.conditions_of(path)
        differing = [key for key in (conditions | then) if then.get(key) != conditions.get(key)]
        if differing:
            raise ValueError(
                f"{path} holds answers made with another {', '.join(differing)}; start again with "
                "--overwrite, or choose another --out"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(beside, conditions)
