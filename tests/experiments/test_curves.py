"""Curves are measured without a trace in the training, and what is read off them is right."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import run
from embedded import needs_parts, small_world  # noqa: F401 (a fixture)

from basic_lite.data.world.world import held_out_scenes
from basic_lite.experiments import curves, report
from basic_lite.experiments.curves import (
    Curve,
    curves_of,
    headline_of,
    lead_of,
    samples_until,
    savings,
    sentence,
    sentences,
    steps_of,
    way_sentence,
)
from basic_lite.experiments.measure import Measure, inspect_model
from basic_lite.models.checkpoint import load_run

LOSS = Measure("caption_loss", "caption loss", "nats per token", "lower", "scenes", [])


@pytest.mark.parametrize(
    ("total", "wanted"),
    [(150, [14, 23, 37, 59, 94, 150]), (3, [1, 2, 3]), (1, [1]), (8, [1, 2, 3, 5, 8])],
)
def test_points_are_spaced_logarithmically_and_end_at_the_end(total, wanted):
    assert steps_of(total) == wanted


@pytest.mark.parametrize(
    ("trained", "samples", "points"),
    [
        (2400, 24, 6),
        (10**6, 24, 6),
        (1200, 12, 6),
        (800, 8, 6),
        (496, 4, 6),
        (304, 4, 4),
        (160, 4, 2),
        (8, 4, 2),
    ],
)
def test_what_is_measured_stays_a_share_of_what_is_trained_on(trained, samples, points):
    assert curves.size_of(trained) == (samples, points)
    assert len(curves.steps_of(trained, points)) <= points
    assert 100 * samples * points <= 6 * trained or points == 2


@pytest.mark.parametrize(
    ("values", "goal", "better", "wanted"),
    [
        ([4.0, 2.0, 1.0], 3.0, "lower", math.sqrt(100 * 200)),  # halfway, by logarithm
        ([4.0, 2.0, 1.0], 2.0, "lower", 200.0),
        ([4.0, 2.0, 1.0], 5.0, "lower", 100.0),
        ([4.0, 2.0, 1.0], 0.5, "lower", math.inf),
        ([4.0, 1.0, 3.0], 2.0, "lower", math.inf),  # it was there, and is not any more
        ([1.0, 4.0, 2.0], 3.0, "lower", math.sqrt(200 * 400)),  # for good only at the second time
        ([10.0, 30.0, 90.0], 60.0, "higher", math.sqrt(200 * 400)),
    ],
)
def test_a_goal_is_reached_for_good_between_two_points(values, goal, better, wanted):
    samples = np.array([100, 200, 400])
    reached = samples_until(samples, np.array([values]), np.array([goal]), better)
    assert reached == pytest.approx([wanted])


def test_a_goal_far_beyond_the_end_of_a_flat_curve_is_never_reached_without_a_warning():
    with np.errstate(over="raise"):
        (reached,) = samples_until(
            np.array([100, 200, 400]), np.array([[4.0, 3.0, 3.0 - 1e-6]]), np.array([1.0]), "lower"
        )
    assert reached == math.inf


def curve(*seeds: list[list[float]]) -> Curve:
    """Make a curve at 100, 200 and 400 samples; a seed is a list of units for each point."""
    values = [np.array(points) for points in seeds]
    return Curve(LOSS, np.array([100, 200, 400]), values, [np.ones(v.shape[1]) for v in values])


def test_savings_compare_with_every_point_of_the_baseline():
    base = curve([[4.0] * 5, [2.0] * 5, [1.0] * 5])
    own = curve([[2.0] * 5, [1.0] * 5, [0.5] * 5])  # half of the samples, everywhere
    made = savings("BASIC", own, base)
    assert [(one.base_samples, one.goal) for one in made] == [(100, 4.0), (200, 2.0), (400, 1.0)]
    assert [one.samples for one in made] == pytest.approx([100, 100, 200])
    assert made[-1].interval == pytest.approx((200, 200))
    said = sentence(made[-1], own, "plain")
    assert said == (
        "BASIC reaches plain's final caption loss (1.000, after 400 samples) after 200, 50% of them "
        "(95 % interval 200 to 200)."
    )


def test_a_run_that_went_on_with_other_samples_keeps_the_points_that_compare_with_its_end():
    """Begun by a version that measured five scenes, ended by one that measures three."""

    def point(step: int, units: int) -> curves.Point:
        return curves.Point(step, 16 * step, 0.1, [replace(LOSS, values=[1.0 / step] * units)])

    resumed = [point(1, 5), point(2, 5), point(3, 3), point(4, 3)]
    whole = [point(step, 4) for step in (1, 2, 3, 4)]
    made = curves_of([whole, resumed])["caption_loss"]
    assert made.samples.tolist() == [48, 64]
    assert made.each == pytest.approx(np.array([[1 / 3, 1 / 4]] * 2))
    assert [len(of) for of in made.of] == [4, 3]


def test_what_is_saved_on_the_way_is_said_beside_an_end_that_is_not_reached():
    """Ahead at the second point, level at the first, behind at the end; a saving of unknown size is none."""
    base = curve([[4.0] * 5, [3.0] * 5, [2.0] * 5])
    own = curve([[4.0] * 5, [2.5] * 5, [2.1] * 5])
    made = savings("BASIC", own, base)
    lead = lead_of(made)
    assert (lead.base_samples, lead.samples) == (200, pytest.approx(100 * 2 ** (1 / 1.5)))
    assert headline_of(made) is lead
    (said,) = sentences({"plain": {"caption_loss": base}, "BASIC": {"caption_loss": own}}, "plain")
    assert "BASIC does not reach plain's final caption loss (2.000" in said
    assert "what plain can do after 200 samples it can do after 159, 79% of them (159 to 159)" in said
    behind = curve([[5.0] * 5, [4.0] * 5, [1.9] * 5])
    made = savings("BASIC", behind, base)
    assert lead_of(made[:-1]) is None
    assert headline_of(made) is made[-1]
    assert way_sentence(made, "plain") == " On the way there it needs no fewer samples beyond noise."
    noisy = curve([[4.0] * 5, [3.1] * 5, [0.5, 0.5, 2.6, 2.6, 2.6]])
    made = savings("BASIC", noisy, base)
    assert made[-1].samples < made[-1].base_samples < made[-1].interval[1]
    assert headline_of(made) is None, "what may be noise is not marked"
    at_once = savings("BASIC", curve([[2.0] * 5] * 3), curve([[4.0] * 5, [3.0] * 5, [1.0] * 5]))
    assert headline_of(at_once) is None
    assert way_sentence(at_once[:1], "plain") == " On the way there it needs no fewer samples beyond noise."


def test_what_is_never_reached_is_said_so():
    base, own = curve([[4.0], [2.0], [1.0]]), curve([[4.0], [3.0], [2.0]])
    made = savings("BASIC", own, base)[-1]
    assert (made.samples, made.reached) == (math.inf, 0.0)
    assert json.loads(json.dumps(made.as_dict(), allow_nan=False))["samples"] is None
    said = sentence(made, own, "plain")
    assert said == (
        "BASIC does not reach plain's final caption loss (1.000, after 400 samples): it ends at 2.000."
    )


def test_a_chance_below_one_in_a_hundred_is_not_worth_a_word():
    made = replace(savings("BASIC", curve([[3.0]] * 3), curve([[3.0], [2.0], [1.0]]))[-1], reached=0.002)
    assert sentence(made, curve([[3.0]] * 3), "plain").endswith("it ends at 3.000.")
    assert sentence(replace(made, reached=0.03), curve([[3.0]] * 3), "plain").endswith(
        "3% of the resamples it does."
    )
    assert report._needed(made, 100) == ("never", "never")
    assert report._needed(replace(made, samples=100.0, interval=(100.0, 220.4)), 100) == (
        "at most 100",
        "at most 100 to 220",
    )


def test_an_interval_is_that_of_a_bootstrap_over_seeds_and_units():
    """Seeds drawn with replacement, and in each drawn seed its units, the same ones for both variants."""
    random = np.random.default_rng(5)
    ends = np.array([[4.0], [2.0], [1.0]])
    base = curve(*(ends + random.normal(0, 0.3, (3, 6)) for _ in range(3)))
    own = curve(*(share * ends + random.normal(0, 0.3, (3, 6)) for share in (0.5, 0.7, 0.9)))
    needed = []
    for _ in range(4000):
        mean = {"own": np.zeros(3), "base": np.zeros(3)}
        resampled = [random.integers(0, 6, 6) for _ in range(3)]
        for seed in random.integers(0, 3, 3):
            mean["own"] += own.values[seed][:, resampled[seed]].mean(1) / 3
            mean["base"] += base.values[seed][:, resampled[seed]].mean(1) / 3
        needed.append(samples_until(own.samples, mean["own"][None], mean["base"][-1:], "lower")[0])
    low, high = savings("BASIC", own, base)[-1].interval
    assert low == pytest.approx(np.percentile(needed, 2.5, method="nearest"), rel=0.06)
    assert high == pytest.approx(np.percentile(needed, 97.5, method="nearest"), rel=0.06)
    assert high - low > 20


def test_shares_are_of_counts_and_points_that_one_seed_lacks_are_left_out():
    def point(step: int, values: list[float]) -> curves.Point:
        share = Measure("meaningful", "true", "%", "higher", "scenes", values, [1.0, 3.0])
        return curves.Point(step, 16 * step, 0.1, [share])

    runs = [[point(1, [100.0, 0.0]), point(2, [100.0, 300.0])], [point(2, [0.0, 100.0])]]
    made = curves_of(runs)["meaningful"]
    assert made.samples.tolist() == [32]
    assert made.each.tolist() == [[100.0], [25.0]]
    assert curves_of([[], []]) == {}
    runs[1][0].measures.insert(0, replace(LOSS, values=[2.0, 3.0]))
    assert list(curves_of(runs[::-1])) == ["meaningful"]


def test_the_measuring_counts_as_a_share_of_stage_1_alone(tmp_path):
    """Interrupted attempts are in the seconds of a run's phases, and so in the share."""
    for name, seconds in (("plain", 40.0), ("basic", 60.0)):
        (tmp_path / name / "stage1").mkdir(parents=True)
        points = [curves.Point(step, 16 * step, 0.5, []) for step in (1, 2, 4)]
        curves._write(tmp_path / name / "stage1", points)
        progress = {"seconds": {"before training": 9.0, "stage 1": seconds, "stage 2": 70.0}}
        (tmp_path / name / "run.json").write_text(json.dumps(progress))
    runs = [tmp_path / "plain", tmp_path / "basic"]
    assert curves.measuring_share(runs) == pytest.approx(0.03)
    assert curves.cost_sentence(0.03) == "Measuring along the way took 3.0% of stage 1's time."
    for run_folder in runs:
        (run_folder / "stage1" / curves.FILE).unlink()
    assert curves.measuring_share(runs) is None


def test_what_is_measured_is_prepared_once(tmp_path):
    """Pictures that are drawn again at every point cost as much as looking at them."""
    prepared, looks = [], []

    def prepare(most):
        prepared.append(most)
        return lambda: looks.append("again") or []

    along = curves.Along(tmp_path, prepare)
    state = SimpleNamespace(global_step=0, max_steps=62, is_world_process_zero=True)
    args = SimpleNamespace(per_device_train_batch_size=2, gradient_accumulation_steps=2, world_size=2)
    along.on_train_begin(args, state, None)
    for state.global_step in range(1, 63):
        along.on_step_end(args, state, None, model=torch.nn.Linear(1, 1))
    assert (prepared, len(looks)) == ([4], 6), "of 496 samples 24 are measured"
    assert [(point.step, point.samples) for point in curves.read(tmp_path)][-2:] == [(39, 312), (62, 496)]


@needs_parts
@pytest.mark.slow
@pytest.mark.usefixtures("small_world")
def test_a_measured_training_is_the_same_and_a_resumed_one_has_the_same_curve(tmp_path, monkeypatch):
    """In the embedded world: the measuring itself, amid a training, and a run that was cut off."""
    monkeypatch.setattr(curves, "PERCENT", 100)  # so short a run has two points alone
    words = ["stage1", "--model", "tiny", "--workers", "0", "--max-steps", "6", "--save-steps", "4"]
    words += ["--logging-steps", "1"]
    world = tmp_path / "tiny-world"
    along = json.dumps({"world": str(world), "scenes": 5, "seed": 3})
    run(*words, "--out", "plain", cwd=tmp_path)
    run(*words, "--out", "measured", "--along", along, cwd=tmp_path)
    weights = [(tmp_path / name / "projector.safetensors").read_bytes() for name in ("plain", "measured")]
    assert weights[0] == weights[1]
    points = curves.read(tmp_path / "measured")
    assert [(point.step, point.samples) for point in points] == [(1, 16), (2, 32), (4, 64), (6, 96)]
    alone = inspect_model(load_run(tmp_path / "measured", "cpu")[0], held_out_scenes(5, 3)).measures()
    for ours, theirs in zip(points[-1].measures, alone, strict=True):
        assert (ours.name, ours.values) == (theirs.name, pytest.approx(theirs.values, abs=1e-5))
    # A run that was killed after its checkpoint at step 4, when step 6 was measured and not yet saved.
    folder = tmp_path / "measured"
    shutil.rmtree(folder / "checkpoint-6")
    for path in ("projector.safetensors", "manifest.json"):
        (folder / path).unlink()
    run(*words, "--out", "measured", "--along", along, "--resume", cwd=tmp_path)
    assert [point.measures for point in curves.read(folder)] == [point.measures for point in points]
