from __future__ import annotations

import json
import math

import pytest

from basic_lite.experiments.table import Column, collect


def test_means_and_student_intervals_over_seeds(tmp_path):
    folders = []
    for seed, (plain, basic) in enumerate([(1.0, 2.0), (2.0, 5.0), (3.0, 5.0)]):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        column = Column("x", "an x", "g", "%", "higher", plain, basic, (0.0, 1.0), 1)
        (folder / "summary.json").write_text(json.dumps({"seed": seed, "columns": [column.as_dict()]}))
        folders.append(folder)
    (found,) = collect(folders, tmp_path)
    assert (found["plain"], found["basic"], found["difference"]) == (2.0, 4.0, 2.0)
    # Differences 1, 3, 2: deviation 1, so t(0.975, 2) / sqrt(3).
    assert found["interval_95"] == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    assert (
        "| an x (%) | 2.0 | 4.0 | +2.0 | -0.5 to +4.5 | +1.0 +3.0 +2.0 |"
        in (tmp_path / "seeds.md").read_text()
    )
