import resource
from pathlib import Path

import pytest
from data.hostile_inputs import SECRET, write

from basic_lite.data import archives
from basic_lite.data.checks import check_data, check_pictures
from basic_lite.data.pictures import ImageTransform, load_image
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import STILL_TRAINS, RowFault


def test_hostile_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = write(tmp_path)
    read: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(str(path)) or real(path))
    opened = open_rows(tmp_path / "rows.json", tmp_path / "root")
    assert len(opened) == len(listed)
    findings = check_data(opened)
    said = {finding.row: finding for finding in findings}
    assert len(said) == len(findings)
    wrong = {
        name: (code, said.get(row))
        for row, (name, code) in enumerate(listed)
        if getattr(said.get(row), "code", None) != code
    }
    assert wrong == {}
    assert all("\n" not in finding.detail and len(finding.detail) < 400 for finding in findings)
    assert not any(SECRET in path for path in read)

    # What the check calls good, training can read; what it does not, training refuses with the same code.
    transform = ImageTransform(28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "pad")
    for row, (name, code) in enumerate(listed):
        if code is None or code in STILL_TRAINS:
            for ref in opened[row].images:
                assert transform(load_image(ref)).shape == (3, 28, 28), name
        else:
            with pytest.raises(RowFault) as caught:
                [load_image(ref) for ref in opened[row].images]
            assert caught.value.code == code, name
    assert not any(SECRET in path for path in read)


def test_reading_them_takes_little_memory(tmp_path: Path) -> None:
    write(tmp_path)
    opened = open_rows(tmp_path / "rows.json", tmp_path / "root")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_pictures(opened)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, f"{grown} MiB; the largest picture that is decoded takes 268"
    assert archives.MAX_BYTES <= 256 << 20
