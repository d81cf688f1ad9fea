"""What a decoder layer costs the host stays within its goals."""

from __future__ import annotations

import pytest
from bench.host import measure


@pytest.mark.parametrize(("stage", "kept", "again"), [(1, 65, 87), (2, 118, 156)])
def test_a_layer_takes_no_more_operations_than_it_did(stage, kept, again):
    for recompute, most in ((False, kept), (True, again)):
        basic, plain = (measure(stage=stage, recompute=recompute, basic=on, steps=1) for on in (True, False))
        assert 0 < plain.operations < basic.operations <= most
        assert basic.operations - plain.operations <= 4.5  # 9 for each of the supervised layers, half of all
        assert basic.seconds > 0
