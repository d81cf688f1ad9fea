"""Generation: batches equal single answers, pictures or not, and a kill loses or doubles nothing."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import DECODERS, tiny_assembled

from basic_lite.evaluation import answer, predictions
from basic_lite.evaluation.question import Question


def picture(seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (20 + seed, 24, 3), generator=generator, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def questions(count: int = 7) -> list[Question]:
    words = "what is the brand of this camera near the two small red doors".split()
    return [
        Question(
            id=number,
            text=" ".join(words[: 1 + (5 * number) % 12]),
            image=None if number % 3 == 2 else picture(number),  # some without a picture
            max_new_tokens=6,
        )
        for number in range(count)
    ]


def answers(path) -> dict[int, str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = {row["question_id"]: row["text"] for row in rows}
    assert len(texts) == len(rows), "a question was answered twice"
    return texts


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("decoder", DECODERS)
def test_batched_answers_equal_single_ones(tmp_path, decoder, bits):
    assembled = tiny_assembled(decoder, bits=bits)
    for size in (1, 4):
        left = answer.generate(assembled, questions(), tmp_path / f"{size}.jsonl", batch_size=size)
        assert left == 0
    single = answers(tmp_path / "1.jsonl")
    assert answers(tmp_path / "4.jsonl") == single
    assert len(set(single.values())) > 3  # they do depend on the question


def test_answers_do_not_depend_on_batch_size_or_order(tmp_path):
    """On a CPU in fp32, for questions with and without pictures, over a run that was cut in between."""
    assembled, asked = tiny_assembled("llama", bits=16), questions(9)
    assembled.model.float()
    answer.generate(assembled, asked, tmp_path / "first.jsonl", batch_size=1)
    first = answers(tmp_path / "first.jsonl")
    assert len(set(first.values())) > 4
    for size in (2, 3, 5, 9):
        order = random.Random(size).sample(asked, len(asked))
        path = tmp_path / f"{size}.jsonl"
        answer.generate(assembled, order, path, batch_size=size, max_batches=1)
        answer.generate(assembled, list(reversed(order)), path, batch_size=10 - size)
        assert answers(path) == first
    assert {question.id: answer.answer_one(assembled, question) for question in asked} == first


@pytest.mark.parametrize("answer_by", ["text", "likelihood", "option", "mutual-information"])
def test_what_rounding_would_decide_is_decided_alike_in_every_batch(tmp_path, answer_by):
    """All tokens have a twin that is as likely but for rounding, which differs from batch to batch."""
    assembled, choices = tiny_assembled("llama", bits=16), {letter: letter for letter in "ABCD"}
    asked = [replace(q, choices=choices if answer_by != "text" else {}, stem=q.text) for q in questions(24)]
    assembled.model.float()
    head = assembled.model.lm_head.weight.data
    head[: len(head) // 2] = head[len(head) // 2 :][: len(head) // 2]
    for letter in "BCD":
        head[assembled.tokenizer.convert_tokens_to_ids(letter)] = head[
            assembled.tokenizer.convert_tokens_to_ids("A")
        ]
    head += 1e-7 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    given = []
    for size in (1, 2, 5, 16):
        path, order = tmp_path / f"{size}.jsonl", random.Random(size).sample(asked, len(asked))
        answer.generate(assembled, order, path, batch_size=size, answer_by=answer_by)
        given.append(answers(path))
    assert given[0] == given[1] == given[2] == given[3]
    assert len(set(given[0].values())) > 1


def test_an_answer_keeps_its_own_length_in_a_batch(tmp_path):
    assembled, asked = tiny_assembled("llama"), questions(4)
    asked = [replace(question, max_new_tokens=1 + 2 * question.id) for question in asked]
    for size in (1, 4):
        answer.generate(assembled, asked, tmp_path / f"{size}.jsonl", batch_size=size)
    assert answers(tmp_path / "4.jsonl") == answers(tmp_path / "1.jsonl")


def test_a_batch_that_memory_is_short_for_is_answered_in_parts(tmp_path, monkeypatch):
    """The pictures stay with their questions; the file is the one of a card with room."""
    assembled, asked = tiny_assembled("llama", bits=16), questions()
    answer.generate(assembled, asked, tmp_path / "whole.jsonl", batch_size=5)
    generate, sizes = assembled.model.generate, []

    def short(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    monkeypatch.setattr(assembled.model, "generate", short)
    answer.generate(assembled, asked, tmp_path / "parts.jsonl", batch_size=5)
    assert max(sizes) > 2
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_picture_matters(tmp_path):
    assembled = tiny_assembled("llama")
    first, second = (Question(0, "what is this", picture(n), 6) for n in (1, 2))
    for number, question in enumerate((first, second)):
        answer.generate(assembled, [question], tmp_path / f"{number}.jsonl")
    assert answers(tmp_path / "0.jsonl") != answers(tmp_path / "1.jsonl")


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_killed_file_goes_on_without_loss_or_double(tmp_path, cut):
    assembled, asked = tiny_assembled("llama"), questions()
    answer.generate(assembled, asked, tmp_path / "whole.jsonl", batch_size=2)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(whole[:-cut])  # a kill in the middle of a write
    assert answer.generate(assembled, asked, broken, batch_size=3) == 0
    assert answers(broken) == answers(tmp_path / "whole.jsonl")


def test_it_stops_after_so_many_batches_and_goes_on(tmp_path):
    assembled, asked, path = tiny_assembled("llama"), questions(), tmp_path / "p.jsonl"
    assert answer.generate(assembled, asked, path, batch_size=2, max_batches=2) == 3
    counts = []
    assert answer.generate(assembled, asked, path, batch_size=2, advance=counts.append) == 0
    assert counts == [2, 1]


def test_predictions_of_another_benchmark_are_refused_and_kept(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question_id": 99, "text": "x"}\n')
    with pytest.raises(ValueError, match="another benchmark"):
        answer.generate(tiny_assembled("llama"), questions(), path)
    assert path.read_text() == '{"question_id": 99, "text": "x"}\n'


def test_other_conditions_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    predictions.claim(path, {"run": "a"}, overwrite=False)
    path.write_text("{}\n")
    predictions.claim(path, {"run": "a"}, overwrite=False)
    with pytest.raises(ValueError, match="another run; start again with --overwrite"):
        predictions.claim(path, {"run": "b"}, overwrite=False)
    predictions.claim(path, {"run": "b"}, overwrite=True)
    assert not path.exists()
