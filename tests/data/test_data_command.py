import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from basic_lite.recipes.data import app
from command import data_check
from data.made_rows import row
from data.planted_mix import write_mix
from typer.testing import CliRunner


def test_clean(write_rows: Callable, picture: Callable, tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "a.png")
    path = write_rows([row("a", "<image>", "x", image="a.png"), row("b", "Hi", "y")])
    code, out, _ = data_check(path, "--images", tmp_path, "--report", tmp_path / "report.json")
    assert code == 0
    assert "2 rows" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["rows"], report["findings"]) == (2, [])
    assert (tmp_path / "bad.jsonl").read_text() == ""
    assert data_check(path)[0] == 0


def test_a_wrong_suffix_is_a_note(write_rows: Callable, picture: Callable, tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "a.jpg", "PNG")
    path = write_rows([row("a", "<image>", "x", image="a.jpg")])
    code, out, _ = data_check(path, "--images", tmp_path, "--report", tmp_path / "report.json")
    assert code == 0
    assert "wrong_suffix" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert [finding["code"] for finding in report["findings"]] == ["wrong_suffix"]
    assert (tmp_path / "bad.jsonl").read_text() == ""


def test_findings(tmp_path: Path) -> None:
    planted = write_mix(tmp_path, rows=400, pictures=4, each=3)
    report = tmp_path / "out" / "report.json"
    options = ("--images", tmp_path / "images", "--report", report, "--workers", 1)
    code, out, _ = data_check(tmp_path / "mix.json", *options)
    assert code == 1
    found = json.loads(report.read_text())
    found["findings"] = [finding for finding in found["findings"] if finding["code"] != "dropped_turn"]
    assert found["rows"] == 400
    assert [{"row": f["row"], "code": f["code"]} for f in found["findings"]] == planted
    assert all(set(f) == {"row", "id", "code", "detail"} and f["detail"] for f in found["findings"])
    assert all(fault["code"] in out for fault in planted)
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    still = {"wrong_suffix", "too_long", "duplicate_id"}
    assert [line["row"] for line in bad] == [f["row"] for f in planted if f["code"] not in still]


def test_brackets_are_shown_as_they_are(write_rows: Callable, tmp_path: Path) -> None:
    """rich reads them as markup: an extra's name would be gone, and what looks like an end raises."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    rows = [row("a", "<image>", "x", image="a.heic"), row("b", "<image>", "x", image="[/b].png")]
    code, out, err = data_check(write_rows(rows), "--images", tmp_path)
    assert (code, err) == (1, "")
    assert "pip install 'basic-lite[heic]' reads it" in " ".join(out.split())
    assert "'[/b].png'" in out


def test_lengths(write_rows: Callable, tmp_path: Path) -> None:
    path = write_rows([row("a", "Hi", "x " * 900), row("b", "x " * 900, "y")])
    assert data_check(path)[0] == 0
    data_check(path, "--max-length", 200, "--report", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())["findings"]
    assert [(f["row"], f["code"]) for f in found] == [(0, "too_long"), (1, "no_supervision"), (1, "too_long")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.json", None, "no annotation file"),
        ("empty.json", "", "is empty"),
        ("cut.json", '[{"id": "a"}, {"id', "ends inside row 1"),
        ("object.json", '{"data": []}', "holds no rows"),
        ("text.json", "<html>404</html>", "neither a JSON array"),
    ],
)
def test_unusable(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    code, _, err = data_check(tmp_path / name, "--report", tmp_path / "report.json")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert message in json.loads((tmp_path / "report.json").read_text())["error"]


def test_image_root_that_is_none(write_rows: Callable, tmp_path: Path) -> None:
    path = write_rows([row("a", "Hi", "x")])
    code, _, err = data_check(path, "--images", tmp_path / "none")
    assert (code, "no image folder" in err) == (2, True)


def test_ids_that_no_file_can_hold(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "\\ud800", "conversations": 3}\n')
    code, _, _ = data_check(tmp_path / "a.jsonl", "--report", tmp_path / "report.json")
    assert code == 1
    assert json.loads((tmp_path / "report.json").read_text())["findings"][0]["code"] == "malformed_row"


def test_help_is_quick_and_has_examples() -> None:
    started = time.process_time()
    result = CliRunner().invoke(app, ["check", "--help"])
    assert "basic-lite data check" in result.stdout
    assert time.process_time() - started < 0.5


@pytest.mark.slow
def test_interrupt_and_resume(tmp_path: Path) -> None:
    write_mix(tmp_path, rows=3000, pictures=1500, each=1)
    script = "from basic_lite.recipes.data import app\nif __name__ == '__main__': app()"
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, tmp_path / "run.py", "check", tmp_path / "mix.json", "--workers", "2"]
    command += ["--images", tmp_path / "images", "--report", tmp_path / "report.json"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "mix.json.index").exists():
        time.sleep(0.05)
    time.sleep(0.4)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 130, err
    assert "Traceback" not in err
    assert "goes on from here" in err
    assert subprocess.run(command, capture_output=True).returncode == 1
    planted = json.loads((tmp_path / "planted.json").read_text())
    found = json.loads((tmp_path / "report.json").read_text())["findings"]
    found = [finding for finding in found if finding["code"] != "dropped_turn"]
    assert [{"row": f["row"], "code": f["code"]} for f in found] == planted
