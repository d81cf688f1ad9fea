"""What a decoder layer keeps for backward: the formulas against autograd's own count, at real shapes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from memory.measure_layers import CASES, FAMILIES, NAMES, ROWS, TOKENS, WHOLE, config_of
from memory.separate import chosen, printed_by

from basic_lite.bench.synthetic import DECODERS
from basic_lite.memory.activations import kept_per_layer, kept_per_token
from basic_lite.memory.sizes import DecoderSize
from basic_lite.models import zoo
from basic_lite.models.decoder_layer import FAMILIES as FAMILIES_IN_FEW
from basic_lite.training.liger import patch_of


@pytest.fixture(scope="module")
def measured(request) -> dict[tuple[str, str], int]:
    wanted = ["|".join(pair) for pair in chosen(request, "name", "case")]
    return {(name, case): two - one for name, case, one, two in printed_by("measure_layers.py", *wanted)}


DEFAULT = ("stage 1, 4 bits, fused", "stage 2, adapters", "stage 2, adapters, fused")
"""Cases of every family; the first family has all of them."""
PAIRS = [
    pytest.param(name, case, marks=() if name == NAMES[0] or case in DEFAULT else pytest.mark.full)
    for name in NAMES
    for case in CASES
]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_a_layer_keeps_exactly_what_the_formula_says(name, case, measured):
    setup, size = CASES[case], DecoderSize.of(DECODERS[name])
    expected = ROWS * TOKENS * kept_per_token(size, setup) + kept_per_layer(size, setup)
    assert measured[name, case] == expected


FAMILY_CASES = (
    "stage 1, 4 bits, fused",
    "stage 2, adapters, fused",
    "stage 2, whole decoder",
    "stage 2, adapters",
)
"""What a card runs; and what is otherwise where modules are not fused or norms are trained."""


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, marks=() if case == "stage 2, adapters, fused" else pytest.mark.full)
        for name in FAMILIES
        for case in FAMILY_CASES
    ],
)
def test_a_layer_of_a_later_family_keeps_what_the_formula_says(name, case, measured):
    setup, size = CASES[case], DecoderSize.of(config_of(name, 2))
    expected = ROWS * TOKENS * kept_per_token(size, setup, TOKENS) + kept_per_layer(size, setup)
    # GLM-4's repeated cosines and Ministral's scales are kept once for all rows, and not counted.
    rel = 0.01 if name in ("glm4", "ministral3") else 0
    assert measured[name, case] == pytest.approx(expected, rel=rel, abs=0)


def test_the_families_with_fused_modules_are_those_that_training_fuses():
    for family in zoo.FAMILIES:
        decoder = SimpleNamespace(config=SimpleNamespace(model_type=family, hidden_act="silu"))
        size = replace(DecoderSize.of(config_of("qwen2", 2)), family=family)
        assert size.fusable == (patch_of(decoder) is not None)


def test_the_families_in_few_operations_are_those_that_are_known():
    assert {family for family in zoo.FAMILIES if family in FAMILIES_IN_FEW.values()} == {
        family
        for family in zoo.FAMILIES
        if replace(DecoderSize.of(config_of("qwen2", 2)), family=family).streamlined
    }


def test_thirty_two_layers_keep_exactly_thirty_two_times_as_much(measured):
    setup, size = CASES[WHOLE], DecoderSize.of(DECODERS[NAMES[0]])
    assert size.depth == 32
    one = ROWS * TOKENS * kept_per_token(size, setup) + kept_per_layer(size, setup)
    assert measured["all layers", WHOLE] == 31 * one


@pytest.mark.parametrize("name", NAMES)
def test_fused_a_frozen_layer_keeps_what_backward_needs(name):
    """Norm inputs, query, key, value, output, gate and up; and the scalars of norms and softmax."""
    size = DecoderSize.of(DECODERS[name])
    needed = 2 * (2 * size.width + 2 * size.query + 2 * size.keys + 2 * size.inner)
    assert kept_per_token(size, CASES[WHOLE]) == needed + 2 * 4 + 4 * size.heads
