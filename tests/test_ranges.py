"""Every numeric option has a range, is refused outside it in one line, and is used as given inside it."""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Callable, Iterator

import pytest
import torch
import typer
from command import run, settings_shown, stage1, stage2
from safetensors.torch import load_file

from basic_lite import files
from basic_lite.cli import app
from basic_lite.training.settings import Settings

WITHOUT: dict[str, str] = {
    "tower_layer": "counted from either end of a tower, whose depth is read first; checked before any weight"
}


def commands(of: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Callable]]:
    for one in of.registered_commands:
        yield (*path, one.name or one.callback.__name__), one.callback
    for group in of.registered_groups:
        yield from commands(group.typer_instance, (*path, group.name))


def is_numeric(kind: object) -> bool:
    return kind in (int, float) or any(is_numeric(part) for part in typing.get_args(kind))


def numeric(command: Callable) -> dict[str, tuple[object, typer.models.OptionInfo | None]]:
    """Return a command's numeric options: name -> type and what Typer is told of it."""
    hints = typing.get_type_hints(command, include_extras=True)
    split = {name: typing.get_args(hints[name]) for name in inspect.signature(command).parameters}
    kinds = {name: (args[0], args[1]) for name, args in split.items() if hasattr(hints[name], "__metadata__")}
    kinds |= {name: (hints[name], None) for name in split if name not in kinds}
    return {name: (kind, info) for name, (kind, info) in kinds.items() if is_numeric(kind)}


COMMANDS = {" ".join(path): command for path, command in commands(app)}


def test_the_commands_are_all_there():
    assert {"stage1", "stage2", "eval", "ablate", "bench step", "data check", "analyze tokens"} <= set(
        COMMANDS
    )
    assert sum(len(numeric(command)) for command in COMMANDS.values()) > 100
    assert set(WITHOUT) <= {name for command in COMMANDS.values() for name in numeric(command)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_number_outside_its_range_is_refused_before_any_work(name, tmp_path):
    for option, (kind, info) in numeric(COMMANDS[name]).items():
        if option in WITHOUT:
            continue
        assert info is not None, f"{name}: {option} has no range"
        assert info.callback is not None, f"{name}: {option} has no range"
        typed = f"--{option.replace('_', '-')}"
        whole = float not in (kind, *typing.get_args(kind))
        for given in ["-1000000007"] if whole else ["-1000000007", "nan", "inf"]:
            refused = run(*name.split(), typed, given, cwd=tmp_path, expect=2)
            (line,) = refused.stderr.splitlines()
            number = int(given) if whole else float(given)
            assert line.startswith(f"error: {typed} must be "), line
            assert line.endswith(f", got {number}"), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        ("stage1", "--learning-rate 0", "must be above 0, got 0.0"),
        ("stage1", "--epochs 0", "must be above 0, got 0.0"),
        ("stage1", "--global-batch 0", "must be at least 1, got 0"),
        ("stage1", "--micro-batch 0", "must be at least 1, got 0"),
        ("stage1", "--rows-per-chunk 0", "must be at least 1, got 0"),
        ("stage1", "--image-size 0", "must be at least 1, got 0"),
        ("stage1", "--layers 0", "must be at least 1, got 0"),
        ("stage1", "--bits 0", "must be 4, 8 or 16, got 0"),
        ("stage1", "--max-steps 0", "must be at least 1, got 0"),
        ("stage1", "--max-steps -2", "must be at least 1, got -2"),
        ("stage1", "--min-rating 6", "must be at least 1 and at most 5, got 6"),
        ("stage1", "--seed 4294967296", "must be at least 0 and at most 4294967295, got 4294967296"),
        ("stage1", "--bad-budget 1", "must be at least 0 and below 1, got 1.0"),
        ("stage1", "--sds-weight inf", "must be at least 0 and finite, got inf"),
        ("stage2", "--rank 0", "must be at least 1, got 0"),
        ("stage2", "--rank -4", "must be at least 1, got -4"),
        ("stage2", "--alpha 0", "must be at least 1, got 0"),
        ("stage2", "--dropout 1.5", "must be at least 0 and below 1, got 1.5"),
        ("stage2", "--dropout 1", "must be at least 0 and below 1, got 1.0"),
        ("stage2", "--projector-learning-rate -1", "must be at least 0, got -1.0"),
        ("eval mmbench", "--limit 0", "must be at least 1, got 0"),
        ("eval mmbench", "--image-size 0", "must be at least 1, got 0"),
        ("ablate losses", "--jobs 0", "must be at least 1, got 0"),
        ("ablate losses", "--global-batch 0", "must be at least 1, got 0"),
        ("chat", "--port 65536", "must be at least 1 and at most 65535, got 65536"),
        ("data check x.json", "--workers 0", "must be at least 1, got 0"),
        ("bench step", "--decoder-layers 0", "must be at least 1, got 0"),
        ("plan", "--stage 3", "must be at least 1 and at most 2, got 3"),
    ],
)
def test_a_given_zero_is_no_default_and_an_edge_is_where_it_is_said(command, given, said, tmp_path):
    dry = ["--dry-run"] if command in ("stage1", "stage2", "eval mmbench", "ablate losses") else []
    refused = run(*command.split(), *given.split(), *dry, cwd=tmp_path, expect=2)
    assert refused.stderr == f"error: {given.split()[0]} {said}\n"


def test_edges_inside_a_range_are_used_as_given(world, tmp_path):
    more = ["--das-weight", 0, "--sds-weight", 0, "--bad-budget", 0, "--max-steps", -1, "--seed", 2**32 - 1]
    edges = ["--keep", 1, "--save-steps", 1, "--layers", 1, "--epochs", 0.5, "--tower-layer", 0]
    shown = settings_shown(run(*stage1(world, *more, *edges, "--dry-run"), cwd=tmp_path).stdout)
    expected = {"das weight": "0.0", "sds weight": "0.0", "bad budget": "0.0", "seed": str(2**32 - 1)}
    expected |= {"keep": "1", "save steps": "1", "layers": "1", "epochs": "0.5", "workers": "0"}
    assert {name: shown[name] for name in expected} == expected
    refused = run(*stage1(world, "--tower-layer", 9, "--dry-run"), cwd=tmp_path, expect=2)
    assert "tower layer must be between -4 and 3, got 9" in refused.stderr


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": math.nan}, {"projector_learning_rate": -1.0}, {"global_batch": 0}]
)
def test_settings_refuse_what_no_command_line_has_seen(wrong, tmp_path):
    right = {"learning_rate": 1e-3, "global_batch": 4, "micro_batch": 4}
    kept = {"stage": 1, "out": tmp_path}
    Settings(**kept, **right)
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", ".")):
        Settings(**kept, **(right | wrong))


@pytest.mark.parametrize("kind", ["adapters", "decoder"])
def test_a_projector_at_learning_rate_0_stays_bit_for_bit(kind, world, tmp_path):
    run(*stage1(world, "--bits", 16, "--max-steps", 2), cwd=tmp_path)
    frozen = ["--projector-learning-rate", 0, "--max-steps", 4, "--save-steps", 2]
    frozen += ["--lora", "--rank", 2] if kind == "adapters" else ["--learning-rate", 1e-3]
    done = run(*stage2(world, *frozen), cwd=tmp_path)
    assert "The projector stays as stage 1 left it (--projector-learning-rate 0); BASIC's" in done.stdout
    out = tmp_path / "runs/stage2"
    manifest = files.read_manifest(out)
    assert manifest["training"]["projector_learning_rate"] == 0
    assert manifest["trainable"]
    assert not any("multi_modal_projector" in name for name in manifest["trainable"])
    before = load_file(tmp_path / "runs/stage1/projector.safetensors")
    weights = "adapter_model.safetensors" if kind == "adapters" else "projector.safetensors"
    after = {name: value for name, value in load_file(out / weights).items() if "projector" in name}
    assert len(after) == len(before) == 4
    for name, value in before.items():
        (same,) = (other for found, other in after.items() if found.endswith(name))
        assert torch.equal(same, value)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert max(row["cosine"] or 0 for row in log) != 0  # BASIC's terms are still measured
    if kind == "adapters":
        moved = [v for n, v in load_file(out / weights).items() if "lora_B" in n]
        assert moved
        assert all(value.any() for value in moved)

    # A resumed run ends with the same bytes, and the rest of the package reads the run.
    whole = files.file_hash(out / weights)
    for path in [*out.glob("*.safetensors"), out / "manifest.json", *out.glob("checkpoint-4/*")]:
        path.unlink()
    (out / "checkpoint-4").rmdir()
    run(*stage2(world, *frozen, "--resume"), cwd=tmp_path)
    assert files.file_hash(out / weights) == whole
    run("export", "runs/stage2", "exported", cwd=tmp_path)
    exported = [load_file(path) for path in (tmp_path / "exported").glob("*.safetensors")]
    merged = {name: value for part in exported for name, value in part.items()}
    for name, value in before.items():
        (same,) = (other for found, other in merged.items() if found.endswith(name))
        torch.testing.assert_close(same.float(), value, rtol=1e-2, atol=1e-3)  # the export's dtype


def test_without_basic_a_frozen_projector_is_said_in_fewer_words(world, tmp_path):
    run(*stage1(world, "--max-steps", 1), cwd=tmp_path)
    frozen = ["--projector-learning-rate", 0, "--max-steps", 1, "--lora", "--rank", 2, "--no-basic"]
    done = run(*stage2(world, *frozen), cwd=tmp_path)
    assert "The projector stays as stage 1 left it (--projector-learning-rate 0).\n" in done.stdout
