"""The plans: what is compared with what, as data.

A variant says only how it differs from the run that the command describes, in the options of `stage1`. A
fraction of the layers is resolved for the decoder at hand (`variants_for`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import get_args

from basic_lite.method.targets import RAW, TargetKind
from basic_lite.method.types import Importance, Weighting

Options = Mapping[str, object]
"""Options of `stage1` by name."""

PLAIN: Options = {"basic": False}
"""LLaVA without BASIC."""

METHOD: tuple[str, ...] = (
    *("basic", "layers", "weighting", "importance", "target", "das_weight", "sds_weight"),
    *("rows_per_chunk", "intervention"),
)
"""Options that both stages have: what holds for one holds for the other."""

NOT_ON_TEXT: str = "spare=TEXT_PATCHES"
"""The intervention that leaves out text, before it is known which file says where text is."""


@dataclass(frozen=True)
class Plan:
    """One question about the method.

    Attributes:
        name: on the command line.
        asks: the question, in a sentence.
        variants: name of each variant and how it differs.
        baseline: the variant that all others are compared with.
        signs: trained and measured in the world of scenes with signs to read.
    """

    name: str
    asks: str
    variants: Mapping[str, Options]
    baseline: str
    signs: bool = False


def _of_all_layers(*shares: str) -> dict[str, Options]:
    return {f"k = {'all' if share == '1' else share}": {"layers": Fraction(share)} for share in shares}


_LAYERS = Plan(
    "layers",
    "How many of the decoder's layers should be the teacher?",
    {"plain": PLAIN, **_of_all_layers("1/8", "1/4", "1/2", "3/4", "1")},
    baseline="plain",
)
_LOSSES = Plan(
    "losses",
    "Which of the two terms makes the difference?",
    {"none": PLAIN, "das": {"sds_weight": 0.0}, "sds": {"das_weight": 0.0}, "both": {}},
    baseline="none",
)
_WEIGHTS = Plan(
    "weights",
    "How should layers 1 to k be weighted?",
    {name: {"weighting": name} for name in get_args(Weighting)},
    baseline="quadratic",
)
_IMPORTANCE = Plan(
    "importance",
    "Does it matter which patches the text attends to?",
    {name: {"importance": name} for name in get_args(Importance)},
    baseline="attention",
)
_TARGET = Plan(
    "target",
    "In which space should the target be?",
    {"plain": PLAIN, "raw": {}, **{name: {"target": name} for name in get_args(TargetKind) if name != RAW}},
    baseline="plain",
)
_LAMBDA = Plan(
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
)
_NOISE = Plan(
    "teacher-noise",
    "How good must the teacher be?",
    {
        "plain": PLAIN,
        "as it is": {},
        **{f"noise {size:g}": {"intervention": f"noise={size:g}"} for size in (0.1, 0.3, 1.0)},
        "another picture's": {"intervention": "shuffled"},
        "random decoder": {"intervention": "teacher=random"},
    },
    baseline="plain",
)

_TEXT = Plan(
    "text-patches",
    "Does L_sds blur text, and does it help to leave text out?",
    {
        "plain": PLAIN,
        "everywhere": {},
        "not on text": {"intervention": NOT_ON_TEXT},
        "nowhere": {"sds_weight": 0.0},
    },
    baseline="everywhere",
    signs=True,
)

DEMO = Plan("demo", "What does BASIC change?", {"plain": PLAIN, "BASIC": {}}, baseline="plain")
"""Both variants of `basic-lite demo`, which has a report of its own."""

PLANS: dict[str, Plan] = {
    plan.name: plan for plan in (_LAYERS, _LOSSES, _WEIGHTS, _IMPORTANCE, _TARGET, _LAMBDA, _NOISE, _TEXT)
}


def plan_named(name: str, teacher: str | None = None) -> Plan:
    """Return a plan.

    Args:
        name: of the plan.
        teacher: for `teacher-noise`, another LLM of equal width, which gets a variant of its own.

    Raises:
        ValueError: If there is none of that name, or it has no use for another teacher.
    """
    if name not in PLANS:
        raise ValueError(f"no plan is named {name!r}; plans are {', '.join([*PLANS, 'architecture'])}")
    if teacher is None:
        return PLANS[name]
    if name != _NOISE.name:
        raise ValueError(f"--teacher is for the plan {_NOISE.name}, not {name}")
    more = {"another LLM": {"intervention": f"teacher={teacher}"}}
    return replace(_NOISE, variants={**_NOISE.variants, **more})


@dataclass(frozen=True)
class Variant:
    """One variant of a plan, resolved for a decoder.

    Attributes:
        name: in the plan.
        key: what tells its runs from others of the same set-up; equal variants of two plans share it.
        options: of `stage1`, without fractions and without what is the default anyway.
    """

    name: str
    key: str
    options: Options


def variants_for(
    plan: Plan, depth: int, given: Options, defaults: Options, chosen: Iterable[str] = ()
) -> list[Variant]:
    """Resolve a plan's variants; of those that come out the same (of a shallow decoder) the first stays.

    Args:
        plan: the plan.
        depth: layers of the decoder.
        given: options that the user gave for all variants.
        defaults: what `stage1` takes otherwise.
        chosen: names of the only variants to keep, beside the baseline; none keeps all.

    Raises:
        ValueError: If a variant does not exist, or the user gave an option that the plan varies.
    """
    chosen = set(chosen)
    if unknown := chosen - set(plan.variants):
        raise ValueError(
            f"plan {plan.name} has no variant {min(unknown)!r}; its variants are {'; '.join(plan.variants)} "
            "(give several with semicolons)"
        )
    varied = {name for options in plan.variants.values() for name in options}
    if taken := varied & set(given):
        name = min(taken)
        raise ValueError(f"plan {plan.name} sets --{name.replace('_', '-')} itself; leave it out")
    resolved: dict[str, Variant] = {}
    for name, options in plan.variants.items():
        if chosen and name not in chosen and name != plan.baseline:
            continue
        plain = {key: _resolved(key, value, depth) for key, value in options.items()}
        plain = {key: value for key, value in plain.items() if value != _usual(key, depth, defaults)}
        key = " ".join(f"{option}={value}" for option, value in sorted(plain.items())) or "default"
        resolved.setdefault(key, Variant(name, key, plain))
    return list(resolved.values())


def _resolved(option: str, value: object, depth: int) -> object:
    return max(round(value * depth), 1) if isinstance(value, Fraction) else value


def _usual(option: str, depth: int, defaults: Options) -> object:
    return max(depth // 2, 1) if option == "layers" else defaults.get(option)
