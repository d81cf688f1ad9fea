"""`--sds-text skip` from the command to the manifest, and where it is refused."""

from __future__ import annotations

import json

import pytest
from command import make_world, run, settings_shown, stage1, stage2

from basic_lite import files


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_both_stages_say_that_they_left_out_text(world, tmp_path):
    skip = ("--sds-text", "skip")
    said = run(*stage1(world, *skip, "--max-steps", 2, "--save-steps", 1, "--tiles", 4), cwd=tmp_path).stdout
    assert settings_shown(said)["sds text"] == "skip"
    run(*stage2(world, "--lora", *skip, "--max-steps", 1, "--rank", 4), cwd=tmp_path)
    for stage in ("stage1", "stage2"):
        assert files.read_manifest(tmp_path / "runs" / stage)["method"]["sds_text"] == "skip"
    rows = map(json.loads, (tmp_path / "runs/stage1/log.jsonl").read_text().splitlines())
    assert all(row["sds"] is not None for row in rows)
    again = stage1(world, "--max-steps", 3, "--resume", "--tiles", 4)
    refused = run(*again, cwd=tmp_path, expect=2).stderr
    assert "started with another method: {'sds_text': 'skip'}, now {'sds_text': None}" in refused


@pytest.mark.parametrize("off", [("--no-basic",), ("--sds-weight", 0)])
def test_without_l_sds_there_is_nothing_to_leave_text_out_of(world, tmp_path, off):
    refused = run(*stage1(world, "--sds-text", "skip", *off), cwd=tmp_path, expect=2).stderr
    switch = " ".join(map(str, off))
    assert f"error: --sds-text skip leaves text out of L_sds, which {switch} switches off" in refused
    assert refused.count("\n") == 1
