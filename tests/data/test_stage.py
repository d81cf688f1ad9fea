"""Rows that a stage cannot use are found before it starts, by the code that training would give them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from basic_lite.recipes.data import app
from data.made_rows import row
from typer.testing import CliRunner

from basic_lite.data.checks import check_budget, check_rows
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import RowFault


@pytest.fixture
def mixed(write_rows: Callable, picture: Callable, tmp_path: Path) -> Path:
    picture(8, 8).save(tmp_path / "a.png")
    two = {**row("two", "<image><image>", "x"), "image": ["a.png", "a.png"]}
    chat = row("chat", "<image>", "x", "And?", "y", image="a.png")
    late = row("late", "<image>", "x", image="a.png")
    late["conversations"].insert(0, {"from": "gpt", "value": "Dropped, as LLaVA does."})
    good = row("good", "<image>", "x", image="a.png")
    return write_rows([good, row("text", "Hi", "x"), chat, two, late, row("silent", "Hi", "")])


EXPECTED = {1: "placeholder_mismatch", 2: "bad_roles", 3: "placeholder_mismatch", 5: "empty_answer"}


def test_the_command_finds_them(mixed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for stage, expected in ((1, EXPECTED), (2, {5: "empty_answer"})):
        arguments = ["check", mixed, "--images", tmp_path, "--report", report, "--stage", stage]
        assert CliRunner().invoke(app, [*map(str, arguments)]).exit_code == 1
        found = json.loads(report.read_text())["findings"]
        assert [finding["row"] for finding in found if finding["code"] == "dropped_turn"] == [4]
        found = [finding for finding in found if finding["code"] != "dropped_turn"]
        assert {finding["row"]: finding["code"] for finding in found} == expected
        assert len(found) == len(expected)
    assert [finding["id"] for finding in found] == ["silent"]


def test_a_training_leaves_them_out_or_is_refused(mixed: Path, tmp_path: Path) -> None:
    rows = open_rows(mixed, tmp_path)
    rows.faults = check_rows(rows, 1)
    assert rows.usable.tolist() == [True, False, False, False, True, False]
    with pytest.raises(ValueError, match=r"4 of 6 rows.*2 placeholder_mismatch.*data check .* --stage 1"):
        check_budget(rows, 0.5, 1)
    check_budget(rows, 0.7, 1)
    rows.faults = check_rows(rows, 2)
    assert rows.usable.tolist() == [True] * 5 + [False]


def test_reading_them_says_the_same(mixed: Path, tmp_path: Path, tokenizer) -> None:
    rows = open_rows(mixed, tmp_path)
    encoder = TextEncoder("plain", tokenizer, 999, 4, 100)
    for number in range(5):
        if number in EXPECTED:
            with pytest.raises(RowFault) as caught:
                encoder(rows[number])
            assert caught.value.code == EXPECTED[number]
        else:
            assert encoder(rows[number]).input_ids.count(999) == 4


def test_an_index_counts_turns(mixed: Path, tmp_path: Path) -> None:
    for _ in range(2):  # built, then loaded
        assert open_rows(mixed, tmp_path).index.turns.tolist() == [2, 2, 4, 2, 2, 0]
