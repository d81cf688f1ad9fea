"""Each fault is said in one line, and nothing that was good before is lost."""

from __future__ import annotations

import pytest
from faults import FAULTS, laboratory, try_fault


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return laboratory(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_said_and_nothing_is_lost(fault, made, tmp_path):
    printed, lost, wrong = try_fault(fault, made, tmp_path / "lab")
    assert not wrong
    assert lost == "nothing"
    assert len(printed) < 700
