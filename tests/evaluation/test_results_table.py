"""`basic-lite results`: runs beside one another, and only like beside like."""

from __future__ import annotations

import csv
import io
import json

import pytest
from command import run

BASE = {"benchmark": "gqa", "split": "testdev", "metric": "accuracy", "scorer": "gqa_llava", "n": 12_578}
BASE |= {"prompt_style": "llava", "value": 60.04, "interval_95": [59.0, 61.4]}
BASE |= {"run": {"published_size": True, "decoding": "greedy"}}


@pytest.fixture
def runs(tmp_path):
    def put(place, **more):
        path = tmp_path / place / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**BASE, **more}))

    put("runs/a/eval/gqa")
    put("runs/b/eval/gqa", value=62.0, interval_95=[61.0, 63.0])
    put("runs/b/eval/mmvet", benchmark="mmvet", value=None, interval_95=None)
    put("runs/c/gqa", scorer="gqa_lmms")
    put("runs/d/gqa", n=100, run={"published_size": False, "decoding": "greedy"})
    (tmp_path / "runs/empty").mkdir()
    return tmp_path


def test_values_stand_in_columns_of_what_was_measured(runs):
    shown = run("results", *(f"runs/{name}" for name in ("a", "b", "c", "d", "empty")), cwd=runs).stdout
    rows = {
        line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip().startswith("runs/")
    }
    assert rows["runs/a"] == ["60.0", "±1.2"]
    assert rows["runs/b"] == ["62.0", "±1.0", "none"]
    heads = shown.split("runs/a")[0]
    assert heads.count("gqa ") >= 3
    assert "gqa_lmms" in heads
    assert "100 rows" in heads
    lines = [line for line in shown.splitlines() if "±" in line and line.strip().startswith("runs/")]
    places = {line.split()[0]: line.index("±") for line in lines}
    assert places["runs/a"] == places["runs/b"]
    assert len({places[name] for name in ("runs/a", "runs/c", "runs/d")}) == 3
    assert "Without results: runs/empty" in shown


def test_two_runs_alone_need_no_more_than_the_benchmarks_name(runs):
    heads = run("results", "runs/a", "runs/b", "--benchmark", "GQA", cwd=runs).stdout.split("runs/a")[0]
    assert "gqa_llava" not in heads
    assert "mmvet" not in heads


def test_csv_holds_the_intervals(runs):
    text = run("results", "runs/a", "runs/b", "--csv", cwd=runs).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["run"], row["benchmark"], row["low_95"]) for row in rows] == [
        ("runs/a", "gqa", "59.0"),
        ("runs/b", "gqa", "61.0"),
        ("runs/b", "mmvet", ""),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["runs/empty"], "no results in runs/empty; run"),
        (["nowhere"], "nowhere is no folder"),
    ],
)
def test_what_is_no_result_is_said_in_one_line(runs, given, message):
    refused = run("results", *given, cwd=runs, expect=2)
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
