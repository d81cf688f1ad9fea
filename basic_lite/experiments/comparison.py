"""A plan from the command line to its table: check everything, train what is missing, compare."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from basic_lite import files
from basic_lite.data.world import parts, signs
from basic_lite.data.world import world as embedded
from basic_lite.data.world.dataset import world_in, write_world
from basic_lite.experiments import curves, decoders, measure, processes, report, sweeps
from basic_lite.experiments.plans import (
    DEMO_VARIANTS,
    METHOD,
    NAMED,
    NO_OPTIONS,
    SQUEEZED,
    TUNE,
    Options,
    Plan,
    Usual,
    Variant,
    at_level,
    variants_for,
)
from basic_lite.experiments.table import for_terminal, tabulate, write_markdown
from basic_lite.files import complete, contents, file_hash, read_manifest, versions, write_json
from basic_lite.memory.available import parameters_of
from basic_lite.models import zoo
from basic_lite.models.checkpoint import identity
from basic_lite.models.llava import Sources, read_config
from basic_lite.models.tower import vision_config

SETUP: str = "ablation.json"
"""What all runs of an ablation's folder share, written beside them and compared before any is added."""


def fingerprints(sources: Sources) -> dict[str, dict[str, object]]:
    """Return which weights a set-up stands for; of the parts that ship with the package, to the last bit."""
    configs = {
        "llm": read_config(sources.llm, "language model"),
        "tower": vision_config(read_config(sources.tower, "vision tower")),
    }
    marks: dict[str, dict[str, object]] = {}
    for what, config in configs.items():
        source = getattr(sources, what)
        marks[what] = identity(source, config)
        if source in parts.EMBEDDED:
            marks[what]["sha256"] = file_hash(parts.EMBEDDED[source] / "model.safetensors")
    return marks


def claim(out: Path, setup: Mapping[str, object]) -> None:
    """Write a folder's set-up, or compare it with the one that is there, as far as both speak of a thing.

    `setup` is plain JSON. Raises ValueError if the folder holds something else, or runs of another set-up; it
    names what differs.
    """
    path, now = out / SETUP, json.loads(json.dumps(setup))
    if not path.is_file():
        if out.exists() and (not out.is_dir() or contents(out)):
            raise ValueError(f"{out} is in use and holds no ablation (no {SETUP}); choose another --out")
        write_json(path, now)
        return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); choose another --out") from error
    for name in sorted(set(now) & set(then)):
        if now[name] != then[name]:
            raise ValueError(
                f"the runs in {out} were made with another {name}: {_shown(then[name])}, now "
                f"{_shown(now[name])}; choose another --out, or replace them with --overwrite"
            )
    if set(now) - set(then):  # a second stage or a benchmark, say: nothing of what is there speaks against it
        write_json(path, then | now)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."


SCENES: int = 200  # held-out scenes that a run is measured on

MORE_SIGNS: int = 2
"""The world of signs has this many times the captions: to read takes longer than to name things."""

_STAMP = "world.json"


def scale_of(stages: int, quick: bool) -> dict[str, int]:
    """Return rows of stage 1 and 2 and questions; a third of the world where it is to be quick."""
    full = {name: count // 3 if quick else count for name, count in embedded.SCALE.items()}
    return full if stages == 2 else {**full, "conversations": 0, "questions": 0}


def draw(folder: Path, seed: int, scale: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Draw the world of a folder if it is missing or has less than is needed.

    `seed` is of every scene and sentence; `scale` is as `scale_of`, with `named` where captions name less
    than they can; `say` takes one line for the user.
    """
    there = _stamp(folder)
    # The captions come first and are the same with and without what follows them.
    same = there.get("seed") == seed and there.get("captions") == scale["captions"]
    if same and all(there[name] >= count for name, count in scale.items()):
        return
    few = f" that name {scale[NAMED]} colours and shapes" if NAMED in scale else ""
    say(
        f"Drawing the embedded world of seed {seed}: {scale['captions']:,} captioned scenes{few}, in {folder}"
    )
    with complete(folder) as draft:
        write_world(draft, seed, **scale)
        write_json(draft / _STAMP, {"seed": seed, **scale})


def draw_signs(
    folder: Path, seed: int, captions: int, scenes: int, size: str, say: Callable[[str], None]
) -> None:
    """Draw the world of scenes with signs if it is missing; `scenes` of them are to be measured on."""
    stamp = {"seed": seed, "captions": captions, "held out": scenes}
    if _stamp(folder) == stamp:
        return
    say(f"Drawing scenes with signs, seed {seed}: {captions:,} to learn from, in {folder}")
    with complete(folder) as draft:
        signs.write_signs(draft, seed, captions, scenes, size)
        write_json(draft / _STAMP, stamp)


def _stamp(folder: Path) -> dict[str, int]:
    """Return what a world was drawn with; nothing where there is none."""
    path = folder / _STAMP
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def defaults_of(stage: Callable[..., None]) -> dict[str, Any]:
    """Return the options of a stage's command with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(stage).parameters.items()}


_BYTES_OF_TINY = 2**30
"""What stage 1 of the embedded model takes at its highest, with room (0.8 GiB were measured)."""


@dataclass(frozen=True)
class Comparison:
    """One plan on one model and data."""

    plan: Plan  # what is compared
    out: Path  # folder of the set-up: its runs and the tables of all its plans
    seeds: Sequence[int]  # of the runs
    check: Callable[..., None]  # the command of stage 1, whose dry run refuses what a user has wrong
    stage1: Options  # options of stage 1 that hold for all variants, as far as they were given
    stage2: Options | None  # options of stage 2; `None` stops after stage 1
    quick: bool  # a smaller embedded world
    # Annotation file to measure on, outside the embedded world; `None` for the training file
    measured_on: Path | None
    measured_rows: int  # how many of its rows
    # To score every run on, with `data`, `images` and `answer_by` of each
    benchmarks: Mapping[str, Mapping[str, str | None]]
    chosen: Sequence[str]  # names of the only variants, or levels of a sweep, to run; empty for all
    jobs: int | None = None  # runs at a time; `None` for what fits
    overwrite: bool = False  # begin anew

    def run(self, console: Console, dry_run: bool = False) -> None:
        """Do everything that is left to do; `dry_run` only says what would be run.

        Raises ValueError in one line for what a user can have wrong, before any work.
        """
        self._check_plan()
        setup, variants = self._setup(), self._variants()
        todo = [run for seed in self.seeds for run in self._runs(variants, seed)]
        for variant in variants:
            known = {k: v for k, v in {**self.stage1, **variant.options}.items() if k not in NO_OPTIONS}
            with contextlib.redirect_stdout(io.StringIO()):
                self.check(**processes.for_stage(known), out=self.out / "check", dry_run=True)
        if dry_run:
            for run in todo:
                state = "done" if run.finished else "to do"
                console.print(f"{state}: {run.name}, in {run.folder}")
            return
        with files.held(self.out):
            if self.overwrite and (self.out / SETUP).is_file():
                for path in contents(self.out):
                    files.remove(path)
            claim(self.out, setup)
            self._train(todo, console)
            self._report(variants, console)

    def tuned(self, console: Console) -> Comparison:
        """Return the same at the learning rate that suits plain best by its final caption loss.

        Chosen on plain alone, so that no other variant has a say: five rates with the first seed, then the
        best and its neighbours with all seeds, by their mean, as the best of one seed may be a rate that
        others fail at. While an end of what was tried is best, the rate beyond is tried, too. The runs lie
        beside the folder of the comparison, and are not repeated. Errors are those of `run`; raises
        ValueError, too, if a learning rate is given or the plan varies it.
        """
        if self.plan.name == "rate" or "learning_rate" in self._given:
            raise ValueError("--tune chooses the learning rate; leave out --learning-rate, or --tune")
        middle = len(TUNE.variants) // 2
        best, losses = self._best_rate(middle - 2, middle + 2, self.seeds[:1], console)
        tried = ", ".join(f"{rate:g}" for rate in losses)
        if len(self.seeds) > 1:
            _, losses = self._best_rate(best - 1, best + 1, self.seeds, console)
            tried += f" with the first seed, and {', '.join(f'{rate:g}' for rate in losses)} with all,"
        rate = min(losses, key=lambda rate: losses[rate])
        ends = " (at an end of what was tried)" if rate in (min(losses), max(losses)) else ""
        console.print(
            f"Learning rate {rate:g}: of {tried} the one that gives plain the lowest caption loss{ends}."
        )
        return replace(self, stage1={**self.stage1, "learning_rate": rate})

    def _best_rate(
        self, low: int, high: int, seeds: Sequence[int], console: Console
    ) -> tuple[int, dict[float, float]]:
        """Train plain at levels `low` to `high` of `TUNE`, and beyond them while an end is best.

        Return the place of the best level, and the mean final caption loss of every rate, ascending.
        """
        levels = list(TUNE.variants)
        low, high = max(low, 0), min(high, len(levels) - 1)
        while True:
            losses = self._losses_of_plain(levels[low : high + 1], seeds, console)
            best = low + list(losses.values()).index(min(losses.values()))
            if best == low > 0:
                low -= 1
            elif best == high < len(levels) - 1:
                high += 1
            else:
                return best, losses

    def _losses_of_plain(
        self, levels: Sequence[str], seeds: Sequence[int], console: Console
    ) -> dict[float, float]:
        tries = replace(
            self,
            plan=replace(TUNE, baseline=levels[len(levels) // 2]),
            out=self.out.with_name(f"{self.out.name}-tune"),
            seeds=seeds,
            stage2=None,
            benchmarks={},
            chosen=list(levels),
        )
        tries.run(console)
        losses: dict[float, list[float]] = {}
        for run in [run for seed in seeds for run in tries._runs(tries._variants(), seed)]:
            (loss,) = (m.mean for m in measure.of_run(run.folder, run.steps) if m.name == "caption_loss")
            rate = read_manifest(run.folder / "stage1")["training"]["learning_rate"]
            losses.setdefault(rate, []).append(loss if math.isfinite(loss) else math.inf)
        return {rate: fmean(each) for rate, each in losses.items()}

    def _check_plan(self) -> None:
        embedded = self._embedded
        if self.plan.name == "data" and not embedded and not {"global_batch", "max_steps"} & set(self._given):
            raise ValueError(
                "plan data needs --max-steps N, the steps of the largest amount, or --global-batch N: "
                "all amounts should share one, and the default shrinks where rows are few"
            )
        if self.plan.name == "world" and not embedded:
            raise ValueError(
                "plan world is about captions of the embedded world, where it is known what they leave out; "
                "leave out --data and take the embedded decoder (--model tiny)"
            )
        if self.plan.name == "space" and (not embedded or self.stage2 is not None):
            raise ValueError(
                "plan space gives the embedded decoder another input space, in stage 1: leave out --data and "
                "--stage 2, and take the embedded decoder (--model tiny)"
            )
        if self.plan.signs and embedded and self.stage2 is not None:
            raise ValueError(
                "the embedded world's signs are for stage 1: leave --stage 2 out, or give --data"
            )

    @property
    def _given(self) -> dict[str, Any]:
        """Options of stage 1 that the user gave, as plain JSON."""
        return _plain(self.stage1)

    @property
    def _embedded(self) -> bool:
        """Whether the variants are trained in the embedded world."""
        return "data" not in self._given and embedded.is_embedded(self._sources.llm)

    @property
    def _sources(self) -> Sources:
        given = self._given
        return Sources.named(given["model"], given.get("tower"), given.get("llm"))

    def _variants(self) -> list[Variant]:
        sources, given, plan = self._sources, self._given, self.plan
        defaults = zoo.stage_defaults(sources.llm, 1)
        tower = vision_config(read_config(sources.tower, "vision tower"))
        usual = Usual(
            read_config(sources.llm, "language model").num_hidden_layers,
            given.get("global_batch", defaults.global_batch),
            given.get("epochs", defaults.epochs),
            given.get("max_steps"),
            given.get("learning_rate", defaults.learning_rate),
            given.get("image_size", tower.image_size),
            tower.patch_size,
        )
        if self._embedded:
            variants = {name: {**plan.embedded, **options} for name, options in plan.variants.items()}
            plan = replace(plan, variants=variants)
        return variants_for(plan, usual, given, defaults_of(self.check), self.chosen)

    def _setup(self) -> dict[str, object]:
        """Return what all runs of the folder share, as plain JSON."""
        content = {"stage1": self._given, "quick": self.quick, "parts": fingerprints(self._sources)}
        if self.stage2 is not None:
            content["stage2"] = _plain(self.stage2)
        for name, where in self.benchmarks.items():
            content[f"{name} data"] = str(where["data"])
            if where["answer_by"] != "text":
                content[f"{name} answers"] = where["answer_by"]
        if not self._embedded:
            content |= {"measured on": str(self.measured_on), "measured rows": self.measured_rows}
            rows = self._rows_to_measure()
            opened = measure.open_measured(rows["data"], rows["images"], rows["follow_links"])
            content["content of the file that is measured on"] = opened.sha256
        return content

    def _runs(self, variants: Sequence[Variant], seed: int) -> list[processes.Run]:
        world = self._world(seed) if self._embedded else None
        given = {"stage1": self._given}
        if self.stage2 is not None:
            given["stage2"] = _of_method(self._given) | _plain(self.stage2)
        if world is not None:
            for stage, options in given.items():
                own = {"data": str(world / f"{stage}.json"), "images": str(world)}
                given[stage] = {"workers": 0} | options | own
        asked = [measure.QUESTIONS] if world is not None and self.stage2 is not None else []
        steps = (*given, *asked, *self.benchmarks)
        # A curve's points are over fewer samples, in a short run fewer still (`curves.size_of`), and without
        # the terms, which it does not show.
        along = json.dumps({**self._measured(world, curves.SAMPLES), "seed": seed, "terms": False})
        measured = self._measured(world) | ({"benchmarks": self.benchmarks} if self.benchmarks else {})
        kind = self._signs if self.plan.signs and world is not None else "runs"
        runs = []
        for variant in variants:
            varied = _plain(variant.options)
            if (named := varied.pop(NAMED, None)) is not None:
                captions = world_in(self._world(seed, named))
                varied |= {"data": str(captions.stage1), "images": str(captions.images)}
            if (times := varied.pop(SQUEEZED, None)) is not None:
                varied |= self._squeezed(times)
            own = {"stage1": {**varied, "along": along}, "stage2": _of_method(varied)}
            stages = {stage: options | own[stage] for stage, options in given.items()}
            folder = self.out / kind / re.sub(r"[^\w=.+-]", "_", variant.key) / f"seed-{seed}"
            task = {"stages": stages, "measure": measured}
            runs.append(processes.Run(variant.key, seed, folder, steps, task))
        return runs

    def _measured(self, world: Path | None, most: int = sys.maxsize) -> dict[str, Any]:
        """Return the arguments of `measure.measuring`, for `most` samples at most."""
        if world is None:
            rows = self._rows_to_measure()
            return {"rows": rows | {"count": min(rows["count"], most)}}
        kind = "signs" if self.plan.signs else "world"
        return {kind: str(world), "scenes": min(self._scenes, most)}

    def _rows_to_measure(self) -> dict[str, Any]:
        """Return the arguments of `measure.rows_of_file`."""
        given = self._given
        data = self.measured_on or given.get("data")
        if data is None:
            raise ValueError("give --data, so that there is something to measure on, or --measure-data FILE")
        return {
            "data": str(data),
            "count": self.measured_rows,
            "images": given.get("images"),
            "follow_links": given.get("follow_links", False),
            "label": f"rows of {self.measured_on.name if self.measured_on else 'the training file'}",
        }

    def _world(self, seed: int, named: int | None = None) -> Path:
        kind = self._signs if self.plan.signs else "seed" if named is None else f"{NAMED}-{named}"
        return self.out / "worlds" / f"{kind}-{seed}"

    def _decoder(self, times: float) -> Path:
        return self.out / "decoders" / f"{SQUEEZED}-{times:g}"

    def _squeezed(self, times: float) -> dict[str, Any]:
        """Return the options of stage 1 that put a squeezed decoder in the embedded one's place."""
        sources, defaults = self._sources, zoo.stage_defaults(self._sources.llm, 1)
        shared = {"bits": zoo.bits_of(zoo.TINY, None)}
        shared |= {name: getattr(sources, name) for name in ("tower", "template", "image_token")}
        usual = ("global_batch", "micro_batch", "learning_rate", "epochs")
        shared |= {name: getattr(defaults, name) for name in usual}
        return {**shared, **self._given, "llm": str(self._decoder(times))}

    @property
    def _signs(self) -> str:
        """Name of the folders of a world with signs and of its runs."""
        return "signs" if self.plan.signs == "large" else f"{self.plan.signs}-signs"

    @property
    def _scenes(self) -> int:
        return SCENES // (2 if self.quick else 1)

    def _train(self, todo: Sequence[processes.Run], console: Console) -> None:
        left = [run for run in todo if not run.finished]
        if done := len(todo) - len(left):
            console.print(f"{done} of {len(todo)} runs are done already")
        if not left:
            return
        if self._embedded:
            self._prepare(sorted({run.seed for run in left}), console.print)
        processes.run_shown(todo, console, self._bytes_of_a_run(), self.jobs)

    def _prepare(self, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Draw the worlds and write the decoders that are missing."""
        options = [variant.options for variant in self._variants()]
        for times in sorted({own[SQUEEZED] for own in options if SQUEEZED in own}):
            if not (folder := self._decoder(times)).is_dir():
                with complete(folder) as draft:
                    decoders.write_squeezed(draft, times)
        scale = scale_of(1 if self.stage2 is None else 2, self.quick)
        for seed in seeds:
            if self.plan.signs:
                captions = scale["captions"] * MORE_SIGNS
                draw_signs(self._world(seed), seed, captions, self._scenes, self.plan.signs, say)
                continue
            draw(self._world(seed), seed, scale, say)
            for named in sorted({own[NAMED] for own in options if NAMED in own}):
                draw(self._world(seed, named), seed, {**scale_of(1, self.quick), NAMED: named}, say)

    def _bytes_of_a_run(self) -> int:
        """Guess what a run takes on a CPU: weights in fp32 four times over, beside torch itself."""
        if self._sources.llm in parts.EMBEDDED:
            return _BYTES_OF_TINY if self.stage2 is None else 2 * _BYTES_OF_TINY
        return _BYTES_OF_TINY + 16 * parameters_of(read_config(self._sources.llm, "language model"))

    def _check_same_data(self, same: Sequence[processes.Run]) -> None:
        """Raise ValueError if a data file has changed since the first of the runs that are compared."""
        first: dict[str, tuple[str, str]] = {}
        for run in same:
            now = read_manifest(run.folder / "stage1")["data"]["sha256"]
            name, then = first.setdefault(str(run.task["stages"]["stage1"].get("data")), (run.name, now))
            if now != then:
                raise ValueError(
                    f"{name} and {run.name} were trained on different data: the file has changed since; "
                    "begin anew with --overwrite, or choose another --out"
                )

    def _report(self, variants: Sequence[Variant], console: Console) -> None:
        by_seed = [self._runs(variants, seed) for seed in self.seeds]
        for runs in by_seed:
            self._check_same_data(runs)
        of_variant = {
            variant.name: list(runs)
            for variant, runs in zip(variants, zip(*by_seed, strict=True), strict=True)
        }
        measured = {
            name: [measure.of_run(run.folder, run.steps) for run in runs] for name, runs in of_variant.items()
        }
        drawn = {
            name: curves.curves_of([curves.read(run.folder / "stage1") for run in runs])
            for name, runs in of_variant.items()
        }
        share = curves.measuring_share([run.folder for runs in by_seed for run in runs])
        costs = [] if share is None else [f"{curves.size_sentence(drawn)} {curves.cost_sentence(share)}"]
        where, command = self.out / self.plan.name, f"basic-lite {shlex.join(sys.argv[1:])}"
        if self.plan.levels:
            places = {
                level: sweeps.place_of(self.plan.name, of_variant[basic.name][0].folder, basic.options)
                for level in self.plan.levels
                for basic in variants
                if basic.name == at_level("BASIC", level)
            }
            results = sweeps.sweep_of(self.plan, self.seeds, measured, places)
            ways = {
                level.name: {variant: drawn[at_level(variant, level.name)] for variant in DEMO_VARIANTS}
                for level in results.levels
            }
            along = ways["1" if "1" in places else results.levels[-1].name]
            said = results.sentences
            for level in results.levels:
                sentences = curves.sentences(ways[level.name], self.plan.baseline)
                said += [f"At {level.label}: {way}" for way in sentences]
            sweeps.write_markdown(results, said, where.with_suffix(".md"), command)
            report.write_sweep(results, along, [*said, *costs], where.with_suffix(".html"), command)
            console.print(sweeps.for_terminal(results))
        else:
            along = drawn
            results = tabulate(self.plan.name, self.plan.asks, self.plan.baseline, self.seeds, measured)
            said = curves.sentences(drawn, self.plan.baseline)
            write_markdown(results, where.with_suffix(".md"), command, said)
            report.write_ablation(results, drawn, [*said, *costs], where.with_suffix(".html"), command)
            console.print(for_terminal(results))
        content = {
            **results.as_dict(),
            "curves": curves.as_dict(drawn),
            "command": command,
            "setup": self._setup(),
            "measuring_share": share,
            "savings": curves.savings_as_dict(along, self.plan.baseline),
            "versions": versions(),
        }
        write_json(where.with_suffix(".json"), content)
        for line in (results.how_sure, *said, *costs):
            console.print(line)
        console.print(f"Plot: {where}.html   figures: {where}.json   for a README: {where}.md")


def _plain(options: Options) -> dict[str, Any]:
    """Return options as JSON takes them, without those that were not given."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None
    }


def _of_method(options: Options) -> dict[str, Any]:
    """Return those options of stage 1 that stage 2 has too."""
    return {name: value for name, value in options.items() if name in METHOD}
