"""The benchmarks in one table: where each comes from, how it is asked, scored and handed in, and its size."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.tasks import (
    gqa,
    mmbench,
    mme,
    mmvet,
    pope,
    scienceqa,
    seed,
    textvqa,
    vizwiz,
    vqav2,
)
from basic_lite.evaluation.tasks.mmbench import PROMPTS as MMBENCH_STYLES
from basic_lite.evaluation.tasks.mmbench import ROTATION

Predictions = Mapping[int | str, str]


def _itself(question: Question) -> Hashable:
    return question.id


def _rotations(question: Question) -> Hashable:
    return question.fields["index"] % ROTATION


def _picture(question: Question) -> Hashable:
    return question.fields["picture"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        hub: Data set on the hub that holds it.
        split: The split that is asked unless another is named.
        sizes: Split -> the numbers of rows that published versions have.
        max_new_tokens: Length limit of LLaVA's decoding.
        styles: Prompt styles; the first is LLaVA's.
        scorers: Scoring rules; the first gives the number that LLaVA reports.
        read: `(source, style) -> questions`.
        score: `(questions, predictions, scorer) -> score`.
        export: `(questions, predictions, path) -> path`; `None` where nothing is handed in.
        export_name: Name of the submission file (MME: folder).
        unit: What a limit counts: a question, with all its rotations, or a picture with all its questions.
        units: Split -> number of units, where it differs from the rows.
    """

    hub: str
    split: str
    sizes: Mapping[str, tuple[int, ...]]
    max_new_tokens: int
    styles: tuple[str, ...]
    scorers: tuple[str, ...]
    read: Callable[[Source, str], list[Question]]
    score: Callable[[Sequence[Question], Predictions, str], Score]
    export: Callable[[Sequence[Question], Predictions, Path], Path] | None = None
    export_name: str = "submission.json"
    unit: Callable[[Question], Hashable] = _itself
    units: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_rotations(self) -> bool:
        """Whether questions come with rotated options, as several rows."""
        return self.unit is _rotations


# fmt: off
BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": Benchmark(
        "lmms-lab/VQAv2", "val", {"val": (214_354,), "test-dev": (107_394,), "test": (447_793,)},
        128, tuple(vqav2.STYLES), vqav2.SCORERS, vqav2.read, vqav2.score, vqav2.export,
    ),
    "gqa": Benchmark(
        "lmms-lab/GQA", "testdev", {"testdev": (12_578,)},
        128, tuple(gqa.STYLES), gqa.SCORERS, gqa.read, gqa.score, gqa.export,
    ),
    "scienceqa": Benchmark(
        "lmms-lab/ScienceQA", "test-img",
        {"test-img": (2_017,), "test": (4_241,), "val-img": (2_097,), "val": (4_241,)},
        1024, tuple(scienceqa.STYLES), scienceqa.SCORERS, scienceqa.read, scienceqa.score,
    ),
    "textvqa": Benchmark(
        "lmms-lab/textvqa", "val", {"val": (5_000,), "test": (5_734,)},
        128, tuple(textvqa.STYLES), textvqa.SCORERS, textvqa.read, textvqa.score, textvqa.export,
    ),
    "mmbench": Benchmark(
        "lmms-lab/MMBench", "dev", {"dev": (4_329, 4_377), "test": (6_666, 6_718)},
        1024, tuple(MMBENCH_STYLES), mmbench.SCORERS, mmbench.read, mmbench.score, mmbench.export,
        "submission.xlsx", _rotations, {"dev": 1_164},
    ),
    "mmbench-cn": Benchmark(
        "lmms-lab/MMBench", "dev", {"dev": (4_329,), "test": (6_666,)},
        1024, tuple(MMBENCH_STYLES), mmbench.SCORERS_CN, partial(mmbench.read, language="cn"), mmbench.score,
        mmbench.export, "submission.xlsx", _rotations, {"dev": 1_164},
    ),
    "mmvet": Benchmark(
        "lmms-lab/MMVet", "test", {"test": (218,)},
        1024, tuple(mmvet.STYLES), mmvet.SCORERS, mmvet.read, mmvet.score, mmvet.export,
    ),
    "vizwiz": Benchmark(
        "lmms-lab/VizWiz-VQA", "val", {"val": (4_319,), "test": (8_000,)},
        128, tuple(vizwiz.STYLES), vizwiz.SCORERS, vizwiz.read, vizwiz.score, vizwiz.export,
    ),
    "pope": Benchmark(
        "lmms-lab/POPE", "test", {"test": (9_000, 8_910)},
        128, tuple(pope.STYLES), pope.SCORERS, pope.read, pope.score,
    ),
    "mme": Benchmark(
        "lmms-lab/MME", "test", {"test": (2_374,)},
        128, tuple(mme.STYLES), mme.SCORERS, mme.read, mme.score, mme.export,
        "submission", _picture,
    ),
    "seed": Benchmark(
        "lmms-lab/SEED-Bench", "test", {"test": (17_990,), "image": (14_233,), "video": (3_757,)},
        128, tuple(seed.STYLES), seed.SCORERS, seed.read, seed.score, seed.export, "submission.jsonl",
    ),
}
# fmt: on

PAPER = ("vqav2", "gqa", "scienceqa", "textvqa", "mmbench", "mmbench-cn", "mmvet", "vizwiz")
"""The eight that BASIC reports."""

_ALIASES = {
    "mmbench-en": "mmbench",
    "mmb": "mmbench",
    "mmb-cn": "mmbench-cn",
    "mm-vet": "mmvet",
    "sqa": "scienceqa",
    "scienceqa-img": "scienceqa",
    "seed-bench": "seed",
    "vizwiz-vqa": "vizwiz",
}


def name_of(name: str) -> str:
    """Return a benchmark's name in the table; case, `_` and common other names do not matter.

    Raises:
        ValueError: If the table has no such benchmark.
    """
    plain = name.lower().replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    if plain not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS)}.")
    return plain


def scorer_of(name: str, scorer: str | None) -> str:
    """Return the scorer to use: the one named, or the benchmark's first.

    Raises:
        ValueError: If the benchmark has no such scorer.
    """
    known = BENCHMARKS[name_of(name)].scorers
    if scorer is not None and scorer not in known:
        raise ValueError(f"Unknown scorer {scorer!r} of {name_of(name)}: use one of {', '.join(known)}.")
    return scorer or known[0]


def load(
    name: str,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    prompt_style: str = "llava",
    limit: int | None = None,
    with_images: bool = True,
) -> list[Question]:
    """Read a benchmark's questions.

    Args:
        name: In the table.
        data: A folder or file with the original files, a folder of Parquet files, or a hub id; `None` takes
            the table's hub id.
        split: `None` takes the table's.
        images: Folder of the pictures; `None` looks beside the data.
        prompt_style: A style of the benchmark.
        limit: Keep this many (for MMBench questions with all rotations, for MME pictures); the size is then
            not checked.
        with_images: False reads no pictures, which is enough for scoring and exporting.

    Raises:
        ValueError: In one line, if anything about the name, the split, the data or its size is wrong.
    """
    name = name_of(name)
    benchmark = BENCHMARKS[name]
    split = split or benchmark.split
    if split not in benchmark.sizes:
        raise ValueError(f"{name} has no split {split!r}: use one of {', '.join(benchmark.sizes)}.")
    if prompt_style not in benchmark.styles:
        raise ValueError(
            f"Unknown prompt style {prompt_style!r} of {name}: use one of {', '.join(benchmark.styles)}."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"A limit of {limit} leaves no question: use 1 or more.")
    folder = Path(images) if images else None
    questions = benchmark.read(Source(data or benchmark.hub, split, folder, with_images), prompt_style)
    if limit is None:
        check_size(name, split, questions)
        return questions
    units = list(dict.fromkeys(benchmark.unit(question) for question in questions))[:limit]
    kept = set(units)
    return [question for question in questions if benchmark.unit(question) in kept]


def check_size(name: str, split: str, questions: Sequence[Question]) -> None:
    """Check that a split is whole, as a part of it gives another number under the same name.

    Raises:
        ValueError: If the number of rows, or of questions behind their rotations, is no published one.
    """
    benchmark = BENCHMARKS[name_of(name)]
    allowed = benchmark.sizes[split]
    advice = (
        "it is cut off, another version, or a benchmark of your own; --limit N scores a part of it, "
        f"--any-size all of it, but not as a {name} number"
    )
    if len(questions) not in allowed:
        published = " or ".join(f"{size:,}" for size in allowed)
        raise ValueError(f"{name} {split} has {len(questions):,} rows and not {published}: {advice}.")
    units = len({benchmark.unit(question) for question in questions})
    if units != benchmark.units.get(split, units):
        raise ValueError(
            f"{name} {split} has {units:,} questions behind its rotations and not "
            f"{benchmark.units[split]:,}: {advice}."
        )
