"""The page of a run says what its log says, while it goes on, when it is done, and beside another one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command import run
from matplotlib.axes import Axes

from basic_lite.files import EMBEDDING_SPACE, FORMAT
from basic_lite.training.report import Log, write

LOSSES = {0: 4.0, 2: 2.5, 4: 2.75}


def answer(step: int) -> str:
    return f"<b>a picture</b> of {step}"


def made(folder: Path, losses: dict[int, float | None], finished: bool = True) -> Path:
    """Write what a run of four steps leaves, eight rows a step, two rows a second, a second a measurement."""
    folder.mkdir()
    lines = []
    for step in range(5):
        if step:
            figures = {"lm": 5.0 - step, "das": None, "sds": None, "cosine": 0.1 * step}
            lines.append({"step": step, "steps": 4} | figures | {"samples_per_second": 2.0})
        if step in losses:
            held = {"val_lm": losses[step], "val_das": 0.5, "val_sds": 2.0, "val_cosine": 0.25}
            held |= {"val_named": 0.125, "val_rows": 1200, "val_seconds": 1.0}
            lines.append({"step": step, "steps": 4} | held)
            lines[-1]["samples"] = [{"id": "c7", "answer": answer(step), "true": "a red one"}]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "log.jsonl").write_text(text if finished else text + '{"step": 5, "st')
    manifest = {"format": FORMAT, "method": {"embedding_space": EMBEDDING_SPACE}}
    if finished:
        (folder / "manifest.json").write_text(json.dumps(manifest | {"training": {"global_batch": 8}}))
    return folder


def test_the_page_has_the_curves_the_measurements_and_the_answers(tmp_path):
    folder = made(tmp_path / "run", LOSSES)
    page, said = write([folder], tmp_path / "page.html")
    # 3 s of measuring, and 4 steps of 8 rows at 2 rows a second.
    assert said == [
        f"{tmp_path.name}/run: 4 of 4 steps, loss of 1,200 held-out rows 4.000 before, "
        "lowest 2.500 after step 2, last 2.750 after step 4, measuring took 15.8% of the time."
    ]
    text = page.read_text()
    rows = re.findall(r"<tr( class=\"best\")?><td>(\d)</td><td>([\d.]+)</td>", text)
    assert rows == [("", "0", "4.000"), (' class="best"', "2", "2.500"), ("", "4", "2.750")]
    assert "12.5 %" in text
    for step in LOSSES:
        assert f"<td>step {step}</td><td>&lt;b&gt;a picture&lt;/b&gt; of {step}</td>" in text
    assert text.count("<td>true</td><td>a red one</td>") == 1
    assert text.count("<svg") == 1


def test_the_answers_are_those_that_were_written(tmp_path):
    folder = made(tmp_path / "run", {0: 4.0, 1: 1.0, 2: 3.0, 4: 2.5})
    lines = (folder / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row | {"samples": []} if row["step"] == 1 and "samples" in row else row for row in rows]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = write([folder], tmp_path / "page.html")[0].read_text()
    assert [step for step in range(5) if f"<td>step {step}</td>" in text] == [0, 2, 4]


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(tmp_path):
    folder = made(tmp_path / "run", {0: None, 2: 2.5}, finished=False)
    log = Log.of(folder)
    assert (len(log.steps), [row["step"] for row in log.measurements]) == (4, [0, 2])
    assert log.measuring_share is None  # the batch is known when it is done
    assert "held-out rows not finite before, lowest 2.500 after step 2" in log.summary
    assert "<td>0</td><td></td>" in write([folder], tmp_path / "page.html")[0].read_text()


def test_a_finished_run_whose_last_step_is_not_logged_is_done(tmp_path):
    folder = made(tmp_path / "run", {})
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text(lines[0])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"steps": 4}))
    assert write([folder], tmp_path / "page.html")[1][0].startswith(f"{tmp_path.name}/run: 4 of 4 steps")


def test_several_runs_stand_in_one_plot_by_the_command(tmp_path):
    runs = [made(tmp_path / "plain", LOSSES), made(tmp_path / "basic", {})]
    said = run("report", *runs, cwd=tmp_path).stdout
    assert "basic: 4 of 4 steps, no held-out rows were measured (--val-share or --val-data)." in said
    assert (tmp_path / "report.html").read_text().count("<svg") == 1
    run("report", runs[0], cwd=tmp_path)
    assert (runs[0] / "report.html").is_file()
    refused = run("report", tmp_path / "nowhere", cwd=tmp_path, expect=2).stderr
    assert refused.count("\n") == 1
    assert "no log.jsonl" in refused


@pytest.mark.parametrize("key", ["lm", "cosine", "das", "sds", "val_lm", "val_named"])
def test_every_figure_of_the_log_is_drawn_where_there_is_one(key, tmp_path, monkeypatch):
    drawn, real = [], Axes.plot

    def plot(self, x, y, *style, **more):
        drawn.append((tuple(x), tuple(y)))
        return real(self, x, y, *style, **more)

    monkeypatch.setattr(Axes, "plot", plot)
    write([made(tmp_path / "run", LOSSES)], tmp_path / "page.html")
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    factor = 100.0 if key == "val_named" else 1.0
    points = [(row["step"], factor * row[key]) for row in rows if row.get(key) is not None]
    wanted = tuple(zip(*points, strict=True))
    assert (wanted in drawn) is bool(points)
