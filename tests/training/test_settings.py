"""A dataclass's fields are the options: flat, with their defaults, and a wrong choice ends in one line."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from basic_lite.recipes import stage1, stage2
from command import run

from basic_lite.memory.activations import DecoderSetup
from basic_lite.memory.choice import GLOBAL_BATCH
from basic_lite.method.objective import Objective
from basic_lite.models import trainable, zoo
from basic_lite.training import plan, settings
from basic_lite.training.settings import Method, Settings, command, option

GROUPS = {
    stage1: (settings.Model, settings.Data, Method, settings.Memory, settings.Schedule, settings.Run),
    stage2: (
        *(settings.Adapters, settings.PartsOfStage1, settings.Data, Method, settings.Memory),
        *(settings.Schedule, settings.Run),
    ),
}


@dataclass(frozen=True)
class Speed:
    gear: Annotated[Literal["low", "high"] | None, option("Gear.")] = None
    wheels: Annotated[Literal[2, 4], option("Wheels.")] = 4


def test_a_function_of_dataclasses_is_called_with_flat_options():
    seen = []

    @command
    def drive(*, place: Annotated[Path, option("Where.")] = Path("here"), speed: Speed) -> None:
        seen.append((place, speed))

    assert list(inspect.signature(drive).parameters) == ["place", "gear", "wheels"]
    drive()
    drive(place=Path("there"), gear="high")
    assert seen == [(Path("here"), Speed()), (Path("there"), Speed("high", 4))]
    with pytest.raises(TypeError, match="brake"):
        drive(brake=True)


@pytest.mark.parametrize("recipe", GROUPS)
def test_every_field_is_an_option_with_its_default(recipe):
    options = inspect.signature(recipe.main).parameters
    for field in (field for group in GROUPS[recipe] for field in fields(group)):
        assert field.default is not MISSING
        assert options[field.name].default == field.default, field.name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("stage1 --importance x", "--importance must be one of attention, uniform, got 'x'"),
        ("stage1 --target x", "--target must be one of raw, centred, translated, individual, got 'x'"),
        ("stage1 --bits 5", "--bits must be 4, 8 or 16, got 5"),
        ("stage2 --bits 5", "--bits must be 4, 8 or 16, got 5"),
        ("stage2 --optimizer sgd", "--optimizer must be one of adamw, paged-adamw-8bit, got 'sgd'"),
        ("stage2 --tiles 4", "--tiles is for stage 1: stage 2 takes it over from --start"),
        ("stage2 --tower clip-l-336", "--tower is for stage 1"),
        ("bench step --precision x", "--precision must be one of auto, bf16, fp32, got 'x'"),
        ("analyze premise --weighting x", "--weighting must be one of quadratic, linear, constant, decreas"),
    ],
)
def test_a_wrong_choice_is_refused_in_one_line(given, said, tmp_path):
    refused = run(*given.split(), cwd=tmp_path, expect=2).stderr
    assert refused.startswith(f"error: {said}")
    assert refused.count("\n") == 1
    assert not list(tmp_path.iterdir())


def resolved(**options: dict) -> Settings:
    groups = {"data": settings.Data(), "method": Method(), "memory": settings.Memory()}
    groups |= {"schedule": settings.Schedule(), "run": settings.Run()}
    return plan.resolve(llm="x", device="cpu", out=Path("o"), shards=1, **(groups | options))


def test_what_is_left_out_is_llavas():
    first, second = resolved(stage=1), resolved(stage=2, lora=True)
    assert (first.learning_rate, first.global_batch, first.micro_batch, first.aspect) == (
        1e-3,
        256,
        8,
        "crop",
    )
    assert (second.learning_rate, second.projector_learning_rate, second.aspect) == (2e-4, 2e-5, "pad")
    assert (second.global_batch, second.micro_batch, second.group) == (128, 4, True)
    assert resolved(stage=2).learning_rate == 2e-5
    given = resolved(stage=1, schedule=settings.Schedule(learning_rate=0.5, global_batch=12))
    assert (given.learning_rate, given.global_batch, given.micro_batch) == (0.5, 12, 6)
    kept = resolved(stage=2, projector_learning_rate=0.0, optimizer="paged-adamw-8bit", lora=True)
    assert (kept.projector_learning_rate, kept.optimizer) == (0.0, "paged-adamw-8bit")


def test_a_default_is_the_same_wherever_it_is_needed():
    adapters = plan.adapters_of(True, settings.Adapters(), "x", None)
    assert adapters == trainable.Adapters() == trainable.Adapters(128, 256, 0.05)
    assert (DecoderSetup().rank, DecoderSetup().dropout, zoo.stage_defaults("x", 2).rank) == (128, 0.05, 128)
    assert GLOBAL_BATCH == {"stage1": 256, "stage2 --lora": 128, "stage2": 128}
    assert Method().objective() == Objective() == Objective(1.0, 0.01)
    assert not Method(basic=False, das_weight=2.0).objective(512).active


def test_a_mean_over_pictures_needs_two_in_a_pass():
    method = Method(target="individual")
    with pytest.raises(ValueError, match="a --micro-batch of at least 2, got 1"):
        resolved(stage=1, method=method, memory=settings.Memory(micro_batch=1))
    assert resolved(stage=1, method=method).method.kind == "individual"
    plain = Method(target="individual", basic=False)
    assert resolved(stage=1, method=plain, memory=settings.Memory(micro_batch=1)).micro_batch == 1
