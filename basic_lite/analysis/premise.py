"""An examination as a table for the terminal, and as a page with a plot."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from basic_lite import pages
from basic_lite.data.hub import is_stored
from basic_lite.data.readers import open_rows
from basic_lite.data.world import parts
from basic_lite.data.world.grammar import caption
from basic_lite.data.world.lexicon import LANGUAGES
from basic_lite.data.world.scenes import sample_scene
from basic_lite.files import file_hash, one_line, versions, write_text
from basic_lite.method.premise import Examined, Figures, examine
from basic_lite.method.types import Weighting
from basic_lite.models import repository, zoo
from basic_lite.models.checkpoint import identity
from basic_lite.models.llava import Sources, load_decoder_alone, read_config

COLUMNS: dict[str, str] = {
    "own %": "own token nearest, %",
    "cosine": "cosine to own embedding",
    "top 3 %": "energy in three coordinates, %",
    "mean %": "common mean, % of the norm",
    "norm": "norm",
    "entropy": "entropy of softmax(h Eᵀ)",
    "map: own %": "translated: own token nearest, %",
    "map: cosine": "translated: cosine",
}
"""Short names, for a terminal, and long ones."""


def lines(result: Examined) -> Iterator[tuple[str, list[str]]]:
    """Yield one line per layer and per target: its name and its cells, one for each of `COLUMNS`."""
    maps = result.fit.get("layers", [])
    for layer, figures in result.measured.layers.items():
        translated = ["", ""]
        if 0 < layer <= len(maps):
            translated = [f"{100 * maps[layer - 1]['own']:.1f}", f"{maps[layer - 1]['cosine']:.2f}"]
        yield "embeddings" if layer == 0 else f"layer {layer}", _cells(figures) + translated
    for kind, by_layers in result.measured.targets.items():
        for k, figures in sorted(by_layers.items(), reverse=True):
            yield f"{kind}, k = {k}", [*_cells(figures), "", ""]


def _cells(figures: Figures) -> list[str]:
    shares = [f"{100 * share:.0f}" for share in (figures.energy, figures.common)]
    names = [f"{100 * figures.own:.1f}", f"{figures.cosine:.2f}"]
    return [*names, *shares, f"{figures.norm:.3g}", f"{figures.entropy:.2f}"]


def table(result: Examined) -> Table:
    shown = Table("", *COLUMNS, box=None, header_style="dim", padding=(0, 1, 0, 0))
    shown.columns[0].no_wrap = True
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, cells in lines(result):
        shown.add_row(name, *cells)
    return shown


def summary(result: Examined) -> str:
    """Return in one line how well the model predicts the text."""
    measured = result.measured
    return (
        f"{measured.tokens:,} held-out tokens: {measured.loss:.2f} nats each for the model, "
        f"{measured.unigram:.2f} by the frequencies of tokens, "
        f"{math.log(measured.vocabulary):.2f} for a guess"
    )


def plot(result: Examined) -> str:
    """Return four small plots over the layers as SVG."""
    measured = result.measured
    layers = [layer for layer in measured.layers if layer > 0]
    figures = [measured.layers[layer] for layer in layers]
    maps = result.fit.get("layers", [])
    fitted = range(1, len(maps) + 1)
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    own, cosine, constant, entropy = figure.subplots(1, 4)
    own.plot(layers, [100 * layer.own for layer in figures], color="#d1495b", label="raw")
    cosine.plot(layers, [layer.cosine for layer in figures], color="#d1495b")
    if maps:
        own.plot(fitted, [100 * layer["own"] for layer in maps], color="#1b7f5c", label="translated")
        cosine.plot(fitted, [layer["cosine"] for layer in maps], color="#1b7f5c")
    own.set_ylim(-3, 103)
    cosine.set_ylim(-0.25, 1.03)
    constant.plot(layers, [100 * layer.common for layer in figures], color="#30638e", label="common mean")
    constant.plot(
        layers, [100 * layer.energy for layer in figures], color="#edae49", label="three coordinates"
    )
    constant.set_ylim(-3, 103)
    entropy.plot(layers, [layer.entropy for layer in figures], color="#30638e", label="softmax(h Eᵀ)")
    entropy.axhline(math.log(measured.vocabulary), color="#555", linewidth=0.8, linestyle=":", label="log V")
    entropy.set_ylim(bottom=0)
    titles = ("own token nearest, %", "cosine to own embedding", "share of the states, %", "entropy, nats")
    for axes, title in zip((own, cosine, constant, entropy), titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        pages.quiet_axes(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.supxlabel("layer", fontsize=9)
    return pages.as_svg(figure)


def write_page(path: Path, result: Examined, model: str) -> None:
    values = {"model": model, "verdict": result.verdict, "summary": summary(result)}
    values |= {"plot": plot(result), "columns": COLUMNS.values(), "lines": lines(result)}
    pages.write(path, "analysis/premise.html", **values)


@dataclass(frozen=True)
class Asked:
    text: Path | None  # file of text; `None` for what is shipped
    tokens: int  # held-out tokens to read
    layers: int | None  # the largest k; `None` for half
    weighting: Weighting  # of layers 1..k
    random_weights: bool  # take the configuration alone


def check(llms: Sequence[str], records: Path | None) -> None:
    """Raise ValueError, before any weight is read, for an LLM of no family or a damaged file of records."""
    for llm in llms:
        zoo.family_of(read_config(llm, "language model").model_type, llm)
    if records is not None and records.is_file():
        try:
            for line in records.read_text(encoding="utf-8").splitlines():
                json.loads(line)["model"]
        except (ValueError, KeyError, TypeError) as error:
            reason = one_line(error, 80)
            raise ValueError(f"--json {records} holds something else than such figures: {reason}") from error


def run(sources: Sources, device: str, asked: Asked, progress: Callable[[str], None]) -> Examined:
    texts = texts_of(asked.text, sources.llm)
    causal, tokenizer = load(sources, device, asked.random_weights)
    return examine(
        causal.model,
        causal.lm_head,
        tokenizer,
        texts,
        layers=asked.layers,
        weighting=asked.weighting,
        read=asked.tokens,
        progress=progress,
    )


def record(name: str, sources: Sources, asked: Asked, result: Examined) -> dict[str, Any]:
    """Return everything that is known of an examination, for JSON; it means the same on another machine.

    A folder is identified by a hash of its configuration and of its weights' names and sizes, a hub id by its
    commit, and text by its hash.
    """
    config, text = read_config(sources.llm, "language model"), asked.text or SENTENCES
    shipped = "drawn" if sources.llm in parts.EMBEDDED else "shipped"
    typed = str(asked.text or shipped)
    return {
        "model": f"{name}{' with random weights' if asked.random_weights else ''}",
        **identity(sources.llm, config),
        "bits": 16 if asked.random_weights else sources.bits,
        "dtype": str(sources.dtype).removeprefix("torch."),
        "text": text.name if asked.text and text.is_file() else typed,
        "text_sha256": file_hash(text) if text.is_file() and typed != "drawn" else None,
        "weighting": asked.weighting,
        "model_type": config.model_type,
        **result.json(),
        "versions": versions(),
    }


def append(path: Path, content: Mapping[str, Any]) -> None:
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    write_text(path, "".join(f"{line}\n" for line in [*before, json.dumps(content)]))


def overview(results: Mapping[str, Examined]) -> Table:
    """Return a line for each LLM: the weighted target at the largest k, and the verdict."""
    heads = ("k", "nats: model\n/ frequencies", "own %:\nraw", "\ncentred", "trans-\nlated", "cosine")
    made = Table("LLM", *heads, "premise", "--target", box=None, header_style="dim", padding=(0, 1, 0, 0))
    made.columns[0].overflow = "fold"  # a name stays whole in a narrow terminal, on several lines
    for column in made.columns[1:]:
        column.no_wrap = True
    for name, result in results.items():
        measured, verdict, targets = result.measured, result.verdict, result.measured.targets
        k = max(targets["raw"])
        own = [
            f"{100 * targets[kind][k].own:.1f}" if k in targets.get(kind, {}) else ""
            for kind in ("raw", "centred", "translated")
        ]
        nats, cosine = f"{measured.loss:.2f} / {measured.unigram:.2f}", f"{targets['raw'][k].cosine:.2f}"
        made.add_row(name, str(k), nats, *own, cosine, verdict.case, verdict.target or "none")
    return made


SENTENCES = Path(__file__).with_name("sentences.txt")
"""Plain English sentences of the kind that captions are, the default text."""


def load(
    sources: Sources, device: str, random_weights: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model with its head, or of its configuration with random weights; and its tokenizer."""
    config = read_config(sources.llm, "language model")
    zoo.family_of(config.model_type, sources.llm)
    tokenizer = repository.read_tokenizer(sources.llm)
    if not random_weights:
        return load_decoder_alone(sources, device).requires_grad_(False), tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        causal = AutoModelForCausalLM.from_config(config, dtype=sources.dtype)
    return causal.to(device).requires_grad_(False), tokenizer


def texts_of(text: Path | None, llm: str) -> Iterable[str]:
    """Return text: a file's, captions of the embedded world for its decoder, or the shipped sentences.

    The file is training data in any layout that is trained on, or plain text, a line each.
    """
    if text is None:
        return _captions() if llm in parts.EMBEDDED else _lines(SENTENCES)
    if text.suffix in (".json", ".jsonl") or is_stored(text):
        return open_rows(text).answers()
    return _lines(text)


def _lines(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--text {path} cannot be read as text: {error}") from error
    return (line.strip() for line in lines if line.strip())


def _captions(count: int = 20_000) -> Iterator[str]:
    """Yield captions of drawn scenes in both languages: what the embedded decoder can read."""
    rng = random.Random("premise")
    for number in range(count):
        yield caption(sample_scene(rng), LANGUAGES[number % len(LANGUAGES)], rng)
