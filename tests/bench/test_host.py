"""What a decoder layer costs the host stays within its goals."""

from __future__ import annotations

import pytest

from basic_lite.bench import host
from basic_lite.bench.host import Layer, measure


@pytest.mark.parametrize(("stage", "kept", "again"), [(1, 65, 87), (2, 118, 156)])
def test_a_layer_takes_no_more_operations_than_it_did(stage, kept, again):
    for recompute, most in ((False, kept), (True, again)):
        basic, plain = (measure(stage=stage, recompute=recompute, basic=on, steps=1) for on in (True, False))
        assert 0 < plain.operations < basic.operations <= most
        assert basic.operations - plain.operations <= 4.5  # 9 for each of the supervised layers, half of all
        assert basic.seconds > 0


def test_the_table_sets_every_layer_of_stage_2_beside_pefts(monkeypatch):
    def measured(name, *, stage=2, recompute, basic=True, grouped=True, steps):
        return Layer(operations=100 * stage + 50 * recompute + basic, seconds=0.001 if grouped else 0.004)

    monkeypatch.setattr(host, "measure", measured)
    rows = host.compare_layers("vicuna-7b", 3, 1)
    assert [row["operations"] for row in rows] == [101, 100, 201, 200, 201, 151, 150, 251, 250, 251]
    assert [row["recomputing"] for row in rows] == ["no"] * 5 + ["yes"] * 5
    assert [row.get("of PEFT's") for row in rows[:5]] == [None, None, 0.25, 0.25, 1]
    assert rows[2]["processor ms"] == 1


def test_a_layer_of_no_known_model():
    with pytest.raises(ValueError, match="no model is named 'gpt-5'; known: vicuna-7b"):
        measure("gpt-5")
