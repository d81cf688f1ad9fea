"""`basic-lite demo` and `--model tiny` from end to end, in a very small world."""

from __future__ import annotations

import json
import threading

import pytest
from command import interrupt_when, run
from embedded import needs_parts, small_world  # noqa: F401 (a fixture)

from basic_lite.data.world.questions import KINDS
from basic_lite.experiments import curves

pytestmark = [needs_parts, pytest.mark.usefixtures("small_world")]


@pytest.mark.slow
def test_three_commands_chain_on_the_tiny_model(tmp_path):
    said = run("stage1", "--model", "tiny", "--workers", "0", "--max-steps", "2", cwd=tmp_path).stdout
    said += run("stage2", "--lora", "--workers", "0", "--max-steps", "2", cwd=tmp_path).stdout
    said += run("eval", "mmbench", cwd=tmp_path).stdout
    assert said.count("Offline, in the embedded world") == 3
    assert said.count("Drawing the embedded world") == 1
    results = json.loads((tmp_path / "runs/stage2/eval/mmbench/results.json").read_text())
    assert results["n"] > 7
    assert not results["run"]["published_size"]
    assert "mmbench and mmbench-cn, not gqa" in run("eval", "gqa", cwd=tmp_path, expect=2).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_demo_goes_on_after_a_signal_and_leaves_a_summary_a_report_and_both_runs(tmp_path):
    waiting = threading.Thread(
        target=interrupt_when, args=[tmp_path / "d/basic/stage1/log.jsonl"], daemon=True
    )
    waiting.start()
    assert "--resume goes on" in run("demo", "--out", "d", "--scenes", "8", cwd=tmp_path).stdout
    waiting.join()
    assert not (tmp_path / "d/summary.json").exists()
    assert "--resume" in run("demo", "--out", "d", "--scenes", "8", cwd=tmp_path, expect=2).stderr
    other = run("demo", "--out", "d", "--scenes", "9", "--resume", cwd=tmp_path, expect=2).stderr
    assert "was started with" in other
    before = tmp_path / "d/basic/before/inspection.json"
    written = before.stat().st_mtime_ns
    done = run("demo", "--out", "d", "--scenes", "8", "--resume", cwd=tmp_path).stdout
    assert before.stat().st_mtime_ns == written  # what was done is not done again
    assert "plain against BASIC" in done
    summary = json.loads((tmp_path / "d/summary.json").read_text())
    columns = {column["name"]: column for column in summary["columns"]}
    wanted = {f"{kind}_{language}" for kind in KINDS for language in ("en", "zh")}
    wanted |= {f"{key}_stage{n}" for key in ("caption_loss", "cosine", "meaningful") for n in (1, 2)}
    assert wanted | {"answers_en", "answers_zh", "circular_zh", "peak_mib", "seconds_stage 1"} <= set(columns)
    for column in columns.values():
        assert column["difference"] == pytest.approx(column["basic"] - column["plain"])
    page = (tmp_path / "d/report.html").read_text()
    assert page.count("<figure>") == 4 * 6
    (size,) = {len(point.measures[0].values) for point in curves.read(tmp_path / "d/plain/stage1")}
    assert f"Each point of a curve is over {size} held-out scenes." in page
    assert "The table further down is over 8 scenes" in page
    assert "basic-lite demo --seed 0 --scenes 8" in page
    for variant in ("plain", "basic"):
        for stage in ("stage1", "stage2"):
            assert json.loads((tmp_path / "d" / variant / stage / "manifest.json").read_text())["finished"]
        for name in ("mmbench", "mmbench-cn"):
            assert (tmp_path / "d" / variant / "stage2/eval" / name / "results.json").is_file()
    assert "--overwrite" in run("demo", "--out", "d", cwd=tmp_path, expect=2).stderr


def test_a_run_that_fails_is_said_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no room')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failed = run("demo", "--out", "d", "--scenes", "8", cwd=tmp_path, expect=2).stderr
    assert "2 of 2 runs failed, first plain, seed 0: SystemExit: no room (all of it in" in failed
    assert "with --resume tries them again" in failed
