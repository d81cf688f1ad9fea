"""The real scorers beside ours, on random answers: for whoever has their checkouts.

`BASIC_LITE_ORACLES` names a folder that holds `LLaVA` and `VLMEvalKit`. Stored tables cover everyone else.
"""

import importlib.util
import os
import random
import sys
import types
from pathlib import Path

import pytest

from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.open_answers import normalize

pytestmark = pytest.mark.skipif(
    "BASIC_LITE_ORACLES" not in os.environ, reason="BASIC_LITE_ORACLES names no checkouts"
)
PIECES = [
    *";/[]\"{}()=+\\_-><@`,?!.:'%#\n\t",
    "a",
    "the",
    "none",
    "dont",
    "3,4",
    "'s",
    "x",
    "Yes",
    "中文",
    " ",
    " ",
]
WORDS = [
    *(
        "A",
        "B",
        "D.",
        "(C)",
        "Z",
        "the answer is",
        "The correct answer is",
        "**B**",
        "red",
        "blue",
        "no",
        "E",
    ),
    *("Cannot determine the answer", "答案是", "B。", "is", "it", ",", "\n"),
]


def original(path, package=None):
    """Load one file of a checkout; `package` stands in for what it imports from beside itself."""
    file = Path(os.environ["BASIC_LITE_ORACLES"]) / path
    if not file.is_file():
        pytest.skip(f"no {file}")
    name = f"{package}.utils.original" if package else "original"
    if package:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[f"{package}.utils"] = types.ModuleType(f"{package}.utils")
        sys.modules[f"{package}.smp"] = types.ModuleType(f"{package}.smp")
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(pieces, glue, most):
    generator = random.Random(0)
    return [glue.join(generator.choices(pieces, k=generator.randint(1, most))) for _ in range(1_000)]


def test_m4c_equals_llavas():
    processor = original("LLaVA/llava/eval/m4c_evaluator.py").EvalAIAnswerProcessor()
    for text in texts(PIECES, "", 12):
        assert normalize(text, "m4c") == processor(text), text


def test_exact_matching_equals_vlmevalkits(monkeypatch):
    monkeypatch.delenv("VERBOSE", raising=False)
    can_infer = original("VLMEvalKit/vlmeval/utils/matching_util.py", "vlmeval_beside").can_infer
    for text in texts(WORDS, " ", 8):
        for choices in ({"A": "red", "B": "blue", "C": "green", "D": "yellow"}, {"A": "yes", "B": "no"}):
            assert extract_option(text, choices, "exact_matching") == (
                can_infer(text, dict(choices)) or None
            ), text
