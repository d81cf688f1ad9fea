"""The benchmarks by name: every module of `tasks/` says its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from shutil import which

from basic_lite.evaluation import tasks
from basic_lite.evaluation.benchmark import Benchmark
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.question import Question


def _benchmarks() -> dict[str, Benchmark]:
    """Collect `BENCHMARK`, or `BENCHMARKS` where a module has several, from all modules of `tasks/`."""
    modules = (import_module(f"{tasks.__name__}.{entry.name}") for entry in iter_modules(tasks.__path__))
    return {
        benchmark.name: benchmark
        for module in modules
        for benchmark in getattr(module, "BENCHMARKS", None) or (module.BENCHMARK,)
    }


BENCHMARKS = _benchmarks()

PAPER = ("vqav2", "gqa", "scienceqa", "textvqa", "mmbench", "mmbench-cn", "mmvet", "vizwiz")
"""The eight that BASIC reports."""

_ALIASES = {alias: name for name, benchmark in BENCHMARKS.items() for alias in benchmark.aliases}


def name_of(name: str) -> str:
    plain = name.strip().lower().replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    if plain not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS)}.")
    return plain


def scorer_of(name: str, scorer: str | None) -> str:
    """Return the scorer that is named, or the benchmark's first; what it needs must be installed."""
    benchmark = BENCHMARKS[name_of(name)]
    scorer = scorer or benchmark.scorers[0]
    if scorer not in benchmark.scorers:
        known = ", ".join(benchmark.scorers)
        raise ValueError(f"Unknown scorer {scorer!r} of {benchmark.name}: use one of {known}.")
    package, program = benchmark.programs.get(scorer, ("sys", ""))
    if find_spec(package) is None or (program and which(program) is None):
        raise ValueError(
            f"--scorer {scorer} needs {package} and {program}: pip install {package}, and install {program}."
        )
    return scorer


def source_of(
    name: str,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    with_images: bool = True,
) -> Source:
    """Return where a benchmark's data is; arguments as of `load`."""
    benchmark = BENCHMARKS[name_of(name)]
    split = split or benchmark.split
    if split not in benchmark.sizes:
        raise ValueError(f"{benchmark.name} has no split {split!r}: use one of {', '.join(benchmark.sizes)}.")
    if data is None and not benchmark.hub:
        raise ValueError(f"{benchmark.name} has no data of its own: give a file or folder with --data.")
    return Source(data or f"hf:{benchmark.hub}", split, Path(images) if images else None, with_images)


def load(
    name: str,  # in the table
    # A folder or file with the original files, a folder of Parquet files, or a hub id (`hf:owner/name`;
    # `lmms-lab/name` without `hf:`); `None` takes the table's hub id
    data: str | Path | None = None,
    *,
    split: str | None = None,  # `None` takes the table's
    images: str | Path | None = None,  # folder of the pictures; `None` looks beside the data
    prompt_style: str = "llava",
    limit: int | None = None,  # keep this many units, see `sample`; the size is then not checked
    with_images: bool = True,  # False reads no pictures, which is enough for scoring and exporting
) -> list[Question]:
    benchmark = BENCHMARKS[name_of(name)]
    source = source_of(name, data, split=split, images=images, with_images=with_images)
    if limit is not None and limit < 1:
        raise ValueError(f"A limit of {limit} leaves no question: use 1 or more.")
    questions = benchmark.read(source, prompt_style)
    if limit is None:
        benchmark.check_size(source.split, questions)
        return questions
    return sample(questions, benchmark.unit, limit)


def sample(questions: Sequence[Question], unit: Callable[[Question], Hashable], limit: int) -> list[Question]:
    """Draw whole units by chance, from each category its share; the same ones on every machine.

    It goes by the units' names alone, and a larger sample holds a smaller one.
    """
    category: dict[Hashable, str] = {}
    for question in questions:
        category.setdefault(unit(question), question.category)
    drawn = sorted(category, key=lambda name: sha256(str(name).encode()).digest())
    size, seen = Counter(category.values()), Counter[str]()
    place: dict[Hashable, float] = {}
    for name in drawn:  # the n-th of a category of m stands at (n - 1/2) / m of the whole
        seen[category[name]] += 1
        place[name] = (seen[category[name]] - 0.5) / size[category[name]]
    kept = set(sorted(drawn, key=lambda name: place[name])[:limit])
    return [question for question in questions if unit(question) in kept]
