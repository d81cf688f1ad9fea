"""Curves: what a variant can do after ever more samples, and how many of them save the baseline's others.

A run is measured on the same held-out samples at a few steps that are spaced logarithmically. Its curve lies
in its folder; a resumed run goes on with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from basic_lite.evaluation.statistics import CONFIDENCE
from basic_lite.experiments.measure import Measure, measuring
from basic_lite.experiments.processes import PROGRESS, phase_of
from basic_lite.files import complete, read_log
from basic_lite.models.llava import Assembled

FILE: str = "curve.jsonl"  # a line for each point, in the folder of the stage

SAMPLES: int = 24  # most held-out scenes or rows that each point is measured on
FEWEST: int = 4  # where the run is so short that these are too many for all points, it has fewer points

PERCENT: int = 6
"""Most samples that are measured, all points together, of 100 that a run trains on.

One that is measured takes up to two thirds of the time of one that is trained on, as it has a forward pass
alone: so measuring takes 4 % of the run's time.
"""

POINTS: int = 6
SPACING: float = 1.6
"""The last point is the last step; each has this many times the samples of the one before it."""

DRAWS: int = 2000  # resamples of an interval
_TAILS = (100 * (1 - CONFIDENCE) / 2, 100 - 100 * (1 - CONFIDENCE) / 2)


def steps_of(total: int, points: int = POINTS) -> list[int]:
    """Return the steps that are measured, ascending, of a training of `total` steps."""
    return sorted({max(round(total / SPACING**back), 1) for back in range(points)})


def size_of(trained: int, most: int = SAMPLES) -> tuple[int, int]:
    """Return how many samples a point measures and how many points there are, `most` and `POINTS` at most.

    It goes by the samples that the run trains on, repetitions included, so all variants and a resumed run
    have the same; nothing is timed. A run of next to nothing still has two points, or there is no curve.
    """
    budget = PERCENT * trained // 100
    samples = min(most, max(budget // POINTS, FEWEST))
    return samples, min(max(budget // samples, 2), POINTS)


@dataclass(frozen=True)
class Point:
    """What a run could do at one step."""

    step: int  # optimizer steps taken
    samples: int  # rows seen, repetitions included
    seconds: float  # what the measuring took
    measures: list[Measure]  # over the same samples at every point and in every variant


def read(stage: Path) -> list[Point]:
    """Read the curve of a stage; no points where none were measured."""
    contents = read_log(stage / FILE)
    return [Point(**{**c, "measures": [Measure(**m) for m in c["measures"]]}) for c in contents]


def measuring_share(runs: Sequence[Path]) -> float | None:
    """Return the share of stage 1's time that measuring along the way took, in finished runs.

    `None` where nothing was measured.
    """
    spent = sum(point.seconds for run in runs for point in read(run / "stage1"))
    progress = (json.loads((run / PROGRESS).read_text(encoding="utf-8")) for run in runs)
    whole = sum(content["seconds"].get(phase_of("stage1"), 0.0) for content in progress)
    return spent / whole if spent and whole else None


def cost_sentence(share: float) -> str:
    return f"Measuring along the way took {share:.1%} of stage 1's time."


def _write(stage: Path, points: Sequence[Point]) -> None:
    with complete(stage / FILE) as draft:
        draft.write_text("".join(f"{json.dumps(asdict(point))}\n" for point in points), encoding="utf-8")


def callbacks(along: str, assembled: Assembled, stage: Path) -> list[TrainerCallback]:
    """Return what measures a run, whose folder is `stage`, along the way.

    `along` is JSON of the arguments of `measure.measuring`; empty measures nothing.
    """
    if not along:
        return []
    return [Along(stage, lambda most: measuring(assembled, **json.loads(along), most=most))]


class Along(TrainerCallback):
    """Measure a model at some steps of its training, which goes on as if nothing had happened."""

    def __init__(self, stage: Path, prepare: Callable[[int], Callable[[], list[Measure]]]) -> None:
        """Measure by what `prepare` returns, into the curve of `stage`.

        It is called once, with the most samples that a point may measure.
        """
        self.stage, self.prepare = stage, prepare
        self.look: Callable[[], list[Measure]] | None = None
        self.points: list[Point] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the points up to the checkpoint that a run goes on from."""
        self.points = [point for point in read(self.stage) if point.step <= state.global_step]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure where it is time to; before the step is saved, so that a resumed run misses none."""
        step = state.global_step
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        samples, points = size_of(state.max_steps * batch)
        if step not in steps_of(state.max_steps, points):
            return
        model, begun = kwargs["model"], time.monotonic()
        self.look = self.look or self.prepare(samples)
        measures = self.look()
        model.train()
        point = Point(step, step * batch, round(time.monotonic() - begun, 2), measures)
        self.points = [*self.points, point]
        if state.is_world_process_zero:
            _write(self.stage, self.points)


@dataclass(frozen=True)
class Curve:
    """One measure of one variant over the samples seen, at P points and over U units."""

    measure: Measure  # what is measured; its values are those of the first point
    samples: np.ndarray  # `(P,)` rows seen
    values: list[np.ndarray]  # for each seed `(P, U)`, one value for each point and unit
    # For each seed `(U,)`, what the values are counts out of; ones where each unit counts once
    of: list[np.ndarray]

    @property
    def each(self) -> np.ndarray:
        """`(seeds, P)`, the figure of each seed at each point."""
        return np.stack([v.sum(1) / of.sum() for v, of in zip(self.values, self.of, strict=True)])

    @property
    def mean(self) -> np.ndarray:
        """`(P,)`, over seeds."""
        return self.each.mean(0)

    def resampled(self, seeds: np.ndarray, units: Sequence[np.ndarray]) -> np.ndarray:
        """Return `(draws, P)` curves.

        `seeds`, `(draws, seeds)`, is how often each seed counts; `units`, for each seed `(draws, U)`, how
        often each unit does.
        """
        each = [
            counts @ v.T / (counts @ of)[:, None]
            for v, of, counts in zip(self.values, self.of, units, strict=True)
        ]
        return np.einsum("ds,sdp->dp", seeds / seeds.sum(1, keepdims=True), np.stack(each))

    def as_dict(self) -> dict[str, object]:
        return {"samples": self.samples.tolist(), "mean": self.mean.tolist(), "each": self.each.tolist()}


def curves_of(runs: Sequence[Sequence[Point]]) -> dict[str, Curve]:
    """Return the curve of every measure of a variant, from its points, seed by seed.

    Points and measures that not all seeds have are left out, and points that were measured on other samples
    than a run's last one: earlier versions may have made some of the runs, or begun one.
    """
    alike = [_measured_like_the_last(points) for points in runs]
    steps = set.intersection(*({point.step for point in points} for points in alike)) if runs else set()
    kept = [[point for point in points if point.step in steps] for points in alike]
    if not steps:
        return {}
    samples = np.array([point.samples for point in kept[0]])
    named = [[{measure.name: measure for measure in point.measures} for point in points] for points in kept]
    curves = {}
    for name, head in named[0][0].items():
        if not all(name in measures for points in named for measures in points):
            continue
        values = [np.array([measures[name].values for measures in points]) for points in named]
        of = [points[0][name].of for points in named]
        counts = [np.ones(v.shape[1]) if o is None else np.array(o) for v, o in zip(values, of, strict=True)]
        curves[head.name] = Curve(head, samples, values, counts)
    return curves


def _measured_like_the_last(points: Sequence[Point]) -> list[Point]:
    counts = [{measure.name: len(measure.values) for measure in point.measures} for point in points]
    return [
        point
        for point, own in zip(points, counts, strict=True)
        if all(own[name] == counts[-1][name] for name in own.keys() & counts[-1].keys())
    ]


def _resamples(random: np.random.Generator, count: int) -> np.ndarray:
    """Return `(draws, count)`, how often each of `count` seeds or units counts in each resample."""
    return random.multinomial(count, np.full(count, 1 / count), DRAWS)


def samples_until(samples: np.ndarray, values: np.ndarray, goal: np.ndarray, better: str) -> np.ndarray:
    """Return after how many samples curves have reached a goal for good, between points by log samples.

    Args:
        samples: `(P,)` ascending.
        values: `(draws, P)`.
        goal: `(draws,)`.
        better: `"lower"` or `"higher"`.

    Returns `(draws,)`: the first point's samples where the goal was reached by then, infinity where it is not
    reached by the end.
    """
    gap = (values - goal[:, None]) * (1 if better == "lower" else -1)  # reached where it is not above 0
    short = gap > 0
    points = len(samples)
    last = np.where(short.any(1), points - 1 - short[:, ::-1].argmax(1), -1)  # the last point still short
    before, after = np.clip(last, 0, points - 2), np.clip(last + 1, 1, points - 1)
    rows = np.arange(len(values))
    high, low = gap[rows, before], gap[rows, after]
    # Where the goal lies beyond the last point the share is above 1 without bound, and of no use below.
    share = np.divide(high, high - low, out=np.zeros(len(rows)), where=high > low).clip(0, 1)
    logs = np.log(samples)
    between = np.exp(logs[before] + share * (logs[after] - logs[before]))
    return np.where(last < 0, samples[0], np.where(last == points - 1, np.inf, between))


@dataclass(frozen=True)
class Saving:
    """How many samples a variant needs for what the baseline can do after some."""

    variant: str  # its name
    measure: str  # the measure's key
    base_samples: int  # samples that the baseline saw
    goal: float  # its figure then, mean over seeds
    # What the variant needs, interpolated on the curve of means; infinity if it never gets there
    samples: float
    interval: tuple[float, float]  # 95 % bootstrap interval of `samples`; an end may be infinite
    reached: float  # share of the resamples in which the variant gets there

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON, which has no infinity: `None` stands for never."""
        low, high = (end if np.isfinite(end) else None for end in self.interval)
        samples = self.samples if np.isfinite(self.samples) else None
        return asdict(self) | {"samples": samples, "interval": [low, high]}


def savings(variant: str, own: Curve, base: Curve) -> list[Saving]:
    """Compare a variant with every point of the baseline, paired by seed and unit; the last is the headline.

    Seeds are resampled, and within each its units; the same for both. One seed speaks for itself alone. Both
    curves are over the same units.
    """
    random = np.random.default_rng(0)
    seeds = _resamples(random, len(own.values))
    units = [_resamples(random, len(of)) for of in own.of]
    drawn, goals = own.resampled(seeds, units), base.resampled(seeds, units)
    key, better, made = own.measure.name, own.measure.better or "lower", []
    for place, base_samples in enumerate(base.samples):
        goal = base.mean[place]
        (needed,) = samples_until(own.samples, own.mean[None], np.array([goal]), better)
        resampled = samples_until(own.samples, drawn, goals[:, place], better)
        # Between a number and infinity there is no middle: an end is one of the values drawn.
        low, high = np.percentile(resampled, _TAILS, method="nearest")
        reached = float(np.isfinite(resampled).mean())
        made.append(Saving(variant, key, int(base_samples), float(goal), float(needed), (low, high), reached))
    return made


def band(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the band around a curve: lowest and highest seed; of one seed the 95 % interval over units."""
    if len(curve.values) > 1:
        return curve.each.min(0), curve.each.max(0)
    units = [_resamples(np.random.default_rng(0), len(curve.of[0]))]
    low, high = np.percentile(curve.resampled(np.ones((DRAWS, 1)), units), _TAILS, axis=0)
    return low, high


def sentence(saving: Saving, curve: Curve, base: str) -> str:
    """Describe in a sentence how many samples a variant needs for what the baseline ends with.

    `saving` is the last of `savings`, `curve` the variant's, `base` the baseline's name.
    """
    name, measure, total = saving.variant, curve.measure, saving.base_samples
    unit = f" {measure.unit}" if measure.unit == "%" else ""
    goal = f"{base}'s final {measure.label} ({saving.goal:.{measure.digits}f}{unit}, after {total:,} samples)"
    if not np.isfinite(saving.samples):
        end = f"{curve.mean[-1]:.{measure.digits}f}{unit}"
        chance = f"; in {saving.reached:.0%} of the resamples it does" if saving.reached >= 0.01 else ""
        return f"{name} does not reach {goal}: it ends at {end}{chance}."
    low, high = (f"{end:,.0f}" if np.isfinite(end) else "never" for end in saving.interval)
    first = "at most " if saving.samples <= curve.samples[0] else ""
    return (
        f"{name} reaches {goal} after {first}{saving.samples:,.0f}, {saving.samples / total:.0%} of them "
        f"(95 % interval {low} to {high})."
    )


Curves = Mapping[str, Mapping[str, Curve]]  # variant -> key of a measure -> curve


def size_sentence(curves: Curves) -> str:
    """Describe what each point of some curves is over; empty where there are none."""
    every = [curve for own in curves.values() for curve in own.values()]
    sizes = [len(of) for curve in every for of in curve.of]
    if not sizes:
        return ""
    count = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return f"Each point of a curve is over {count} {every[0].measure.over}."


def all_savings(curves: Curves, baseline: str) -> dict[str, dict[str, list[Saving]]]:
    """Return variant -> measure -> savings; of the measures that have a better side, but the cosine.

    BASIC is trained on the cosine, and plain is not: there is nothing to save.
    """
    base = {
        key: curve
        for key, curve in curves.get(baseline, {}).items()
        if curve.measure.better and key != "cosine"
    }
    return {
        variant: {
            key: savings(variant, own[key], curve)
            for key, curve in base.items()
            # A run of an earlier version was measured on another number of samples.
            if key in own and list(map(len, own[key].of)) == list(map(len, curve.of))
        }
        for variant, own in curves.items()
        if variant != baseline
    }


def sentences(curves: Curves, baseline: str) -> list[str]:
    """Describe when every variant has reached the baseline's final caption loss, and what it saves before."""
    return [
        sentence(made[-1], curves[variant]["caption_loss"], baseline) + way_sentence(made, baseline)
        for variant, of in all_savings(curves, baseline).items()
        if (made := of.get("caption_loss"))
    ]


def lead_of(made: Sequence[Saving]) -> Saving | None:
    """Return the largest saving that is beyond noise, or `None`.

    One that was reached before the first point was measured has no known size, and is left out.
    """
    first = made[0].base_samples if made else 0
    ahead = [s for s in made if s.samples > first and s.interval[1] < s.base_samples]
    return max(ahead, key=lambda saving: saving.base_samples - saving.samples, default=None)


def headline_of(made: Sequence[Saving]) -> Saving | None:
    """Return the saving that a plot marks: at the baseline's end, or the largest; one beyond noise."""
    return made[-1] if made[-1].interval[1] < made[-1].base_samples else lead_of(made)


def way_sentence(made: Sequence[Saving], base: str) -> str:
    """Describe what a variant saves on the way to the end."""
    best = lead_of(made[:-1])
    if best is None:
        return " On the way there it needs no fewer samples beyond noise."
    low, high = best.interval
    return (
        f" On the way, what {base} can do after {best.base_samples:,} samples it can do after "
        f"{best.samples:,.0f}, {best.samples / best.base_samples:.0%} of them ({low:,.0f} to {high:,.0f}), "
        "its largest lead."
    )


def as_dict(curves: Curves) -> dict[str, object]:
    return {variant: {key: c.as_dict() for key, c in own.items()} for variant, own in curves.items()}


def savings_as_dict(curves: Curves, baseline: str) -> dict[str, object]:
    """Return for JSON what every variant needs for what the baseline can do after each of its points."""
    return {
        variant: {key: [saving.as_dict() for saving in made] for key, made in of.items()}
        for variant, of in all_savings(curves, baseline).items()
    }
