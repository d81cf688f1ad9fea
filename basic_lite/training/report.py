"""The page of a run, or of several beside one another: curves, held-out rows and sample answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basic_lite import pages
from basic_lite.files import MANIFEST, read_log, read_manifest

PAGE: str = "report.html"

_COLOURS = ("#d1495b", "#30638e", "#1b7f5c", "#edae49", "#7b5ea7", "#8c6d46")
_PANELS = {
    "lm": "loss of captions or answers (nats per token)",
    "cosine": "cosine of visual embeddings to the target",
    "named": "held-out patches whose nearest token is a word of the answer (%)",
    "das": "L_das",
    "sds": "L_sds",
}
"""Figure -> title. A line of `log.jsonl` has it under this name, with `val_` in front for held-out rows."""


@dataclass(frozen=True)
class Log:
    """What a run's `log.jsonl` says, finished or not."""

    run: Path  # its folder
    steps: list[dict[str, Any]]  # lines of training steps, in order
    measurements: list[dict[str, Any]]  # lines of held-out rows, in order; the first one is of step 0
    manifest: dict[str, Any]  # of the finished run; empty before

    @classmethod
    def of(cls, run: Path) -> Log:
        path = run / "log.jsonl"
        if not path.is_file():
            raise ValueError(f"{run} holds no run that has logged a step (no log.jsonl); name a run's folder")
        rows = read_log(path)
        manifest = read_manifest(run) if (run / MANIFEST).is_file() else {}
        return cls(
            run, [row for row in rows if "lm" in row], [row for row in rows if "val_lm" in row], manifest
        )

    @property
    def name(self) -> str:
        return "/".join(self.run.resolve().parts[-2:])

    @property
    def best(self) -> dict[str, Any] | None:
        finite = [row for row in self.measurements if row["val_lm"] is not None]
        return min(finite, key=lambda row: row["val_lm"], default=None)

    @property
    def measuring_share(self) -> float | None:
        """The share of the time spent on held-out rows, from the log; `None` where it does not say."""
        batch = self.manifest.get("training", {}).get("global_batch")
        spent = sum(row.get("val_seconds", 0.0) for row in self.measurements)
        if not (batch and spent and self.steps):
            return None
        trained, before = 0.0, 0
        for row in self.steps:
            trained += (row["step"] - before) * batch / max(row["samples_per_second"], 1e-9)
            before = row["step"]
        return spent / (spent + trained)

    @property
    def summary(self) -> str:
        """How far the run is, and the losses of its held-out rows, in a sentence."""
        last = (self.steps or self.measurements or [{"step": 0, "steps": 0}])[-1]
        done = max(last["step"], self.manifest.get("steps", 0))  # not every step is logged, be it the last
        parts = [f"{self.name}: {done:,} of {last['steps']:,} steps"]
        best = self.best
        if best is None:
            parts.append("no held-out rows were measured (--val-share or --val-data)")
        else:
            first, end = self.measurements[0], self.measurements[-1]
            parts.append(f"loss of {first['val_rows']:,} held-out rows {_number(first['val_lm'])} before")
            parts.append(f"lowest {_number(best['val_lm'])} after step {best['step']:,}")
            parts.append(f"last {_number(end['val_lm'])} after step {end['step']:,}")
        if (share := self.measuring_share) is not None:
            parts.append(f"measuring took {share:.1%} of the time")
        return f"{', '.join(parts)}."


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,.3f}"


def plot(logs: Sequence[Log]) -> str:
    """Return training's figures (lines) and those of held-out rows (dots) over the steps, as SVG."""
    keys = [key for key in _PANELS if any(_points(log, key) or _points(log, f"val_{key}") for log in logs)]
    figure = Figure(figsize=(11, 3.1 * -(-len(keys) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(keys) // 2), 2, squeeze=False)
    for axes, key in zip(grid.flat, keys, strict=False):
        for place, log in enumerate(logs):
            _draw(axes, log, key, _COLOURS[place % len(_COLOURS)])
        axes.set_title(_PANELS[key], fontsize=10, loc="left")
        pages.quiet_axes(axes)
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    if keys:
        figure.axes[0].legend(frameon=False, fontsize=9)
    figure.supxlabel("optimizer step; lines: training, dots: held-out rows", fontsize=9)
    return pages.as_svg(figure)


def _points(log: Log, key: str) -> list[tuple[int, float]]:
    rows = log.measurements if key.startswith("val_") else log.steps
    factor = 100.0 if key == "val_named" else 1.0
    return [(row["step"], factor * row[key]) for row in rows if row.get(key) is not None]


def _draw(axes: Axes, log: Log, key: str, colour: str) -> None:
    trained, held_out = _points(log, key), _points(log, f"val_{key}")
    if trained:
        axes.plot(*zip(*trained, strict=True), color=colour, linewidth=1.1, alpha=0.55, label=log.name)
    if held_out:
        label = None if trained else log.name
        axes.plot(*zip(*held_out, strict=True), "o-", color=colour, linewidth=2, markersize=4.5, label=label)
        if (best := log.best) is not None and key == "lm":
            axes.plot([best["step"]], [best["val_lm"]], "D", color=colour, markersize=8)


def _table(log: Log) -> dict[str, Any]:
    shown: dict[str, Callable[[float], str]] = {
        **{name: lambda value: f"{value:.3f}" for name in ("lm", "das", "sds", "cosine")},
        "named": lambda value: f"{100 * value:.1f} %",
    }
    keys = [key for key in shown if any(row.get(f"val_{key}") is not None for row in log.measurements)]
    rows = [
        [
            f"{row['step']:,}",
            *("" if row[f"val_{key}"] is None else shown[key](row[f"val_{key}"]) for key in keys),
        ]
        for row in log.measurements
    ]
    return {"heads": ["step", *keys], "rows": rows, "best": log.best and f"{log.best['step']:,}"}


def _samples(log: Log) -> list[dict[str, Any]]:
    """Return each sample's true answer, and the model's whenever they were written."""
    samples: dict[str, dict[str, Any]] = {}
    for row in log.measurements:
        for sample in row["samples"]:
            new = {"id": sample["id"], "true": sample["true"], "answers": []}
            answers = samples.setdefault(sample["id"], new)["answers"]
            answers.append((f"step {row['step']:,}", sample["answer"]))
    return list(samples.values())


def write(runs: Sequence[Path], path: Path) -> tuple[Path, list[str]]:
    """Write the page of runs, finished or not, and return its path and the runs' summaries."""
    logs = [Log.of(run) for run in runs]
    parts = [{"log": log, "table": _table(log), "samples": _samples(log)} for log in logs]
    page = pages.write(path, "training/report.html", plot=plot(logs), runs=parts)
    return page, [log.summary for log in logs]
