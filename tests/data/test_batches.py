import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from data.made_rows import row
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from basic_lite.data.batches import Batches, Collator, permuted
from basic_lite.data.checks import check_rows
from basic_lite.data.conversation import IGNORE_INDEX
from basic_lite.data.dataset import SupervisedRows
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.readers import open_rows

IMAGE_ID = 999
TRANSFORM = ImageTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "pad")


@pytest.fixture
def supervised(write_rows: Callable[..., Path], picture: Callable, tmp_path: Path, tokenizer) -> Callable:
    """Make `SupervisedRows` of the rows given, with a picture `a.png`."""
    picture(20, 10).save(tmp_path / "a.png")

    def make(data: list[object], **options: object) -> SupervisedRows:
        defaults = {"template": "chatml", "tokenizer": tokenizer, "transform": TRANSFORM}
        rows = open_rows(write_rows(data), tmp_path)
        return SupervisedRows(
            rows, **{**defaults, "image_token_id": IMAGE_ID, "tokens_per_image": 4, **options}
        )

    return make


def test_a_row_and_its_batch(supervised: Callable, tokenizer) -> None:
    rows = supervised(
        [row("a", "Hi\n<image>", "Ho", image="a.png"), row("b", "Tell", "A long story.", "And", "End.")]
    )
    items = [rows[0], rows[1]]
    assert [len(item["pixels"]) for item in items] == [1, 0]
    assert items[0]["pixels"][0].shape == (3, 8, 8)
    assert items[0]["input_ids"].count(IMAGE_ID) == 4
    for item, answers in zip(items, ["Ho<|im_end|>", "A long story.<|im_end|>End.<|im_end|>"], strict=True):
        assert tokenizer.decode([label for label in item["labels"] if label != IGNORE_INDEX]) == answers
    for side in ("right", "left"):
        batch = Collator(pad_token_id=tokenizer.pad_token_id, image_token_id=IMAGE_ID, padding_side=side)(
            items
        )
        assert batch["rows"] == [0, 1]
        assert batch["pixel_values"].shape == (1, 3, 8, 8)
        assert batch["pixel_values"].dtype == torch.uint8
        for place, item in enumerate(items):
            real = batch["attention_mask"][place].bool()
            assert batch["input_ids"][place][real].tolist() == item["input_ids"]
            assert batch["labels"][place][real].tolist() == item["labels"]
            assert (batch["labels"][place][~real] == IGNORE_INDEX).all()
            padding = batch["attention_mask"][place].tolist()
            assert padding == sorted(padding, reverse=side == "right")
        layout = batch["layout"]
        assert (layout.images, layout.rows, len(layout.patch)) == (1, 2, 4)
        assert layout.targets.tolist() == [x for item in items for x in item["labels"] if x != IGNORE_INDEX]


def test_padding_is_by_length_where_pad_is_eos(supervised: Callable, tokenizer) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = supervised([row("a", "Hi", "Ho"), row("b", "Tell", "A long story.")])
    batch = Collator(pad_token_id=tokenizer.pad_token_id, image_token_id=IMAGE_ID)([rows[0], rows[1]])
    assert batch["attention_mask"].sum(1).tolist() == [len(rows[0]["input_ids"]), len(rows[1]["input_ids"])]
    assert (
        batch["labels"] == tokenizer.eos_token_id
    ).sum().item() == 2  # one end of answer per row is learned
    assert "pixel_values" not in batch
    assert batch["layout"].images == 0


def test_faults_at_run_time_name_the_row(supervised: Callable, tmp_path: Path) -> None:
    rows = supervised(
        [row("a", "<image>", "Ho", image="gone.png"), row("long", "x" * 500, "Ho")], max_length=100
    )
    with pytest.raises(ValueError, match=r"row 0 \(id 'a'\).*gone.png"):
        rows[0]
    with pytest.raises(ValueError, match=r"row 1 \(id 'long'\)"):
        rows[1]


def test_workers_give_what_the_main_process_gives(supervised: Callable, tokenizer) -> None:
    data = [row(str(i), "<image>\nHi", "Ho" * i, image="a.png") for i in range(1, 9)]
    rows = supervised(data)
    batches = Batches(rows.rows.lengths, rows.rows.has_image, batch_size=3, seed=1, group=True)
    collate = Collator(pad_token_id=0, image_token_id=IMAGE_ID)
    alone, with_workers = (
        list(DataLoader(rows, batch_sampler=batches, collate_fn=collate, num_workers=n)) for n in (0, 2)
    )
    assert [batch["rows"] for batch in alone] == [batch["rows"] for batch in with_workers] == list(batches)
    for one, two in zip(alone, with_workers, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in ("input_ids", "labels", "pixel_values"))


MIX = {
    "rows": st.lists(
        st.tuples(st.integers(1, 3000), st.booleans()), min_size=0, max_size=120
    ),  # length, kind
    "only": st.sampled_from([None, True, False]),  # one kind for all
    "group": st.booleans(),
}


@settings(max_examples=300, deadline=None)
@given(
    **MIX,
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_every_row_once_per_epoch(
    rows: list, only: bool | None, batch_size: int, accumulation: int, seed: int, group: bool
) -> None:
    lengths = [length for length, _ in rows]
    kinds = [kind if only is None else only for _, kind in rows]
    make = lambda: Batches(  # noqa: E731
        lengths, kinds, batch_size=batch_size, seed=seed, group=group, accumulation=accumulation
    )
    batches = make()
    for epoch in (0, 1, 7):
        batches.set_epoch(epoch)
        order = list(batches)
        assert len(order) == len(batches)
        assert Counter(i for batch in order for i in batch) == Counter(range(len(rows)))
        assert all(1 <= len(batch) <= batch_size for batch in order)
        if group:
            assert all(len({kinds[i] for i in batch}) == 1 for batch in order)
            steps = [order[i : i + accumulation] for i in range(0, len(order), accumulation)]
            mixed = [len({kinds[i] for batch in step for i in batch}) > 1 for step in steps]
            assert sum(mixed) <= 3  # where the last rows meet, and two where the largest is one of them
        if order:
            sizes = [max(lengths[i] for i in batch) * len(batch) for batch in order]
            assert sizes[0] == max(sizes)
        again = make()
        again.set_epoch(epoch)
        assert list(again) == order


@settings(max_examples=400, deadline=None)
@given(
    **MIX,
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    ranks=st.integers(1, 6),
    left_out=st.integers(1, 5),
)
def test_ranks_share_every_row_once(
    rows: list, only: bool | None, batch_size: int, accumulation: int, ranks: int, group: bool, left_out: int
) -> None:
    kinds = [kind if only is None else only for _, kind in rows]
    usable = np.arange(len(rows)) % left_out == 0
    parts = [
        Batches(
            [length for length, _ in rows],
            kinds,
            batch_size=batch_size,
            seed=5,
            group=group,
            accumulation=accumulation,
            usable=usable,
            rank=rank,
            ranks=ranks,
        )
        for rank in range(ranks)
    ]
    if 0 < usable.sum() < ranks:
        with pytest.raises(ValueError, match="cannot be shared"):
            list(parts[0])
        return
    for epoch in (0, 3):
        for part in parts:
            part.set_epoch(epoch)
        orders = [list(part) for part in parts]
        assert {len(order) for order in orders} == {len(parts[0])}  # ranks wait for each other
        seen = Counter(i for order in orders for batch in order for i in batch)
        assert seen == Counter(np.flatnonzero(usable).tolist())
        counts = Counter(kinds[i] for i in np.flatnonzero(usable)).values()
        if group and all(count % (batch_size * ranks) == 0 for count in counts):  # no rows are left over
            assert all(len({kinds[i] for i in batch}) == 1 for order in orders for batch in order)
        sizes = [len(batch) for order in orders for batch in order]
        assert all(1 <= size <= batch_size + (batch_size == 1 < ranks) for size in sizes)


@settings(max_examples=300, deadline=None)
@given(
    rows=MIX["rows"],
    only=st.sampled_from([None, True, False]),
    batch_size=st.integers(1, 200),  # often more than there are rows
    accumulation=st.integers(1, 3),
    ranks=st.integers(1, 4),
    group=st.booleans(),
    left_out=st.integers(1, 3),
    data=st.data(),
)
def test_resume_by_index(
    rows: list,
    only: bool | None,
    batch_size: int,
    accumulation: int,
    ranks: int,
    group: bool,
    left_out: int,
    data: st.DataObject,
) -> None:
    """A run that stops after any batch of any epoch and goes on sees what it would have, on all ranks."""
    kinds = [kind if only is None else only for _, kind in rows]
    usable = np.arange(len(rows)) % left_out == 0
    if 0 < usable.sum() < ranks:
        return

    def parts() -> list[Batches]:
        options = {"batch_size": batch_size, "seed": 3, "group": group, "accumulation": accumulation}
        lengths = [length for length, _ in rows]
        return [
            Batches(lengths, kinds, **options, usable=usable, rank=rank, ranks=ranks) for rank in range(ranks)
        ]

    epochs, whole = range(3), []
    for part in parts():
        whole.append([])
        for epoch in epochs:
            part.set_epoch(epoch)
            whole[-1].append(list(part))
    stop = data.draw(st.integers(0, 2))
    done = data.draw(st.integers(0, len(whole[0][0])))
    again = []
    for part, before in zip(parts(), whole, strict=True):
        part.set_epoch(stop)
        again.append([before[stop][:done] + list(part)[done:]])
        for epoch in range(stop + 1, len(epochs)):  # the next epochs are whole again
            part.set_epoch(epoch)
            again[-1].append(list(part))
        assert again[-1] == before[stop:]
        assert {len(order) for order in again[-1]} == {len(part)}
    for number in range(len(epochs) - stop):  # no gap and no double on the ranks together
        seen = Counter(row for orders in again for batch in orders[number] for row in batch)
        assert seen == Counter(np.flatnonzero(usable).tolist())


def test_resume_reads_no_row_that_is_done(supervised: Callable) -> None:
    rows = supervised([row(str(i), "Hi", "Ho" * i) for i in range(1, 13)])
    batches = Batches(rows.rows.lengths, rows.rows.has_image, batch_size=2, seed=0, group=True)
    collate = Collator(pad_token_id=0, image_token_id=IMAGE_ID)
    whole = [batch["rows"] for batch in DataLoader(rows, batch_sampler=batches, collate_fn=collate)]
    rows.state.zero_()
    loader = skip_first_batches(
        DataLoader(rows, batch_sampler=batches, collate_fn=collate), 4
    )  # as Trainer's
    rest = [batch["rows"] for batch in loader]
    assert rest == whole[4:]
    assert rows.tally()["seen"] == sum(map(len, rest)) == 4


def test_steps_are_of_one_modality() -> None:
    rng = np.random.default_rng(1)
    kinds = rng.random(1000) < 0.5  # leaves steps that are not full in both modalities
    for seed in range(5):
        batches = list(
            Batches(rng.integers(10, 99, 1000), kinds, batch_size=3, seed=seed, group=True, accumulation=4)
        )
        steps = [np.concatenate(batches[i : i + 4]) for i in range(0, len(batches), 4)]
        mixed = [place for place, step in enumerate(steps) if len(set(kinds[step].tolist())) > 1]
        assert len(mixed) <= 3
        assert all(place in (0, len(steps) - 1, len(steps) - 2) for place in mixed)


def test_grouping_saves_padding_and_epochs_differ() -> None:
    rng = np.random.default_rng(0)
    lengths, kinds = rng.integers(10, 2000, 5000), rng.random(5000) < 0.9

    def padding(batches: Batches) -> float:
        wasted = sum(len(b) * lengths[b].max() - lengths[b].sum() for b in batches)
        return wasted / lengths.sum()

    grouped, plain = (
        Batches(lengths, kinds, batch_size=8, seed=3, group=g, accumulation=4) for g in (True, False)
    )
    assert padding(grouped) < 0.2 < 0.5 < padding(plain)
    first = list(grouped)
    grouped.set_epoch(1)
    assert sorted(map(sorted, first)) != sorted(map(sorted, grouped))


def test_order_is_written_down() -> None:
    # A resumed run must see the first one's order with any numpy and torch: these numbers may never change.
    assert permuted(10, 0, 0).tolist() == [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]
    counts = np.bincount(np.concatenate([permuted(50, 1, epoch)[:1] for epoch in range(5000)]), minlength=50)
    assert counts.min() > 50  # 100 expected, standard deviation 10
    assert counts.max() < 150


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="2 lengths for 1 rows"):
        Batches([1, 2], [True], batch_size=1, seed=0, group=False)
    with pytest.raises(ValueError, match="at least 1"):
        Batches([1], [True], batch_size=0, seed=0, group=False)
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        Batches([1], [True], batch_size=1, seed=0, group=False, rank=2, ranks=2)
    with pytest.raises(ValueError, match="padding_side"):
        Collator(pad_token_id=0, image_token_id=1, padding_side="middle")


def test_check_rows(write_rows: Callable[..., Path], tmp_path: Path, picture: Callable) -> None:
    picture(4, 4).save(tmp_path / "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    data = [
        row("ok", "<image>", "Ho", image="a.png"),
        row("gone", "<image>", "Ho", image="gone.png"),
        row("silent", "Hi", ""),
        row("empty", "<image>", "Ho", image="empty.png"),
        row("out", "<image>", "Ho", image="../a.png"),
    ]
    findings = check_rows(open_rows(write_rows(data), tmp_path))
    assert [(f.row, f.id, f.code) for f in findings] == [
        (1, "gone", "missing_image"),
        (2, "silent", "empty_answer"),
        (3, "empty", "undecodable_image"),
        (4, "out", "path_outside_root"),
    ]
    assert json.loads(json.dumps(findings[0].as_dict()))["code"] == "missing_image"
