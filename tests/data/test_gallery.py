import json
from collections.abc import Callable
from pathlib import Path

import pytest
from data.deadly_pictures import examine_until_70
from data.made_rows import row
from data.planted_mix import write_mix

from basic_lite.data import checks, pictures
from basic_lite.data.checks import check_budget, check_data, check_pictures, check_rows, known_bad_pictures
from basic_lite.data.readers import Rows, open_rows


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    write_mix(folder, rows=700, pictures=12, each=6)
    return folder


def found(rows: Rows, **options: object) -> set[tuple[int, str]]:
    findings = check_data(rows, **options)
    return {(finding.row, finding.code) for finding in findings if finding.code != "dropped_turn"}


def planted(mix: Path) -> set[tuple[int, str]]:
    return {(fault["row"], fault["code"]) for fault in json.loads((mix / "planted.json").read_text())}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_planted_fault_is_found_and_none_invented(mix: Path, workers: int) -> None:
    for kept in ("index", "pictures"):
        (mix / f"mix.json.{kept}").unlink(missing_ok=True)
    rows = open_rows(mix / "mix.json", mix / "images", workers=workers)
    assert len(planted(mix)) == 72
    assert found(rows, workers=workers) == planted(mix)


def test_depths(mix: Path) -> None:
    rows = open_rows(mix / "mix.json", mix / "images")
    deep = {"undecodable_image", "wrong_suffix", "oversized_image"}
    present = {fault for fault in planted(mix) if fault[1] not in deep}
    header = {fault for fault in planted(mix) if fault[1] != "undecodable_image"}
    # The cut JPEG of the mix has a whole header.
    assert found(rows, pictures="present") == present
    assert found(rows, pictures="header") == header


def make(write_rows: Callable, picture: Callable, tmp_path: Path, count: int = 200) -> Rows:
    (tmp_path / "images").mkdir(exist_ok=True)
    for i in range(count):
        picture(8, 8).save(tmp_path / "images" / f"{i}.png")
    data = [row(str(i), "<image>", "x", image=f"{i % count}.png") for i in range(count + 10)]
    return open_rows(write_rows(data), tmp_path / "images")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that were opened."""
    names: list[str] = []
    real = pictures.open_header

    def open_header(data: bytes, name: str) -> object:
        names.append(name)
        return real(data, name)

    monkeypatch.setattr(pictures, "open_header", open_header)
    return names


def test_each_file_is_looked_at_once_and_again_when_it_changes(
    write_rows: Callable, picture: Callable, tmp_path: Path, looked_at: list[str]
) -> None:
    rows = make(write_rows, picture, tmp_path)
    done = []
    assert check_pictures(rows, progress=lambda at, of: done.append((at, of))) == []
    assert len(looked_at) == len(set(looked_at)) == 200
    assert done[-1] == (200, 200)
    looked_at.clear()
    assert check_pictures(rows) == []
    assert looked_at == []
    (tmp_path / "images" / "7.png").write_bytes(b"")
    assert [(f.row, f.code) for f in check_pictures(rows)] == [
        (7, "undecodable_image"),
        (207, "undecodable_image"),
    ]
    assert looked_at == ["7.png"]
    assert [(f.row, f.code) for f in known_bad_pictures(rows)] == [
        (7, "undecodable_image"),
        (207, "undecodable_image"),
    ]
    picture(9, 9).save(tmp_path / "images" / "7.png")
    assert check_pictures(rows) == known_bad_pictures(rows) == []


def test_a_stopped_check_goes_on_where_it_was(
    write_rows: Callable, picture: Callable, tmp_path: Path, looked_at: list[str]
) -> None:
    rows = make(write_rows, picture, tmp_path)

    def stop(done: int, total: int) -> None:
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_pictures(rows, progress=stop)
    before = set(looked_at)
    looked_at.clear()
    assert check_pictures(rows) == []
    assert before & set(looked_at) == set()
    assert len(before) + len(looked_at) == 200


def test_a_sample_is_spread_over_the_rows(
    write_rows: Callable, picture: Callable, tmp_path: Path, looked_at: list[str]
) -> None:
    rows = make(write_rows, picture, tmp_path)
    check_pictures(rows, sample=5)
    assert looked_at == ["0.png", "49.png", "99.png", "149.png", "199.png"]


def test_a_decoder_that_ends_its_process(
    write_rows: Callable, picture: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make(write_rows, picture, tmp_path)
    monkeypatch.setattr(checks, "_examine", examine_until_70)
    findings = check_pictures(rows, workers=2)
    assert {finding.code for finding in findings} == {"undecodable_image"}
    assert {finding.detail for finding in findings} == {"decoding it ends the process"}
    assert len({rows[finding.row].images[0].name for finding in findings}) == 1


def test_start_of_a_training(mix: Path) -> None:
    rows = open_rows(mix / "mix.json", mix / "images")
    findings = check_rows(rows, images=None, decoded=None)
    still = {"wrong_suffix", "too_long", "duplicate_id"}
    bad = {fault for fault in planted(mix) if fault[1] not in still}
    assert {(finding.row, finding.code) for finding in findings} == bad
    rows.faults = findings
    check_budget(rows, 0.1)
    assert set((~rows.usable).nonzero()[0].tolist()) == {number for number, _ in bad}
    with pytest.raises(ValueError, match=r"54 of 700 rows .*[ (]6 malformed_row.*allowed 0.5%") as caught:
        check_budget(rows)
    assert "\n" not in str(caught.value)


def test_no_usable_row_is_an_error_whatever_the_budget(write_rows: Callable) -> None:
    rows = open_rows(write_rows([row("a", "Hi", "")]))
    with pytest.raises(ValueError, match="1 of 1 rows"):
        check_budget(rows, 1.0)
