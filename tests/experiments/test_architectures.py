"""Verdicts on architectures come from trying, and agree with what the training commands take."""

from __future__ import annotations

import json

import pytest

from basic_lite.experiments import architectures
from basic_lite.experiments.architectures import CANDIDATES, judge
from basic_lite.models import zoo

BY_TYPE = {candidate.model_type: candidate for candidate in CANDIDATES}


@pytest.mark.parametrize("family", [family for family in zoo.FAMILIES if family in BY_TYPE])
def test_what_is_trained_works(family):
    found = judge(BY_TYPE[family])
    assert (found.llava, found.importance, found.states, found.trained, found.verdict) == ("yes",) * 4 + (
        "works",
    )


@pytest.mark.parametrize("refused", [refused for refused in zoo.WHY_NOT if refused in BY_TYPE])
def test_what_is_refused_has_a_reason_and_does_not_work(refused):
    found = judge(BY_TYPE[refused])
    assert found.importance != "yes"
    assert zoo.WHY_NOT[refused] in found.trained
    if found.llava == "yes":  # a release of transformers that puts it into a LLaVA
        assert found.verdict == f"works with importance uniform alone: {zoo.WHY_NOT[refused]}"
    else:
        assert found.verdict == "states can be read, but transformers' LLaVA does not take it"
    with pytest.raises(ValueError, match="supported decoders are of type"):
        zoo.family_of(refused, "x")


def test_the_report_has_a_row_for_each(monkeypatch, tmp_path):
    monkeypatch.setattr(architectures, "CANDIDATES", [BY_TYPE["llama"], BY_TYPE["mamba"]])
    assert architectures.report(tmp_path).row_count == 2
    verdicts = json.loads((tmp_path / "architecture.json").read_text())["verdicts"]
    assert [one["model_type"] for one in verdicts] == ["llama", "mamba"]
    assert "| llama | decoder | yes | yes | works |" in (tmp_path / "architecture.md").read_text()
