"""Plans are data: every arm's options are stage 1's, and say what they should for any decoder."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import pytest
from basic_lite.recipes import stage1, stage2
from basic_lite.recipes.passing import defaults_of, given_to

from basic_lite.experiments.interventions import parse
from basic_lite.experiments.plans import METHOD, PLANS, arms_for, plan_named
from basic_lite.method.capture import layer_weights
from basic_lite.method.targets import check_kind
from basic_lite.training.settings import Method, Settings

DEFAULTS = defaults_of(stage1.main)
EACH = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@EACH
def test_arms_are_options_of_stage1_that_resolve_to_settings(plan, tmp_path):
    assert plan.baseline in plan.arms
    for arm in arms_for(plan, 8, {}, DEFAULTS):
        assert set(arm.options) <= set(METHOD) <= set(DEFAULTS) & set(defaults_of(stage2.main))
        options = DEFAULTS | dict(arm.options)
        method = Method(**{field.name: options[field.name] for field in fields(Method)})
        given = {"stage": 1, "out": tmp_path, "learning_rate": 1e-3, "global_batch": 8, "micro_batch": 8}
        Settings(**given, method=method).objective  # noqa: B018 (refuses weights that are none)
        assert method.layers is None or 1 <= method.layers <= 8
        layer_weights(4, method.weighting)
        parse(method.intervention)
        check_kind(method.kind)
        assert "default" in arm.key or arm.options


@EACH
def test_arms_of_one_plan_are_different_runs(plan):
    keys = [arm.key for arm in arms_for(plan, 32, {}, DEFAULTS)]
    assert len(keys) == len(set(keys)) == len(plan.arms)


def test_plans_share_the_papers_arm_and_the_plain_one():
    found = {
        name: {arm.name: arm.key for arm in arms_for(plan, 8, {}, DEFAULTS)} for name, plan in PLANS.items()
    }
    assert found["layers"]["k = 1/2"] == found["losses"]["both"] == found["weights"]["quadratic"] == "default"
    assert found["lambda"]["as it is"] == found["importance"]["attention"] == "default"
    assert found["layers"]["plain"] == found["losses"]["none"] == "basic=False"


@pytest.mark.parametrize(
    ("depth", "wanted"), [(8, [1, 2, 4, 6, 8]), (32, [4, 8, 16, 24, 32]), (2, [1, 2]), (1, [1])]
)
def test_fractions_of_the_layers(depth, wanted):
    """Rounded, at least one; what comes out twice runs once."""
    arms = arms_for(PLANS["layers"], depth, {}, DEFAULTS)
    half = max(depth // 2, 1)
    assert [arm.options.get("layers", half) for arm in arms[1:]] == wanted
    assert not any(isinstance(value, Fraction) for arm in arms for value in arm.options.values())


def test_chosen_arms_come_with_the_baseline():
    arms = arms_for(PLANS["losses"], 8, {}, DEFAULTS, chosen=["sds"])
    assert [arm.name for arm in arms] == ["none", "sds"]


def test_another_teacher_is_an_arm_of_its_own():
    plan = plan_named("teacher-noise", "./llm")
    assert plan.arms["another LLM"] == {"intervention": "teacher=./llm"}
    assert "another LLM" not in PLANS["teacher-noise"].arms


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: plan_named("nope"), "layers, losses"),
        (lambda: plan_named("losses", "./llm"), "--teacher is for the plan teacher-noise"),
        (
            lambda: arms_for(PLANS["losses"], 8, {}, DEFAULTS, chosen=["x"]),
            "no arm 'x'; its arms are none",
        ),
        (lambda: arms_for(PLANS["lambda"], 8, {"das_weight": 2.0}, DEFAULTS), "sets --das-weight itself"),
        (lambda: given_to(stage1.main, ["--foo", "1"]), "stage1: No such option"),
        (lambda: given_to(stage1.main, ["--max-steps", "x"]), "max-steps"),
        (lambda: given_to(stage1.main, ["--resume"]), "--resume cannot be passed on"),
    ],
)
def test_refusals_in_one_line(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_only_what_was_given_is_passed_on():
    found = given_to(stage1.main, ["--max-steps", "7", "--no-fused-kernels"])
    assert found == {"max_steps": 7, "fused_kernels": False}
