import random
from collections.abc import Callable

import numpy as np
import pytest
from data.made_rows import FIXTURES, row
from data.planted_mix import mix_rows, text
from transformers import AutoTokenizer

from basic_lite.data import lengths
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.lengths import token_lengths
from basic_lite.data.readers import Rows, open_rows

VICUNA = FIXTURES.parent / "tokenizers" / "vicuna"


@pytest.fixture(scope="module")
def vicuna() -> object:
    return AutoTokenizer.from_pretrained(VICUNA)


def encoder(tokenizer: object, template: str = "vicuna_v1", most: int | None = 2048) -> TextEncoder:
    return TextEncoder(template, tokenizer, len(tokenizer), 40, most)


def exact(rows: Rows, encode: TextEncoder) -> np.ndarray:
    return np.array([len(encode(rows[number]).input_ids) for number in range(len(rows))])


def hard_rows() -> list[dict]:
    """Numbers, code, Chinese, many lines, several pictures, text alone."""
    rng = random.Random(3)
    answers = [
        ", ".join(f"{rng.random():.3f}" for _ in range(60)),
        "def f(x):\n    return [x ** 2 for x in range(10)]\n" * 6,
        "一只猫坐在红色的沙发上看书。" * 12,
        "1. one\n\n2. two\n\n3. three\n" * 9,
        text(rng, 200),
    ]
    made = [row(str(i), "<image>\nWhat?", answer, image="a.png") for i, answer in enumerate(answers)]
    two = row("two", "<image><image> and?", answers[4])
    return [*made, {**two, "image": ["a.png", "b.png"]}, row("text", "Why?", answers[0], "So?", "Yes.")]


@pytest.mark.parametrize("workers", [1, 2])
def test_words_add_up_to_the_rows_tokens(
    write_rows: Callable, vicuna: object, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(lengths, "CHUNK", 40)
    rows = open_rows(write_rows([*mix_rows(120, 9), *hard_rows()]))
    truth = exact(rows, encoder(vicuna))
    counted = token_lengths(rows, encoder(vicuna), workers=workers)
    assert np.abs(counted - truth)[:120].max() <= 3  # of up to 900
    assert np.abs(counted / truth - 1).max() < 0.04  # indentation is one token of several spaces
    estimated = rows.batch_lengths(40)
    assert np.std(counted / truth) < 0.2 * np.std(estimated / truth)


def test_counts_are_kept_for_one_tokenizer_template_and_limit(
    write_rows: Callable, vicuna: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = open_rows(write_rows([row("a", "Hi", "yes " * 90), row("b", "Hi", "")]))
    first = token_lengths(rows, encoder(vicuna))
    assert first[1] == 0 < first[0]  # an empty answer: no batch has the row
    monkeypatch.setattr(lengths.WordCounter, "__call__", lambda *given: 7)
    assert token_lengths(rows, encoder(vicuna)).tolist() == first.tolist()
    for other in (encoder(vicuna, most=50), encoder(vicuna, "mistral_official")):
        assert token_lengths(rows, other).tolist() == [7, 0]
    monkeypatch.setattr(lengths, "FORMAT", "next")  # of the index: rows of more layouts may be readable
    assert token_lengths(rows, encoder(vicuna)).tolist() == [7, 0]


def test_a_caption_counts_without_its_request_and_a_long_row_is_cut(
    write_rows: Callable, vicuna: object
) -> None:
    rows = open_rows(
        write_rows([row(str(n), "<image>\n" + "word " * n, "A red cup.", image="a.png") for n in (1, 80)])
    )
    plain = encoder(vicuna, "plain")
    assert token_lengths(rows, plain).tolist() == pytest.approx(exact(rows, plain).tolist(), abs=1)
    assert token_lengths(rows, encoder(vicuna, most=60)).tolist()[1] == 60
