"""Several data sets as one: names, weights, the rows of an epoch, and whose row a finding is about."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import data_check
from data.made_rows import row, write_tar

from basic_lite.data.batches import Batches, drawn_counts
from basic_lite.data.checks import check_budget, check_data, check_rows
from basic_lite.data.dataset import SupervisedRows, TextEncoder
from basic_lite.data.lengths import token_lengths
from basic_lite.data.mix import Mix, Source, open_sources, parse_source, parse_sources
from basic_lite.data.pictures import ImageTransform, load_image
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import RowFault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.json", Source(Path("a.json"))),
        ("a.json:0.5", Source(Path("a.json"), 0.5)),
        ("owner/name", Source(Path("owner/name"))),
        ("owner/name:config@split", Source(Path("owner/name:config@split"))),
        ("owner/name:config@split:2", Source(Path("owner/name:config@split"), 2)),
        ("C:\\data\\a.json", Source(Path("C:\\data\\a.json"))),
        ("C:\\data\\a.json:3", Source(Path("C:\\data\\a.json"), 3)),
        ("there:2", Source(Path("there:2"))),
        ("there:2:0.25", Source(Path("there:2"), 0.25)),
    ],
)
def test_a_name_and_its_weight(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there:2").write_text("[]")  # an existing path is that path
    assert parse_source(text) == expected


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "101", "half"])
def test_no_weight_is_refused_in_one_line(weight, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"weight.* above 0|give a number above 0") as refused:
        parse_source(f"{path}:{weight}")
    assert "\n" not in str(refused.value)


def test_image_folders_go_with_their_sets():
    assert [s.images for s in parse_sources(["a", "b"], None)] == [None, None]
    assert [s.images for s in parse_sources(["a", "b"], ["x"])] == [Path("x")] * 2
    assert [s.images for s in parse_sources(["a", "b", "c"], ["x", "-", "z"])] == [Path("x"), None, Path("z")]
    with pytest.raises(ValueError, match="2 --images for 3 --data: give one for all, or one for each"):
        parse_sources(["a", "b", "c"], ["x", "y"])


def epochs(batches: Batches, count: int) -> list[list[int]]:
    drawn = []
    for epoch in range(count):
        batches.set_epoch(epoch)
        whole = list(batches)
        assert len(whole) == len(batches)
        drawn.append([row for batch in whole for row in batch])
    return drawn


@pytest.mark.parametrize("group", [True, False])
def test_what_a_weight_draws(group):
    """Rows 0 to 19 once each, half of 20 to 49, 50 to 59 two and a half times; every third has no image."""
    sets = ((20, 1.0), (30, 0.5), (10, 2.5))
    lengths, modality = np.arange(60) % 7 + 1, np.arange(60) % 3 > 0
    usable = np.arange(60) != 21
    made = {"batch_size": 4, "group": group, "usable": usable, "sets": sets}
    seen = epochs(Batches(lengths, modality, seed=5, **made), 4)
    expected = drawn_counts([modality & usable, ~modality & usable], sets)
    for rows in seen:
        counts = Counter(rows)
        assert [counts[row] for row in range(20)] == [1] * 20
        for kind, of_kind in ((modality, expected[0]), (~modality, expected[1])):
            drawn = [sum(counts[row] for row in np.flatnonzero(kind) if a <= row < b)
                     for a, b in ((0, 20), (20, 50), (50, 60))]  # fmt: skip
            assert drawn == of_kind.tolist()
        assert all(counts[row] in (2, 3) for row in range(50, 60))
    # 29 rows, 9 without and 20 with an image: 4 and 10 an epoch, none twice before the ninth and twentieth.
    half = [{row for row in rows if 20 <= row < 50} for rows in seen]
    assert [len(rows) for rows in half] == [14] * 4
    assert len(half[0] | half[1]) == 28
    assert len(half[0] | half[1] | half[2]) == 29
    assert half[0] != half[2]
    assert epochs(Batches(lengths, modality, seed=5, **made), 4) == seen
    assert epochs(Batches(lengths, modality, seed=6, **made), 1) != seen[:1]


def test_weights_of_one_are_the_rows_themselves():
    lengths, modality = np.arange(30) % 7 + 1, np.arange(30) % 3 > 0
    made = {"batch_size": 4, "seed": 1, "group": True}
    assert epochs(Batches(lengths, modality, **made), 2) == epochs(
        Batches(lengths, modality, **made, sets=((10, 1.0), (20, 1.0))), 2
    )


def test_processes_share_what_is_drawn():
    sets = ((16, 0.75), (8, 3.0))
    lengths, modality = np.arange(24) % 5 + 1, np.arange(24) % 2 > 0
    made = {"seed": 3, "group": True, "sets": sets}
    one = Batches(lengths, modality, batch_size=4, **made)
    two = [Batches(lengths, modality, batch_size=2, rank=rank, ranks=2, **made) for rank in range(2)]
    for epoch in range(3):
        for batches in (one, *two):
            batches.set_epoch(epoch)
        shared = [sorted(a + b) for a, b in zip(*two, strict=True)]
        assert sorted(row for batch in shared for row in batch) == sorted(
            row for batch in one for row in batch
        )


@pytest.fixture
def two_sets(tmp_path: Path, write_rows: Callable, picture: Callable) -> tuple[Source, Source, Source]:
    """Two files whose pictures have the same names in different folders, and a shard."""
    sources = []
    for name, width in (("a", 20), ("b", 30)):
        (tmp_path / name).mkdir()
        picture(width, 10).save(tmp_path / name / "0.png")
        rows = [row(f"{name}{i}", "<image>What?", "A cup. " * (i + 1), image="0.png") for i in range(3)]
        rows.append(row("same", "Hi", "you"))
        path = write_rows(rows, f"{name}.json")
        sources.append(Source(path, 1.0 if name == "a" else 0.5, tmp_path / name))
    picture(40, 10).save(tmp_path / "c.png")
    caption = json.dumps({"caption": "A hat."}).encode()
    write_tar(tmp_path / "c.tar", {"0.png": (tmp_path / "c.png").read_bytes(), "0.json": caption})
    return (*sources, Source(tmp_path / "c.tar", 2.0))


def test_rows_of_a_mix(two_sets, tokenizer):
    mix = open_sources(two_sets)
    assert isinstance(mix, Mix)
    assert (len(mix), mix.sets) == (9, ((4, 1.0), (4, 0.5), (1, 2.0)))
    assert [sample.id for sample in mix] == ["a0", "a1", "a2", "same", "b0", "b1", "b2", "same", "0"]
    widths = [load_image(ref).width for sample in mix for ref in sample.images]
    assert widths == [20] * 3 + [30] * 3 + [40]
    assert mix[-1].turns[1] == ("assistant", "A hat.")
    assert len(set(mix.index.image_hash.tolist())) == 3
    alone = [open_rows(source.path, source.images) for source in two_sets]
    encoder = TextEncoder("chatml", tokenizer, 999, 4, 100)
    assert token_lengths(mix, encoder).tolist() == [
        length for rows in alone for length in token_lengths(rows, encoder).tolist()
    ]
    assert open_sources(two_sets[:1]).sha256 == alone[0].sha256
    weighted = open_sources([Source(two_sets[0].path, 0.5, two_sets[0].images)])
    assert weighted.sets == ((4, 0.5),)
    assert check_data(weighted) == check_rows(weighted) == []
    with pytest.raises(ValueError, match="given twice: a weight repeats its rows"):
        open_sources([two_sets[0], two_sets[0]])


def test_findings_name_file_and_row(two_sets, tmp_path, tokenizer):
    (tmp_path / "b" / "0.png").unlink()
    mix = open_sources(two_sets)
    mix.faults = check_rows(mix)
    assert [(fault.row, fault.code) for fault in mix.faults] == [(n, "missing_image") for n in (4, 5, 6)]
    assert {fault.where for fault in mix.faults} == {f"row {n} of {two_sets[1].path}" for n in range(3)}
    assert mix.usable.tolist() == [True] * 4 + [False] * 3 + [True] * 2
    # 3 of 9 rows are within 0.4; of the small set they are not.
    with pytest.raises(
        ValueError, match=rf"3 of 4 rows of {two_sets[1].path}.*row 0 of .*b.json \(id 'b0'\)"
    ):
        check_budget(mix, 0.4)
    transform = ImageTransform(8, (0.5,) * 3, (0.5,) * 3, "squash")
    dataset = SupervisedRows(
        mix,
        template="chatml",
        tokenizer=tokenizer,
        transform=transform,
        image_token_id=999,
        tokens_per_image=4,
        bad_budget=0.9,
        bad_log=tmp_path / "bad.jsonl",
    )
    assert dataset[5]["id"] != "b1"
    line = json.loads((tmp_path / "bad.jsonl").read_text())
    assert (line["row"], line["file"], line["row_in_file"]) == (5, str(two_sets[1].path), 1)
    dataset.bad_budget = 0.0
    with pytest.raises(RowFault, match=r"row 2 of .*b.json \(id 'b2'\): image '0.png'"):
        dataset[6]


def test_the_command_checks_several(two_sets, tmp_path):
    (tmp_path / "b" / "0.png").write_bytes(b"no picture")
    names = [f"{source.path}:{source.weight}" for source in two_sets]
    folders = ("--images", tmp_path / "a", "--images", tmp_path / "b", "--images", "-")
    code, out, _ = data_check(*names, *folders, "--report", tmp_path / "report.json")
    assert code == 1
    assert "9 rows" in out
    assert "3 with faults" in out
    found = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [(f["code"], f["row"], f["file"], f["row_in_file"]) for f in found] == [
        ("undecodable_image", n + 4, str(two_sets[1].path), n) for n in range(3)
    ]
    code, _, err = data_check(*names, *folders[:4])
    assert code == 2
    assert err == (
        "error: 2 --images for 3 --data: give one for all, or one for each in the same order "
        "(- for a set's own folder)\n"
    )
