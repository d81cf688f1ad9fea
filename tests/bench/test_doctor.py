"""The doctor runs anywhere, names what is broken with what mends it, and its exit code tells."""

from __future__ import annotations

import pytest
import torch
from command import run

from basic_lite.bench import doctor


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(
        doctor.data_hub, "silence", lambda: "https://huggingface.co does not answer: no route"
    )


def test_a_machine_without_gpu_or_hub_is_fit_for_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    done = run("doctor", cwd=tmp_path)
    lines = done.stdout.splitlines()
    names = [line.split()[1] for line in lines if not line.startswith(" ")]
    assert names == ["versions", "device", "bf16", "bitsandbytes", "liger-kernel", "disk", "copies", "hub"]
    assert "huggingface.co does not answer: no route" in done.stdout
    assert "set HF_ENDPOINT" in done.stdout.split("-> ")[-1]


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("device", lambda m: (m.setattr(torch.version, "cuda", "13.0"),)),
        ("bf16", lambda m: m.setattr(torch.Tensor, "bfloat16", lambda self: self.int())),
        (
            "bitsandbytes",
            lambda m: m.setattr(
                "bitsandbytes.functional.dequantize_4bit", lambda *a, **k: torch.zeros(64, 128)
            ),
        ),
        ("versions", lambda m: m.setattr(doctor, "requires", lambda name: ["torch<1"])),
        ("disk", lambda m: m.setattr(doctor.os, "access", lambda *a: False)),
        ("hub", lambda m: m.setattr(doctor.data_hub, "silence", lambda: 1 / 0)),
    ],
)
def test_what_is_broken_is_said_with_its_remedy(tmp_path, monkeypatch, name, patch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    patch(monkeypatch)
    done = run("doctor", cwd=tmp_path, expect=1)
    lines = done.stdout.splitlines()
    bad = [number for number, line in enumerate(lines) if line.startswith("bad")]
    assert [lines[number].split()[1] for number in bad] == [name]
    assert lines[bad[0] + 1].lstrip().startswith("-> ")


def test_a_file_holds_no_runs(tmp_path):
    (tmp_path / "file").touch()
    finding = doctor.disk(tmp_path / "file" / "runs")
    assert (finding.state, finding.text) == ("bad", f"{tmp_path / 'file'} cannot be written to")


def test_copies_are_shown_with_their_size_and_what_clears_them(tmp_path, monkeypatch):
    assert doctor.copies().text == "none are kept: BASIC_LITE_CACHE is off"
    monkeypatch.setenv("BASIC_LITE_CACHE", str(tmp_path))
    assert doctor.copies().text == f"pre-quantised decoders: 0, 0.0 GB, in {tmp_path / 'quantised'}"
    for name in ("one-0a", "two-0b", ".three-0c.part"):
        (tmp_path / "quantised" / name).mkdir(parents=True)
        (tmp_path / "quantised" / name / "copy.json").write_text("{}")
    with (tmp_path / "quantised/one-0a/model.safetensors").open("wb") as handle:
        handle.truncate(3_600_000_000)
    text = doctor.copies().text
    assert text.startswith("pre-quantised decoders: 2, 3.6 GB, in")
    assert f"{tmp_path / 'quantised'} (rm -r that folder clears them)" in text
