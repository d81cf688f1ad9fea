"""A plan from the command line to its table: check everything, train what is missing, compare."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from basic_lite import files
from basic_lite.data.workers import cores
from basic_lite.data.world import parts, signs
from basic_lite.data.world import world as data_world_world
from basic_lite.data.world.dataset import World, world_in, write_world
from basic_lite.data.world.world import is_embedded
from basic_lite.experiments import curves, decoders, measure, processes, report, sweeps
from basic_lite.experiments.plans import (
    DEMO_VARIANTS,
    METHOD,
    NAMED,
    NO_OPTIONS,
    SQUEEZED,
    TUNE,
    Plan,
    Usual,
    Variant,
    at_level,
    variants_for,
)
from basic_lite.experiments.table import for_terminal, tabulate, write_markdown
from basic_lite.files import complete, contents, file_hash, read_manifest, versions, write_json
from basic_lite.memory.available import parameters_of
from basic_lite.models import devices, zoo
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
    full = {name: count // 3 if quick else count for name, count in data_world_world.SCALE.items()}
    return full if stages == 2 else {**full, "conversations": 0, "questions": 0}


def draw(folder: Path, seed: int, scale: dict[str, int], say: Callable[[str], None]) -> World:
    """Return the world in a folder; it is drawn where it is missing or has less than is needed.

    `seed` is of every scene and sentence; `scale` is as `scale_of`, with `named` where captions name less
    than they can; `say` takes one line for the user.
    """
    path = folder / _STAMP
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # The captions come first and are the same with and without what follows them.
    same = there.get("seed") == seed and there.get("captions") == scale["captions"]
    if not (same and all(there[name] >= count for name, count in scale.items())):
        few = f" that name {scale[NAMED]} colours and shapes" if NAMED in scale else ""
        count = f"{scale['captions']:,} captioned scenes{few}"
        say(f"Drawing the embedded world of seed {seed}: {count}, in {folder}")
        with complete(folder) as draft:
            write_world(draft, seed, **scale)
            write_json(draft / _STAMP, {"seed": seed, **scale})
    return world_in(folder)


def draw_signs(
    folder: Path, seed: int, captions: int, scenes: int, size: str, say: Callable[[str], None]
) -> None:
    """Draw the world of scenes with signs where it is missing; `scenes` of them are to be measured on."""
    stamp = {"seed": seed, "captions": captions, "held out": scenes}
    path = folder / _STAMP
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == stamp:
        return
    say(f"Drawing scenes with signs, seed {seed}: {captions:,} to learn from, in {folder}")
    with complete(folder) as draft:
        signs.write_signs(draft, seed, captions, scenes, size)
        write_json(draft / _STAMP, stamp)


_BYTES_OF_TINY = 2**30
"""What stage 1 of the embedded model takes at its highest, with room (0.8 GiB were measured)."""


@dataclass(frozen=True)
class Comparison:
    """One plan on one model and data."""

    plan: Plan  # what is compared
    out: Path  # folder of the set-up: its runs and the tables of all its plans
    seeds: Sequence[int]  # of the runs
    stage1: Mapping[str, object]  # options of stage 1 that hold for all variants, as far as they were given
    stage2: Mapping[str, object] | None  # options of stage 2; `None` stops after stage 1
    defaults: Mapping[str, object]  # of stage 1's options
    quick: bool  # a smaller embedded world
    # Annotation file to measure on, outside the embedded world; `None` for the training file
    measured_on: Path | None
    measured_rows: int  # how many of its rows
    # To score every run on, with `data`, `images` and `answer_by` of each
    benchmarks: Mapping[str, Mapping[str, str | None]]
    chosen: Sequence[str]  # names of the only variants, or levels of a sweep, to run; empty for all

    def run(
        self,
        console: Console,
        check: Callable[..., None],
        jobs: int | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> None:
        """Do everything that is left to do, `jobs` runs at a time.

        `check` is `stage1`, called with every variant's options and `dry_run` before any work; `overwrite`
        begins anew; `dry_run` only says what would be run. Raises ValueError in one line for what a user can
        have wrong, before any work.
        """
        self._check_plan()
        setup, variants = self._setup(), self._variants()
        todo = [run for seed in self.seeds for run in self._runs(variants, seed)]
        for variant in variants:
            with contextlib.redirect_stdout(io.StringIO()):
                check(**self._checked(variant), out=self.out / "check", dry_run=True)
        if dry_run:
            for run in todo:
                state = "done" if run.finished else "to do"
                console.print(f"{state}: {run.name}, in {run.folder}")
            return
        with files.held(self.out):
            if overwrite and (self.out / SETUP).is_file():
                for path in files.contents(self.out):
                    files.remove(path)
            claim(self.out, setup)
            self._train(todo, jobs, console)
            self._report(variants, console)

    def tuned(
        self,
        console: Console,
        check: Callable[..., None],
        jobs: int | None = None,
        overwrite: bool = False,
    ) -> Comparison:
        """Return the same at the learning rate that suits plain best by its final caption loss.

        Chosen on plain alone, with the first seed, so that no other variant has a say; the runs lie beside
        the folder of the comparison, and are not repeated. Arguments and errors are those of `run`; raises
        ValueError, too, if a learning rate is given or the plan varies it.
        """
        if self.plan.name == "rate" or self.stage1.get("learning_rate") is not None:
            raise ValueError("--tune chooses the learning rate; leave out --learning-rate, or --tune")
        out = self.out.with_name(f"{self.out.name}-tune")
        tries = replace(self, plan=TUNE, out=out, seeds=self.seeds[:1], stage2=None, benchmarks={}, chosen=[])
        tries.run(console, check, jobs, overwrite)
        losses = {}
        for run in tries._runs(tries._variants(), self.seeds[0]):
            (loss,) = (m.mean for m in measure.of_run(run.folder, run.steps) if m.name == "caption_loss")
            losses[read_manifest(run.folder / "stage1")["training"]["learning_rate"]] = loss
        rate = min(losses, key=lambda tried: losses[tried])
        ends = rate in (min(losses), max(losses))
        console.print(
            f"Learning rate {rate:g}: of {', '.join(f'{tried:g}' for tried in sorted(losses))} the one that "
            f"gives plain the lowest caption loss{' (at an end of what was tried)' if ends else ''}.",
        )
        return replace(self, stage1={**self.stage1, "learning_rate": rate})

    def _check_plan(self) -> None:
        if self.plan.name == "data" and not self._embedded:
            if not {"global_batch", "max_steps"} & {k for k, v in self.stage1.items() if v is not None}:
                raise ValueError(
                    "plan data needs --max-steps N, the steps of the largest amount, or --global-batch N: "
                    "all amounts should share one, and the default shrinks where rows are few"
                )
        if self.plan.name == "world" and not self._embedded:
            raise ValueError(
                "plan world is about captions of the embedded world, where it is known what they leave out; "
                "leave out --data and take the embedded decoder (--model tiny)"
            )
        if self.plan.name == "space" and (not self._embedded or self.stage2 is not None):
            raise ValueError(
                "plan space gives the embedded decoder another input space, in stage 1: leave out --data and "
                "--stage 2, and take the embedded decoder (--model tiny)"
            )
        if self.plan.signs and self._embedded and self.stage2 is not None:
            raise ValueError(
                "the embedded world's signs are for stage 1: leave --stage 2 out, or give --data"
            )

    @property
    def _embedded(self) -> bool:
        """Whether the variants are trained in the embedded world."""
        return self.stage1.get("data") is None and is_embedded(self._sources.llm)

    @property
    def _sources(self) -> Sources:
        given = _plain(self.stage1)
        return Sources.named(given["model"], given.get("tower"), given.get("llm"))

    def _variants(self) -> list[Variant]:
        sources, given = self._sources, _plain(self.stage1)
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
        plan = self.plan
        if self._embedded:
            variants = {name: {**plan.embedded, **options} for name, options in plan.variants.items()}
            plan = replace(plan, variants=variants)
        return variants_for(plan, usual, given, self.defaults, self.chosen)

    def _checked(self, variant: Variant) -> dict[str, object]:
        """Return the options that can be looked at before a world is drawn."""
        known = {**self.stage1, **variant.options}
        return processes.for_stage({name: value for name, value in known.items() if name not in NO_OPTIONS})

    def _setup(self) -> dict[str, object]:
        """Return what all runs of the folder share, as plain JSON."""
        content = {"stage1": _plain(self.stage1), "quick": self.quick}
        content["parts"] = fingerprints(self._sources)
        if self.stage2 is not None:
            content["stage2"] = _plain(self.stage2)
        for name, where in self.benchmarks.items():
            content[f"{name} data"] = str(where["data"])
            if where["answer_by"] != "text":
                content[f"{name} answers"] = where["answer_by"]
        if not self._embedded:
            content |= {"measured on": str(self.measured_on), "measured rows": self.measured_rows}
            rows = self._measured_rows()
            opened = measure.open_measured(rows["data"], rows["images"], rows["follow_links"])
            content["content of the file that is measured on"] = opened.sha256
        return content

    def _runs(self, variants: Sequence[Variant], seed: int) -> list[processes.Run]:
        steps = ["stage1", *(["stage2"] if self.stage2 is not None else [])]
        if self.stage2 is not None and self._embedded:
            steps.append(measure.QUESTIONS)
        method = {name: value for name, value in self.stage1.items() if name in METHOD}
        given = {"stage1": _plain(self.stage1), "stage2": _plain({**method, **(self.stage2 or {})})}
        world = self._world(seed) if self._embedded else None
        if world is not None:
            for stage in given:
                own = {"data": str(world / f"{stage}.json"), "images": str(world)}
                given[stage] = {"workers": 0} | given[stage] | own
        steps += self.benchmarks
        measured = self._measured(world)
        along = {"along": self._along(measured, seed)}
        kind = self._signs if self.plan.signs and world is not None else "runs"
        runs = []
        for variant in variants:
            varied = _plain(variant.options)
            if (named := varied.pop(NAMED, None)) is not None:
                captions = world_in(self._world(seed, int(str(named))))
                varied |= {"data": str(captions.stage1), "images": str(captions.images)}
            if (times := varied.pop(SQUEEZED, None)) is not None:
                varied |= self._squeezed(float(str(times)))
            by_stage = {"stage1": varied | along, "stage2": {k: v for k, v in varied.items() if k in METHOD}}
            stages = {name: given[name] | by_stage[name] for name in steps if name in given}
            folder = self.out / kind / re.sub(r"[^\w=.+-]", "_", variant.key) / f"seed-{seed}"
            task = {"stages": stages, "measure": measured}
            runs.append(processes.Run(variant.key, seed, folder, tuple(steps), task))
        return runs

    def _measured(self, world: Path | None) -> dict[str, object]:
        """Return the arguments of `measure.measure`."""
        if world is None:
            arguments: dict[str, object] = {"rows": self._measured_rows()}
        elif self.plan.signs:
            arguments = {"signs": str(world)}
        else:
            arguments = {"world": str(world), "scenes": self._scenes}
        return arguments | ({"benchmarks": self.benchmarks} if self.benchmarks else {})

    @staticmethod
    def _along(measured: Mapping[str, Any], seed: int) -> str:
        """Return the same for `curves.callbacks`, as JSON: fewer samples, and only what a curve shows."""
        fewer = {name: value for name, value in measured.items() if name in ("world", "signs")}
        if "rows" in measured:
            rows = measured["rows"]
            fewer["rows"] = rows | {"count": min(rows["count"], curves.SAMPLES)}
        else:
            fewer["scenes"] = min(measured.get("scenes", curves.SAMPLES), curves.SAMPLES)
        return json.dumps({**fewer, "seed": seed, "terms": False})

    def _world(self, seed: int, named: int | None = None) -> Path:
        kind = self._signs if self.plan.signs else "seed"
        return self.out / "worlds" / f"{kind if named is None else f'{NAMED}-{named}'}-{seed}"

    def _decoder(self, times: float) -> Path:
        return self.out / "decoders" / f"{SQUEEZED}-{times:g}"

    def _squeezed(self, times: float) -> dict[str, object]:
        """Return the options of stage 1 that put a squeezed decoder in the embedded one's place."""
        sources, defaults = self._sources, zoo.stage_defaults(self._sources.llm, 1)
        known = ("tower", "template", "image_token")
        shared = {"bits": zoo.bits_of(zoo.TINY, None)} | {name: getattr(sources, name) for name in known}
        usual = ("global_batch", "micro_batch", "learning_rate", "epochs")
        shared |= {name: getattr(defaults, name) for name in usual}
        return {**shared, **_plain(self.stage1), "llm": str(self._decoder(times))}

    @property
    def _signs(self) -> str:
        """Name of the folders of a world with signs and of its runs."""
        return "signs" if self.plan.signs == "large" else f"{self.plan.signs}-signs"

    @property
    def _scenes(self) -> int:
        return SCENES // (2 if self.quick else 1)

    def _measured_rows(self) -> dict[str, Any]:
        """Return the arguments of `measure.rows_of_file`."""
        data, images = self.measured_on or self.stage1.get("data"), self.stage1.get("images")
        if data is None:
            raise ValueError("give --data, so that there is something to measure on, or --measure-data FILE")
        what = "rows of the training file" if self.measured_on is None else f"rows of {self.measured_on.name}"
        links = bool(self.stage1.get("follow_links", False))
        more = {"images": images and str(images), "follow_links": links, "label": what}
        return {"data": str(data), "count": self.measured_rows, **more}

    def _train(self, todo: Sequence[processes.Run], jobs: int | None, console: Console) -> None:
        left = [run for run in todo if not run.finished]
        done = len(todo) - len(left)
        if done:
            console.print(f"{done} of {len(todo)} runs are done already")
        if not left:
            return
        if self._embedded:
            say = console.print
            scale = scale_of(1 if self.stage2 is None else 2, self.quick)
            fewer = {count for v in self._variants() if (count := v.options.get(NAMED)) is not None}
            for times in {v.options[SQUEEZED]: None for v in self._variants() if SQUEEZED in v.options}:
                if not (folder := self._decoder(float(str(times)))).is_dir():
                    with complete(folder) as draft:
                        decoders.write_squeezed(draft, float(str(times)))
            for seed in {run.seed: None for run in left}:
                if self.plan.signs:
                    captions = scale["captions"] * MORE_SIGNS
                    draw_signs(self._world(seed), seed, captions, self._scenes, self.plan.signs, say)
                    continue
                draw(self._world(seed), seed, scale, say)
                for named in sorted(int(str(count)) for count in fewer):
                    draw(self._world(seed, named), seed, {**scale_of(1, self.quick), NAMED: named}, say)
        device = devices.choose_device()
        jobs = jobs or processes.jobs_for(len(left), self._bytes_of_a_run(), device == "cuda")
        threads = max(cores() // jobs, 1)
        console.print(
            f"{len(left)} runs, {jobs} at a time with {threads} threads each. Ctrl-C stops them; the same "
            "command goes on.",
        )
        try:
            with processes.ProgressBoard(console) as board:
                processes.run_all(todo, jobs, threads, board.show)
        except KeyboardInterrupt:
            console.print("Stopped. What is done stays; the same command goes on.")
            raise

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
        measured: dict[str, list[list[measure.Measure]]] = {}
        points: dict[str, list[list[curves.Point]]] = {}
        folders: list[Path] = []
        for seed in self.seeds:
            runs = self._runs(variants, seed)
            self._check_same_data(runs)
            folders += [run.folder for run in runs]
            for variant, run in zip(variants, runs, strict=True):
                measured.setdefault(variant.name, []).append(measure.of_run(run.folder, run.steps))
                points.setdefault(variant.name, []).append(curves.read(run.folder / "stage1"))
        where, command = self.out / self.plan.name, f"basic-lite {shlex.join(sys.argv[1:])}"
        drawn = {variant: curves.curves_of(runs) for variant, runs in points.items()}
        share = curves.measuring_share(folders)
        costs = [] if share is None else [curves.cost_sentence(share)]
        if self.plan.levels:
            first = {run.variant: run.folder for run in self._runs(variants, self.seeds[0])}
            places = {
                level: sweeps.place_of(self.plan.name, first[variant.key], variant.options)
                for level in self.plan.levels
                for variant in variants
                if variant.name == at_level("BASIC", level)
            }
            sweep = sweeps.sweep_of(self.plan, self.seeds, measured, places)
            ways = {
                level.name: {variant: drawn[at_level(variant, level.name)] for variant in DEMO_VARIANTS}
                for level in sweep.levels
            }
            along = ways["1" if "1" in places else sweep.levels[-1].name]
            content, said = sweep.as_dict(), sweep.sentences
            for level in sweep.levels:
                baseline = level.table.baseline
                said += [f"At {level.label}: {way}" for way in curves.sentences(ways[level.name], baseline)]
            sweeps.write_markdown(sweep, said, where.with_suffix(".md"), command)
            report.write_sweep(sweep, along, said, where.with_suffix(".html"), command)
            console.print(sweeps.for_terminal(sweep))
            how_sure = sweep.levels[0].table.how_sure
        else:
            along = drawn
            table = tabulate(self.plan.name, self.plan.asks, self.plan.baseline, self.seeds, measured)
            content, said = table.as_dict(), curves.sentences(drawn, self.plan.baseline)
            write_markdown(table, where.with_suffix(".md"), command, said)
            report.write_ablation(table, drawn, [*said, *costs], where.with_suffix(".html"), command)
            console.print(for_terminal(table))
            how_sure = table.how_sure
        content |= {"curves": curves.as_dict(drawn), "command": command, "setup": self._setup()}
        content |= {"measuring_share": share, "savings": curves.savings_as_dict(along, self.plan.baseline)}
        files.write_json(where.with_suffix(".json"), content | {"versions": versions()})
        for line in (how_sure, *said, *costs):
            console.print(line)
        console.print(f"Plot: {where}.html   figures: {where}.json   for a README: {where}.md")


def _plain(options: Mapping[str, object]) -> dict[str, Any]:
    """Return options as JSON takes them, without those that were not given."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None
    }
