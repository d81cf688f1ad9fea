"""Plans are data: the options of every variant are stage 1's, and say what they should for any decoder."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import pytest
from basic_lite.recipes import stage1, stage2
from basic_lite.recipes.ablate import forwarded

from basic_lite.experiments.comparison import defaults_of
from basic_lite.experiments.interventions import parse
from basic_lite.experiments.plans import METHOD, NO_OPTIONS, PLANS, Usual, at_level, plan_named, variants_for
from basic_lite.method.targets import check_kind, layer_weights
from basic_lite.training.settings import Method, Settings

DEFAULTS = defaults_of(stage1.main)
EACH = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@EACH
def test_variants_are_options_of_stage1_that_resolve_to_settings(plan, tmp_path):
    assert plan.baseline in plan.variants or plan.levels
    for variant in variants_for(plan, Usual(8), {}, DEFAULTS):
        assert set(METHOD) <= set(DEFAULTS) & set(defaults_of(stage2.main))
        assert set(variant.options) <= (
            {*DEFAULTS, *NO_OPTIONS} if plan.levels or plan.embedded else set(METHOD)
        )
        options = DEFAULTS | dict(variant.options)
        method = Method(**{field.name: options[field.name] for field in fields(Method)})
        given = {"stage": 1, "out": tmp_path, "learning_rate": 1e-3, "global_batch": 8, "micro_batch": 8}
        Settings(**given, method=method).objective  # noqa: B018 (refuses weights that are none)
        assert method.layers is None or 1 <= method.layers <= 8
        layer_weights(4, method.weighting)
        parse(method.intervention)
        check_kind(method.kind)
        assert "default" in variant.key or variant.options


@EACH
def test_variants_of_one_plan_are_different_runs(plan):
    keys = [variant.key for variant in variants_for(plan, Usual(32), {}, DEFAULTS)]
    assert len(keys) == len(set(keys)) == len(plan.variants)


def test_plans_share_the_papers_variant_and_the_plain_one():
    found = {
        name: {variant.name: variant.key for variant in variants_for(plan, Usual(8), {}, DEFAULTS)}
        for name, plan in PLANS.items()
    }
    assert found["layers"]["k = 1/2"] == found["losses"]["both"] == found["weights"]["quadratic"] == "default"
    assert found["lambda"]["as it is"] == found["importance"]["attention"] == "default"
    assert found["layers"]["plain"] == found["losses"]["none"] == "basic=False"


@pytest.mark.parametrize(
    ("depth", "wanted"), [(8, [1, 2, 4, 6, 8]), (32, [4, 8, 16, 24, 32]), (2, [1, 2]), (1, [1])]
)
def test_fractions_of_the_layers(depth, wanted):
    """Rounded, at least one; what comes out twice runs once."""
    variants = variants_for(PLANS["layers"], Usual(depth), {}, DEFAULTS)
    half = max(depth // 2, 1)
    assert [variant.options.get("layers", half) for variant in variants[1:]] == wanted
    assert not any(isinstance(value, Fraction) for variant in variants for value in variant.options.values())


def test_chosen_variants_come_with_the_baseline():
    variants = variants_for(PLANS["losses"], Usual(8), {}, DEFAULTS, chosen=["sds"])
    assert [variant.name for variant in variants] == ["none", "sds"]


def test_another_teacher_is_a_variant_of_its_own():
    plan = plan_named("teacher-noise", "./llm")
    assert plan.variants["another LLM"] == {"intervention": "teacher=./llm"}
    assert "another LLM" not in PLANS["teacher-noise"].variants


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: plan_named("nope"), "layers, losses"),
        (lambda: plan_named("losses", "./llm"), "--teacher is for the plan teacher-noise"),
        (
            lambda: variants_for(PLANS["losses"], Usual(8), {}, DEFAULTS, chosen=["x"]),
            "no variant 'x'; its variants are none",
        ),
        (
            lambda: variants_for(PLANS["lambda"], Usual(8), {"das_weight": 2.0}, DEFAULTS),
            "sets --das-weight itself",
        ),
        (lambda: forwarded(stage1.main, ["--foo", "1"]), "stage1: No such option"),
        (lambda: forwarded(stage1.main, ["--max-steps", "x"]), "max-steps"),
        (lambda: forwarded(stage1.main, ["--resume"]), "--resume cannot be forwarded"),
    ],
)
def test_refusals_in_one_line(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_only_what_was_given_is_forwarded():
    found = forwarded(stage1.main, ["--max-steps", "7", "--no-fused-kernels"])
    assert found == {"max_steps": 7, "fused_kernels": False}


@pytest.mark.parametrize(
    ("plan", "usual", "level", "wanted"),
    [
        ("data", Usual(8, 16, 2.0), "1/16", {"epochs": 0.125, "global_batch": 16}),
        ("data", Usual(8, 16, max_steps=100), "1/8", {"max_steps": 12}),
        ("data", Usual(8, 16, max_steps=4), "1/16", {"max_steps": 1}),
        ("data", Usual(8, 16, 2.0), "1", {}),
        ("rate", Usual(8, learning_rate=2e-3), "1/10", {"learning_rate": 2e-4}),
        ("rate", Usual(8, learning_rate=1e-3), "3", {"learning_rate": 3e-3}),
        ("patches", Usual(8, image_size=336, patch=14), "1/2", {"image_size": 168}),
        ("patches", Usual(8, image_size=384, patch=14), "3/4", {"image_size": 294}),  # 20.57 patches
        ("world", Usual(8), "1/4", {"named": 2}),  # of eight colours, and of eight shapes
        ("world", Usual(8), "1", {}),
    ],
)
def test_a_level_is_a_share_of_what_the_run_would_take(plan, usual, level, wanted):
    found = {variant.name: variant.options for variant in variants_for(PLANS[plan], usual, {}, DEFAULTS)}
    assert found[at_level("BASIC", level)] == wanted
    assert found[at_level("plain", level)] == {"basic": False, **wanted}


def test_levels_of_a_sweep_may_be_chosen_and_what_they_are_shares_of_may_be_given():
    given = {"learning_rate": 1e-4}
    variants = variants_for(PLANS["rate"], Usual(8, learning_rate=1e-4), given, DEFAULTS, ["1", "3"])
    assert [variant.name for variant in variants] == ["plain, 1", "BASIC, 1", "plain, 3", "BASIC, 3"]
    assert [variant.options.get("learning_rate") for variant in variants] == [None, None, 3e-4, 3e-4]
    with pytest.raises(ValueError, match="no level 'x'; its levels are 1/10; 1/3; 1; 3; 10"):
        variants_for(PLANS["rate"], Usual(8), {}, DEFAULTS, ["x"])
