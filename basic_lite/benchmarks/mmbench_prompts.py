"""MMBench's prompts: LLaVA's, lmms-eval's and VLMEvalKit's.

Sources: LLaVA `llava/eval/model_vqa_mmbench.py`, lmms-eval `tasks/mmbench/en_utils.py` and `mmbench_cn.yaml`,
VLMEvalKit `dataset/image_mcq.py` and `vlm/llava/llava.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from basic_lite.benchmarks.prompts import LETTER, LETTER_CN, LETTER_CN_LMMS
from basic_lite.scoring.circular import LETTERS, choices_of, is_missing


def _options_until_gap(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield "A. text" and so on, up to the first missing option."""
    for letter in LETTERS:
        if is_missing(row.get(letter)):
            return
        yield f"{letter}. {row[letter]}"


def _all_options(row: Mapping[str, Any]) -> list[str]:
    return [f"{letter}. {text}" for letter, text in choices_of(row).items()]


def _hint(row: Mapping[str, Any]) -> str:
    return "" if is_missing(row.get("hint")) else str(row["hint"])


def llava_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return LLaVA-1.5's user turn: hint, question, options, and the request for a letter, one a line."""
    hint = _hint(row)
    suffix = LETTER_CN if language == "cn" else LETTER
    return "\n".join([*([hint] if hint else []), str(row["question"]), *_options_until_gap(row), suffix])


def lmms_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return lmms-eval's user turn; its Chinese task has a heading and a suffix of its own."""
    hint = _hint(row)
    heading, suffix = (
        ("有如下几个选项：", LETTER_CN_LMMS) if language == "cn" else ("There are several options:", LETTER)
    )
    options = "\n".join(_all_options(row))
    return f"{hint + ' ' if hint else ''}{row['question']} {heading}\n{options}\n\n{suffix}"


def vlmevalkit_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return VLMEvalKit's default user turn, the same in both languages; a space and a newline end it."""
    hint = _hint(row)
    lines = [
        *([f"Hint: {hint}"] if hint else []),
        f"Question: {row['question']}",
        "Options:",
        *_all_options(row),
    ]
    return "\n".join([*lines, "Please select the correct answer from the options above. \n"])


def vlmevalkit_llava_prompt(row: Mapping[str, Any], language: str) -> str:
    """Return the turn of VLMEvalKit's LLaVA wrapper: the suffix follows the script of the text."""
    hint = _hint(row)
    text = "\n".join([*([hint] if hint else []), str(row["question"]), *_all_options(row)])
    return f"{text}\n{LETTER_CN if re.search('[一-鿿]', text) else LETTER}"


PROMPTS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "llava": llava_prompt,
    "lmms": lmms_prompt,
    "vlmevalkit": vlmevalkit_prompt,
    "vlmevalkit_llava": vlmevalkit_llava_prompt,
}
