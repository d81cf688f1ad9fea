"""What `analyze premise` runs on: a language model without a tower, and text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from basic_lite import repository, zoo
from basic_lite.data.answers import answers_of
from basic_lite.data.readers import open_rows
from basic_lite.data.stored import is_stored
from basic_lite.demo.grammar import caption
from basic_lite.demo.lexicon import LANGUAGES
from basic_lite.demo.scenes import sample_scene
from basic_lite.modeling import Sources, load_decoder_alone, read_config

SENTENCES = Path(__file__).with_name("sentences.txt")
"""Plain English sentences of the kind that captions are, for whoever gives no text."""


def load(
    sources: Sources, device: str, random_weights: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model with its head, and its tokenizer.

    Args:
        sources: which one, and how it is held.
        device: where it goes.
        random_weights: take its configuration alone; the weights are transformers' own initialisation, not
            quantised.

    Raises:
        ValueError: In one line, if the model cannot be loaded or is of no supported family.
    """
    config = read_config(sources.llm, "language model")
    zoo.family_of(config.model_type, sources.llm)
    tokenizer = repository.read_tokenizer(sources.llm)
    if not random_weights:
        return load_decoder_alone(sources, device).requires_grad_(False), tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        causal = AutoModelForCausalLM.from_config(config, dtype=sources.dtype)
    return causal.to(device).requires_grad_(False), tokenizer


def spoken(text: Path | None, llm: str) -> Iterable[str]:
    """Return text: a file's, captions of the embedded world for its decoder, or the shipped sentences.

    Args:
        text: training data in any layout that is trained on, or plain text, a line each; `None` for what is
            shipped.
        llm: the decoder's name or folder.

    Raises:
        ValueError: In one line, if the file is missing or no text.
    """
    if text is None:
        return _captions() if llm in zoo.EMBEDDED else _lines(SENTENCES)
    if text.suffix in (".json", ".jsonl") or is_stored(text):
        return answers_of(open_rows(text))
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
