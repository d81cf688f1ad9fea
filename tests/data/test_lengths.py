import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from command import data_check
from data.made_rows import FIXTURES, row
from data.planted_mix import text
from transformers import AutoTokenizer

from basic_lite.data.checks import check_data
from basic_lite.data.conversation import encode
from basic_lite.data.readers import open_rows
from basic_lite.models.generate import counting_encoder

VICUNA = FIXTURES.parent / "tokenizers" / "vicuna"
LIMIT = 300


@pytest.fixture(scope="module")
def mix() -> list[dict]:
    """Rows around 300 Vicuna tokens: words, digits, Chinese, one or more exchanges, an image of 40."""
    rng = random.Random(0)
    kinds = [
        lambda: text(rng, rng.randint(60, 260)),
        lambda: ", ".join(f"{rng.random():.2f}" for _ in range(rng.randint(20, 80))),
        lambda: "".join(rng.choices("一只猫坐在红色的沙发上看书", k=rng.randint(60, 260))),
    ]
    rows = []
    for number in range(700):
        turns = [("<image>\n" if number % 2 else "") + "What?", kinds[number % 3]()]
        turns += [text(rng, 20), "Yes."] * (number % 4)
        rows.append(row(str(number), *turns, image="a.png" if number % 2 else None))
    rows[7] = row("7", text(rng, 500), "Yes.")  # the answer is after the limit
    rows[8] = row("8", "Hi", "")
    return rows


@pytest.mark.parametrize("workers", [1, 2])
def test_counted_lengths_are_those_of_training(write_rows: Callable, mix: list, workers: int) -> None:
    rows = open_rows(write_rows(mix))
    encoder = counting_encoder(str(VICUNA), None, tokens_per_image=40, max_length=LIMIT)
    assert encoder.template == "vicuna_v1"
    findings = check_data(rows, pictures=None, encoder=encoder, workers=workers)
    tokenizer = AutoTokenizer.from_pretrained(VICUNA)
    lengths = {
        i: len(encode("vicuna_v1", tokenizer, rows[i].turns, image_token_id=0, tokens_per_image=40).input_ids)
        for i in range(len(mix))
        if i != 8
    }
    long = [i for i, length in lengths.items() if length > LIMIT]
    assert 100 < len(long) < 600
    assert [f.row for f in findings if f.code == "too_long"] == long
    assert all(f"{lengths[f.row]:,} tokens," in f.detail for f in findings if f.code == "too_long")
    rest = [(f.row, f.code) for f in findings if f.code != "too_long"]
    assert rest == [(7, "no_supervision"), (8, "empty_answer")]
    limits = {"max_length": LIMIT, "tokens_per_image": 40}
    estimated = [f for f in check_data(rows, pictures=None, **limits) if f.code == "too_long"]
    assert {f.row for f in estimated} != set(long)
    assert all("(estimated)" in f.detail for f in estimated)


def test_the_command_counts_with_a_tokenizer(write_rows: Callable, tmp_path: Path) -> None:
    path = write_rows([row("a", "Hi", "1234567890" * 12), row("b", "Hi", "yes " * 60)])
    limits = ("--max-length", 150, "--report", tmp_path / "r.json")
    for options, expected in (((), []), (("--tokenizer", VICUNA), [(0, "too_long")])):
        data_check(path, *limits, *options)
        found = json.loads((tmp_path / "r.json").read_text())["findings"]
        assert [(f["row"], f["code"]) for f in found] == expected
    for options, message in (
        (("--tokenizer", tmp_path / "none"), "no tokenizer can be loaded from"),
        (("--llm", VICUNA, "--template", "mine"), "no template is named 'mine'"),
        (("--llm", VICUNA, "--template", "chatml"), "needs '<|im_start|>' as one special token"),
    ):
        code, _, err = data_check(path, *limits, *options)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
