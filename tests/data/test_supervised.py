import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.made_rows import row
from torch.utils.data import DataLoader

from basic_lite.data.batches import Batches, Collator
from basic_lite.data.conversation import IGNORE_INDEX
from basic_lite.data.dataset import SupervisedRows
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.readers import open_rows

IMAGE_ID = 999


@pytest.fixture
def supervised(
    write_rows: Callable[..., Path], picture: Callable, tmp_path: Path, tokenizer: object
) -> Callable:
    """Make `SupervisedRows` with 40 rows with a picture and 20 without; those of `bad` have a broken one."""
    picture(20, 10).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    def make(bad: set[int] = frozenset(), **options: object) -> SupervisedRows:
        data = []
        for i in range(60):
            image = None if i % 3 == 2 else "bad.png" if i in bad else "a.png"
            data.append(row(str(i), ("<image>\n" if image else "") + "Hi", "Ho " * (i + 1), image=image))
        defaults = {
            "template": "chatml",
            "tokenizer": tokenizer,
            "image_token_id": IMAGE_ID,
            "tokens_per_image": 4,
        }
        transform = ImageTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "pad")
        return SupervisedRows(
            open_rows(write_rows(data), tmp_path), transform=transform, **{**defaults, **options}
        )

    return make


def load_all(rows: SupervisedRows, workers: int = 0) -> list[dict]:
    batches = Batches(rows.rows.lengths, rows.rows.has_image, batch_size=4, seed=2, group=True)
    collate = Collator(pad_token_id=0, image_token_id=IMAGE_ID)
    return list(DataLoader(rows, batch_sampler=batches, collate_fn=collate, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_replaced_logged_and_counted(supervised: Callable, tmp_path: Path, workers: int) -> None:
    log = tmp_path / "run" / "bad.jsonl"
    rows = supervised(bad={0, 30, 31}, bad_budget=0.05, bad_log=log)
    seen = [number for batch in load_all(rows, workers) for number in batch["rows"]]
    assert len(seen) == 60
    assert {0, 30, 31}.isdisjoint(seen)
    lines = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda line: line["row"])
    assert [line["row"] for line in lines] == [0, 30, 31]
    # The next longer row with a picture; 32 is text, 30 and 31 are each other's first choice.
    assert [line["replaced_by"] for line in lines] == [1, 33, 33]
    for line in lines:
        assert (line["id"], line["code"]) == (str(line["row"]), "undecodable_image")
        assert f"row {line['row']} (id '{line['row']}')" in line["detail"]
        assert "'bad.png'" in line["detail"]
    assert rows.tally() == {"seen": 57, "truncated": 0, "replaced": 3, "left_out": 0}


def test_the_same_rows_replace_in_every_run(supervised: Callable) -> None:
    runs = [load_all(supervised(bad={3, 9}, bad_budget=0.5), workers) for workers in (0, 2, 0)]
    assert [[batch["rows"] for batch in run] for run in runs[1:]] == [
        [batch["rows"] for batch in runs[0]]
    ] * 2


def test_rows_known_to_be_bad_replace_nothing(supervised: Callable) -> None:
    usable = np.ones(60, bool)
    usable[1:40] = False
    rows = supervised(bad={0}, bad_budget=0.9, usable=usable)
    assert rows[0]["row"] == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_budget_stops(supervised: Callable, workers: int) -> None:
    with pytest.raises(
        ValueError, match=r"^4 of 60 rows turned out bad, 3 are allowed; the last: row \d+ \(id"
    ):
        load_all(supervised(bad={0, 30, 31, 33}, bad_budget=0.05), workers)  # one line, from a worker too


def test_rows_left_out_and_rows_of_before_count_too(supervised: Callable, tmp_path: Path) -> None:
    log = tmp_path / "bad.jsonl"
    usable = np.arange(60) != 40
    first = supervised(bad={0, 30}, bad_budget=0.05, bad_log=log, usable=usable)
    for _ in range(2):  # as two epochs do
        assert (first[0]["row"], first[30]["row"]) == (1, 31)
    assert first.tally() == {"seen": 2, "truncated": 0, "replaced": 2, "left_out": 1}
    assert len(log.read_text().splitlines()) == 2
    with log.open("a") as file:
        file.write('{"row": 57, "id": ')  # a kill came in between
    resumed = supervised(bad={0, 30, 31}, bad_budget=0.05, bad_log=log, usable=usable)
    assert resumed.tally()["replaced"] == 2
    assert resumed[0]["row"] == 1
    with pytest.raises(ValueError, match=r"^4 of 60 rows turned out bad, 3 are allowed"):
        resumed[31]


def test_a_log_that_was_cut_off_goes_on_after_it(supervised: Callable, tmp_path: Path) -> None:
    log = tmp_path / "bad.jsonl"
    options = {"bad": {0, 30, 31}, "bad_budget": 0.5, "bad_log": log}
    assert supervised(**options)[0]["row"] == 1
    with log.open("a") as file:
        file.write('{"row": 57, "detail": "turn 0 must be {\'from\', \'value\'}')
    assert supervised(**options)[30]["row"] == 33
    resumed = supervised(**options)
    assert resumed.state.numpy().nonzero()[0].tolist() == [0, 30]


def test_without_a_budget_the_first_bad_row_stops(supervised: Callable) -> None:
    with pytest.raises(ValueError, match=r"^row 30 \(id '30'\): image 'bad.png' cannot be decoded"):
        supervised(bad={30})[30]


def test_nothing_left_to_replace_with(supervised: Callable) -> None:
    rows = supervised(bad={i for i in range(60) if i % 3 != 2}, bad_budget=1.0)
    with pytest.raises(ValueError, match="row 0"):
        rows[0]
    assert rows[2]["row"] == 2


def test_truncation_is_counted_and_spares_the_image(supervised: Callable) -> None:
    rows = supervised(max_length=60)
    for batch in load_all(rows, workers=2):
        assert batch["input_ids"].shape[1] <= 60
        assert (batch["input_ids"] == IMAGE_ID).sum().item() == 4 * batch["layout"].images
        assert (batch["labels"] != IGNORE_INDEX).any(dim=1).all()
    whole = supervised(max_length=None)
    long = sum(len(whole[i]["input_ids"]) > 60 for i in range(60))
    assert 0 < long < 60
    assert rows.tally() == {"seen": 60, "truncated": long, "replaced": 0, "left_out": 0}


def test_a_cut_that_leaves_nothing_is_a_fault(supervised: Callable) -> None:
    rows = supervised(max_length=20)
    with pytest.raises(ValueError, match=r"row 0 .*max_length 20") as caught:
        rows[0]
    assert caught.value.code == "no_supervision"
