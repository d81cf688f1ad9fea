"""One comparison of two manifests serves before and after loading."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from basic_lite.training.checks import check_same_run

THEN = {
    "stage": 1,
    "sources": {"llm": "a", "bits": 4, "exif": "ignore", "background": "#ffffff"},
    "llm": {"revision": "1"},
    "tower": {"revision": "2"},
    "template": "plain",
    "image_size": 336,
    "method": {"basic": True, "intervention": "noise=0.1"},
    "data": {"path": "d.json", "sha256": "x", "rows": 3, "left_out": 0},
    "training": {"micro_batch": 4, "learning_rate": 1e-3, "seed": 0},
    "steps": 7,
}
RESUME = Path("runs/one/checkpoint-7")


def test_the_same_run_may_have_another_micro_batch_and_more_steps():
    now = deepcopy(THEN) | {"steps": 0, "versions": {}}
    now["training"]["micro_batch"] = 2
    check_same_run(now, THEN, RESUME)
    assert THEN["training"]["micro_batch"] == 4


def test_what_an_older_version_did_not_write_is_no_difference():
    now = deepcopy(THEN)
    now["training"]["min_rating"] = None
    check_same_run(now, THEN, RESUME)


def test_data_that_was_moved_is_the_same_data():
    """What files hold is compared by hash: a folder of data may have another name by now."""
    then = deepcopy(THEN)
    then["data"] |= {
        "sets": [{"path": "a.json", "sha256": "a", "rows": 3, "weight": 1.0}],
        "held_out": {"path": "held.json", "sha256": "h", "rows": 1},
    }
    now = deepcopy(then)
    for part in (now["data"], *now["data"]["sets"], now["data"]["held_out"]):
        part["path"] = f"/mnt/new disk/{part['path']}"
    now["data"]["stream"] = None
    check_same_run(now, then, RESUME)
    now["data"]["sets"][0]["sha256"] = "b"
    with pytest.raises(ValueError, match=r"another data: .*a\.json.*, now .*/mnt/new disk/a\.json"):
        check_same_run(now, then, RESUME)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stage", 2, r"another stage: 1, now 2; resume with the same settings, or start again"),
        ("template", "chatml", "another template: plain, now chatml"),
        (
            "method",
            {"basic": True},
            r"another method: {'intervention': 'noise=0.1'}, now {'interv",
        ),
        ("data", {**THEN["data"], "rows": 4}, r"another data: {'rows': 3}, now {'rows': 4}"),
        ("training", {"micro_batch": 4, "learning_rate": 1e-3, "seed": 1}, r"{'seed': 0}, now {'seed': 1}"),
    ],
)
def test_what_differs_is_named_with_both_values(key, value, said):
    with pytest.raises(ValueError, match=rf"the run in runs/one was started with another {key}") as refused:
        check_same_run(THEN | {key: value}, THEN, RESUME)
    assert said in str(refused.value)
