"""What a decoder layer keeps for backward: the formulas against autograd's own count, at real shapes."""

from __future__ import annotations

import pytest
from memory.measure_layers import CASES, NAMES, ROWS, TOKENS, WHOLE
from memory.separate import chosen, printed_by

from basic_lite.bench.synthetic import DECODERS
from basic_lite.memory.activations import kept_per_layer, kept_per_token
from basic_lite.memory.sizes import DecoderSize


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
    held, size = CASES[case], DecoderSize.of(DECODERS[name])
    expected = ROWS * TOKENS * kept_per_token(size, held) + kept_per_layer(size, held)
    assert measured[name, case] == expected


def test_thirty_two_layers_keep_exactly_thirty_two_times_as_much(measured):
    held, size = CASES[WHOLE], DecoderSize.of(DECODERS[NAMES[0]])
    assert size.depth == 32
    one = ROWS * TOKENS * kept_per_token(size, held) + kept_per_layer(size, held)
    assert measured["all layers", WHOLE] == 31 * one


@pytest.mark.parametrize("name", NAMES)
def test_fused_a_frozen_layer_keeps_what_backward_needs(name):
    """Norm inputs, query, key, value, output, gate and up; and the scalars of norms and softmax."""
    size = DecoderSize.of(DECODERS[name])
    needed = 2 * (2 * size.width + 2 * size.query + 2 * size.keys + 2 * size.inner)
    assert kept_per_token(size, CASES[WHOLE]) == needed + 2 * 4 + 4 * size.heads
