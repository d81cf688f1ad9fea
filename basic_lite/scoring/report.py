"""The content of `results.json`: what was measured, on what, by which rule, and how sure it is."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from basic_lite.scoring.published import MEASURED_ON, published
from basic_lite.scoring.score import Score

_PACKAGES = (
    "basic-lite",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "datasets",
    "pillow",
    "numpy",
)


def versions() -> dict[str, str]:
    """Return package -> installed version, without importing any."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def results(
    score: Score,
    *,
    benchmark: str,
    split: str,
    n: int,
    prompt_style: str,
    manifest_hash: str | None,
    limit: int | None = None,
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `results.json`.

    Args:
        score: What the scorer returned.
        benchmark: Name in the table of benchmarks.
        split: The split that was asked.
        n: Questions that were asked (for MMBench rows, rotations included).
        prompt_style: Name of the prompts.
        manifest_hash: Of the checkpoint's manifest; `None` for predictions of unknown origin.
        limit: The `--limit`, if one was given; such a value is not the benchmark's.
        run: Anything else worth keeping, such as decoding settings.
    """
    interval = score.interval()
    return {
        "benchmark": benchmark,
        "split": split,
        "n": n,
        "limit": limit,
        "metric": score.metric,
        "scorer": score.scorer,
        "prompt_style": prompt_style,
        "value": score.value,
        "interval_95": None if interval is None else list(interval),
        "parse_failures": score.unparsed,
        "missing_predictions": score.missing,
        "figures": dict(score.figures),
        "breakdown": {name: dict(groups) for name, groups in score.breakdown.items()},
        "notes": list(score.notes),
        "published": {"measured_on": MEASURED_ON.get(benchmark), "values": published(benchmark)},
        "manifest_hash": manifest_hash,
        "versions": versions(),
        "run": dict(run or {}),
    }
