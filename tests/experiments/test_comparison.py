"""An ablation's folder: one set-up, one process at a time."""

from __future__ import annotations

import pytest

from basic_lite.experiments import comparison


def test_a_folder_belongs_to_one_set_up(tmp_path):
    out = tmp_path / "out"
    comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": False})
    comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": False})
    with pytest.raises(ValueError, match=r'another stage1: \{"max_steps": 3\}, now \{"max_steps": 4\}'):
        comparison.claim(out, {"stage1": {"max_steps": 4}, "quick": False})
    with pytest.raises(ValueError, match="another quick"):
        comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": True})
    comparison.claim(out, {"quick": False, "stage2": {"lora": True}})
    with pytest.raises(ValueError, match="another stage2"):
        comparison.claim(out, {"stage1": {"max_steps": 3}, "stage2": {}})
    with pytest.raises(ValueError, match="another stage1"):
        comparison.claim(out, {"stage1": {}})
    (tmp_path / "else").mkdir()
    (tmp_path / "else/file").touch()
    with pytest.raises(ValueError, match="holds no ablation"):
        comparison.claim(tmp_path / "else", {})
