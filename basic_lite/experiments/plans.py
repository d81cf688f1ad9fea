"""The plans: what is compared with what, as data.

A variant says only how it differs from the run that the command describes, in the options of `stage1`. A
fraction is resolved for the run at hand (`variants_for`): it is one of the decoder's layers, or of what the
run would take otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, get_args

from basic_lite.data.world.render import SIDE
from basic_lite.data.world.scenes import COLOURS
from basic_lite.method.targets import RAW, TargetKind
from basic_lite.method.types import Importance, Weighting
from basic_lite.training.settings import Method

Options = Mapping[str, Any]  # options of `stage1` by name

PLAIN: Options = {"basic": False}  # LLaVA without BASIC

METHOD: tuple[str, ...] = (*(option.name for option in fields(Method)), "rows_per_chunk")
"""Options that both stages have: what holds for one holds for the other."""

NAMED: str = "named"
"""How many of the embedded world's colours and shapes captions name: no option of `stage1`, but its data."""

SQUEEZED: str = "squeezed"
"""How many times as short half of the embedded decoder's input directions are: an option of no stage."""

NO_OPTIONS: tuple[str, ...] = (NAMED, SQUEEZED)  # what a level of a sweep may set beside options of `stage1`

NOISE: str = "teacher-noise"  # the plan that takes `--teacher`

DEMO_VARIANTS: dict[str, Options] = {"plain": PLAIN, "BASIC": {}}
"""Of the demo, and at every level of a sweep."""


@dataclass(frozen=True)
class Plan:
    """One question about the method."""

    name: str  # on the command line
    asks: str  # the question, in a sentence
    variants: Mapping[str, Options]  # name of each variant and how it differs
    baseline: str  # the variant that all others are compared with
    # Trained and measured in the world of scenes with signs to read, of this size; empty in the usual world
    signs: str = ""
    embedded: Options = field(default_factory=dict)  # what all variants have in the embedded world
    # For a sweep, label and options of each level; its variants are plain and BASIC at every level, and each
    # level's BASIC is compared with that level's plain
    levels: Mapping[str, Options] = field(default_factory=dict)
    axis: str = ""  # what the levels of a sweep are, in words

    @classmethod
    def sweep(cls, name: str, asks: str, axis: str, levels: Mapping[str, Options]) -> Plan:
        """Return a plan of plain and BASIC at every level."""
        variants = {
            at_level(variant, level): {**options, **more}
            for level, more in levels.items()
            for variant, options in DEMO_VARIANTS.items()
        }
        return cls(name, asks, variants, "plain", levels=levels, axis=axis)


def at_level(variant: str, level: str) -> str:
    return f"{variant}, {level}"


def _shares(option: str, *shares: str) -> dict[str, Options]:
    return {share: {} if share == "1" else {option: Fraction(share)} for share in shares}


_PLANS = (
    Plan(
        "layers",
        "How many of the decoder's layers should be the teacher?",
        {
            "plain": PLAIN,
            **{f"k = {share}": {"layers": Fraction(share)} for share in ("1/8", "1/4", "1/2", "3/4")},
            "k = all": {"layers": Fraction(1)},
        },
        baseline="plain",
    ),
    Plan(
        "losses",
        "Which of the two terms makes the difference?",
        {"none": PLAIN, "das": {"sds_weight": 0.0}, "sds": {"das_weight": 0.0}, "both": {}},
        baseline="none",
    ),
    Plan(
        "weights",
        "How should layers 1 to k be weighted?",
        {name: {"weighting": name} for name in get_args(Weighting)},
        baseline="quadratic",
    ),
    Plan(
        "importance",
        "Does it matter which patches the text attends to?",
        {name: {"importance": name} for name in get_args(Importance)},
        baseline="attention",
    ),
    Plan(
        "target",
        "In which space should the target be?",
        {
            "plain": PLAIN,
            "raw": {},
            **{name: {"target": name} for name in get_args(TargetKind) if name != RAW},
        },
        baseline="plain",
    ),
    Plan(
        "lambda",
        "How much may the two terms weigh?",
        {
            "as it is": {},
            "das / 10": {"das_weight": 0.1},
            "das x 10": {"das_weight": 10.0},
            "sds / 10": {"sds_weight": 0.001},
            "sds x 10": {"sds_weight": 0.1},
            "both / 10": {"das_weight": 0.1, "sds_weight": 0.001},
            "both x 10": {"das_weight": 10.0, "sds_weight": 0.1},
        },
        baseline="as it is",
    ),
    Plan(
        NOISE,
        "How good must the teacher be?",
        {
            "plain": PLAIN,
            "as it is": {},
            **{f"noise {size:g}": {"intervention": f"noise={size:g}"} for size in (0.1, 0.3, 1.0)},
            "another picture's": {"intervention": "shuffled"},
            "random decoder": {"intervention": "teacher=random"},
        },
        baseline="plain",
    ),
    Plan(
        "text",
        "Does L_sds blur text, and does it help to leave text out?",
        {"plain": PLAIN, "basic": {}, "basic, not on text": {"sds_text": "skip"}},
        baseline="plain",
        signs="large",
    ),
    Plan(
        "tiles",
        "Do tiles read what one picture is too small for?",
        {"one picture": {}, "tiles": {"tiles": 4}, "tiles, pooled": {"tiles": 4, "pool": 2}},
        baseline="one picture",
        signs="small",
        embedded={"image_size": SIDE // 2},  # its pictures hold twice as much
    ),
    Plan.sweep(
        "data",
        "How many samples does it take?",
        "samples seen in stage 1",
        _shares("amount", "1/16", "1/8", "1/4", "1/2", "1"),
    ),
    Plan.sweep(
        "rate",
        "At which learning rate?",
        "learning rate",
        _shares("learning_rate", "1/10", "1/3", "1", "3", "10"),
    ),
    Plan.sweep(
        "patches",
        "At which image size?",
        "patches per picture",
        _shares("image_size", "1/2", "3/4", "1", "3/2"),
    ),
    Plan.sweep(
        "world",
        "How much of what the decoder can speak of must captions name?",
        "colours and shapes that captions name, of 8 each",
        _shares(NAMED, "1/4", "1/2", "1"),
    ),
    Plan.sweep(
        "space",
        "How hard is the decoder's input space to reach?",
        "times that half of the decoder's input directions are as short",
        _shares(SQUEEZED, "1", "4", "16"),
    ),
)
PLANS: dict[str, Plan] = {plan.name: plan for plan in _PLANS}

_RATES = ("1/100", "1/30", *PLANS["rate"].levels, "30", "100")
TUNE = Plan(
    "tune",
    "Which learning rate suits plain?",
    {level: {**PLAIN, **options} for level, options in _shares("learning_rate", *_RATES).items()},
    baseline="1",
)
"""What `--tune` runs before another plan: the rates of plan `rate`, and those beyond while an end is best."""

DEMO = Plan("demo", "What does BASIC change?", DEMO_VARIANTS, baseline="plain")
"""Both variants of `basic-lite demo`, which has a report of its own."""


def plan_named(name: str, teacher: str | None = None) -> Plan:
    """Return a plan, with a variant of its own for `teacher`, another LLM of equal width.

    Raises ValueError if there is none of that name, or a teacher is given for another than `teacher-noise`.
    """
    if name not in PLANS:
        raise ValueError(f"no plan is named {name!r}; plans are {', '.join([*PLANS, 'architecture'])}")
    if teacher is None:
        return PLANS[name]
    if name != NOISE:
        raise ValueError(f"--teacher is for the plan {NOISE}, not {name}")
    more = {"another LLM": {"intervention": f"teacher={teacher}"}}
    return replace(PLANS[name], variants={**PLANS[name].variants, **more})


@dataclass(frozen=True)
class Variant:
    """One variant of a plan, resolved for a decoder."""

    name: str  # in the plan
    key: str  # what tells its runs from others of the same set-up; equal variants of two plans share it
    options: Options  # of `stage1`, without fractions and without what is the default anyway


@dataclass(frozen=True)
class Usual:
    """What stage 1 would take for options that plans give as a fraction of it."""

    depth: int  # layers of the decoder
    global_batch: int = 256  # rows per optimizer step
    epochs: float = 1.0  # passes over the data
    max_steps: int | None = None  # optimizer steps, if they were given; they count instead of epochs
    learning_rate: float = 1e-3  # peak of the schedule
    image_size: int = 336  # side of the tower's input in pixels
    patch: int = 14  # side of its patches in pixels

    def resolve(self, option: str, value: Any) -> Options:
        """Return an option of a plan as options of `stage1`: a fraction as what it comes to."""
        if not isinstance(value, Fraction):
            return {option: value}
        if option == "layers":
            return {option: max(round(value * self.depth), 1)}
        if option == "image_size":
            return {option: max(round(value * self.image_size / self.patch), 1) * self.patch}
        if option == NAMED:
            return {option: max(round(value * len(COLOURS)), 1)}
        if option == SQUEEZED:
            return {option: float(value)}
        if option == "learning_rate":
            return {option: float(f"{float(value) * self.learning_rate:.3g}")}
        assert option == "amount", option
        if self.max_steps is not None:
            return {"max_steps": max(round(value * self.max_steps), 1)}
        # The batch stays that of the full run: of few rows a stage would take a smaller one by itself.
        return {"epochs": float(value) * self.epochs, "global_batch": self.global_batch}


def variants_for(
    plan: Plan, usual: Usual, given: Options, defaults: Options, chosen: Iterable[str] = ()
) -> list[Variant]:
    """Resolve a plan's variants; of those that come out the same (of a shallow decoder) the first stays.

    `given` are the options that the user gave for all variants, `defaults` what `stage1` takes otherwise.
    `chosen` names the only variants to keep, beside the baseline, or the only levels of a sweep; empty keeps
    all. Raises ValueError if one of them does not exist, or the user gave an option that the plan varies.
    """
    chosen, names = set(chosen), plan.levels or plan.variants
    if unknown := chosen - set(names):
        raise ValueError(
            f"plan {plan.name} has no {'level' if plan.levels else 'variant'} {min(unknown)!r}; its "
            f"{'levels' if plan.levels else 'variants'} are {'; '.join(names)} (give several with semicolons)"
        )
    kept = {name for level in chosen for name in (level, *(at_level(v, level) for v in DEMO_VARIANTS))}
    varied = {
        name
        for options in plan.variants.values()
        for name, value in options.items()
        if not isinstance(value, Fraction) or name == "layers"  # other fractions are of what was given
    }
    if taken := varied & set(given):
        name = min(taken)
        raise ValueError(f"plan {plan.name} sets --{name.replace('_', '-')} itself; leave it out")
    defaults = {**defaults, "layers": max(usual.depth // 2, 1)}
    resolved: dict[str, Variant] = {}
    for name, options in plan.variants.items():
        if chosen and name not in kept and name != plan.baseline:
            continue
        plain = {k: v for option, value in options.items() for k, v in usual.resolve(option, value).items()}
        plain = {key: value for key, value in plain.items() if value != defaults.get(key)}
        key = " ".join(f"{option}={value}" for option, value in sorted(plain.items())) or "default"
        resolved.setdefault(key, Variant(name, key, plain))
    return list(resolved.values())
