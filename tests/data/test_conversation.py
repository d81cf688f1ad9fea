"""Golden ids and labels per LLM family, and the promises that hold for every template and tokenizer."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from basic_lite.data.conversation import (
    IGNORE_INDEX,
    IMAGE,
    Turn,
    check_tokenizer,
    choose_template,
    encode,
    encode_prompt,
    render,
    segments,
    stop_ids,
)
from basic_lite.data.templates import TEMPLATES

VICUNA = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "vicuna" / "tokenizer.json"
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}

# ------------------------------------------------------------------------------------------ tokenizers


def vicuna(change: Callable[[dict[str, Any]], None] | None = None) -> PreTrainedTokenizerFast:
    """The real LLaMA/Vicuna tokenizer; `change` edits its specification."""
    text = VICUNA.read_text(encoding="utf-8")
    if change is not None:
        specification = json.loads(text)
        change(specification)
        text = json.dumps(specification)
    backend = Tokenizer.from_str(text)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **NAMES)


def llama() -> PreTrainedTokenizerFast:
    """The same vocabulary as `legacy=False` tokenizers use it: "▁" only at the start of the string."""

    def change(specification: dict[str, Any]) -> None:
        specification["normalizer"] = None
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        specification["pre_tokenizer"] = metaspace

    return vicuna(change)


PHI3_ADDED = (
    "<|endoftext|> <|assistant|> <|placeholder1|> <|placeholder2|> <|placeholder3|> <|placeholder4|> "
    "<|system|> <|end|> <|placeholder5|> <|placeholder6|> <|user|>"
).split()


def phi3(rstrip: bool = True) -> PreTrainedTokenizerFast:
    """Phi-3-mini-4k: the LLaMA-2 vocabulary and eleven tokens, all but one of which swallow white space."""
    tokenizer = vicuna()
    tokenizer.add_tokens([AddedToken("</s>", special=False, normalized=False, rstrip=rstrip)])
    tokenizer.add_tokens(
        [
            AddedToken(text, special=True, normalized=False, rstrip=rstrip and number > 0)
            for number, text in enumerate(PHI3_ADDED)
        ],
        special_tokens=True,
    )
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def gemma() -> PreTrainedTokenizerFast:
    """Gemma's kind of tokenizer: no prefix, "▁" for a space, byte fallback, runs of newlines as one token.

    Special ids are the real ones; the vocabulary is literal, so ids can be counted: newlines from 108,
    "▁" from 110, bytes from 112, printable ASCII from 368 ("!"), the merges from 462.
    """
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"]
    texts += [f"<unused{number}>" for number in range(99)] + ["<start_of_turn>", "<end_of_turn>"]
    added = [*texts, "\n\n"]
    texts += ["\n", "\n\n", "▁", "▁▁"] + [f"<0x{byte:02X}>" for byte in range(256)]
    texts += [chr(code) for code in range(33, 127)]
    pairs = "\n \n|▁ ▁|u s|e r|us er|m o|d e|de l|mo del|▁ A"
    merges = [tuple(pair.split(" ")) for pair in pairs.split("|")]
    texts += [a + b for a, b in merges if a + b not in texts]
    vocabulary = {text: number for number, text in enumerate(texts)}
    assert len(vocabulary) == len(texts) == 470
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bos = ("<bos>", vocabulary["<bos>"])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    # As in the real one: unused rows and newline runs are added tokens, but not special ones.
    special = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}
    for text in added:
        backend.add_tokens([AddedToken(text, special=text in special, normalized=False)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def smollm() -> PreTrainedTokenizerFast:
    """A byte-level BPE with SmolLM2's special tokens, which adds no BOS.

    Literal as well: 3 special tokens, the 256 characters that stand for bytes in code point order, and the
    merges from 259 ("us").
    """
    pairs = "u s|e r|us er|a s|s i|s t|a n|as si|st an|assi stan|assistan t|Ċ Ċ|Ġ A|Ċ Ġ|Ġ Ġ|i n"
    merges = [tuple(pair.split(" ")) for pair in pairs.split("|")]
    texts = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    texts += [a + b for a, b in merges]
    backend = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(texts[:3])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def mistral3() -> PreTrainedTokenizerFast:
    """Mistral 0.3's kind: brackets are control tokens of a sentencepiece vocabulary."""
    tokenizer = vicuna()
    tokens = [AddedToken(text, special=True, normalized=False) for text in ("[INST]", "[/INST]")]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "vicuna": vicuna,
    "llama": llama,
    "phi3": phi3,
    "phi3_keeping_newlines": lambda: phi3(rstrip=False),
    "gemma": gemma,
    "smollm": smollm,
    "mistral3": mistral3,
}


@lru_cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer with `<image>` as a special token, as Hugging Face's LLaVA processors have it."""
    tokenizer = MAKERS[name]()
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return tokenizer


# The vocabulary of Mistral-7B v0.1 is not at hand; its templates hold no token that LLaMA's lacks.
PAIRS = [
    ("plain", "vicuna"),
    ("plain", "llama"),
    ("plain", "phi3"),
    ("plain", "gemma"),
    ("plain", "smollm"),
    ("vicuna_v1", "vicuna"),
    ("vicuna_v1", "llama"),
    ("mistral_instruct", "vicuna"),
    ("mistral_instruct", "llama"),
    ("mistral_official", "vicuna"),
    ("mistral_official", "llama"),
    ("phi3_instruct", "phi3"),
    ("phi3_instruct", "phi3_keeping_newlines"),
    ("phi3", "phi3"),
    ("phi3", "phi3_keeping_newlines"),
    ("gemma_instruct", "gemma"),
    ("gemma_vicuna", "gemma"),
    ("chatml", "smollm"),
    ("mistral_v3", "mistral3"),
]
every_pair = pytest.mark.parametrize(("template", "name"), PAIRS)

ONE: list[Turn] = [("user", "<image>\nQ1"), ("assistant", "A1")]
THREE: list[Turn] = [*ONE, ("user", "Q2"), ("assistant", "A2"), ("user", "Q3"), ("assistant", "A3")]
TEXT: list[Turn] = [("user", "Q1"), ("assistant", "A1")]

# ---------------------------------------------------------------------------------------------- golden
# Spans of `(ids, loss)`, each checked token by token against the vocabulary. IMG stands for the image token.

IMG = 9999
SYS = [
    *(319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889),  # ▁A ▁chat ▁between ... .
    *(450, 20255, 4076, 8444, 29892, 13173, 29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155),
    29889,
]
USER, ASSISTANT = [3148, 1001, 29901], [319, 1799, 9047, 13566, 29901]  # ▁US ER : / ▁A SS IST ANT :
INST, END_INST = [518, 25580, 29962], [518, 29914, 25580, 29962]  # ▁[ INST ] / ▁[ / INST ]
PHI3_SYS = [
    32006,
    887,
    526,
    263,
    8444,
    319,
    29902,
    20255,
    29889,
    32007,
]  # ▁You ▁are ▁a ▁helpful ▁A I ▁assistant .

GOLDEN = {
    ("plain", "vicuna", "one"): [
        ([1, IMG, IMG], False),
        ([319, 29896, 13], True),  # ▁A 1 \n
    ],
    ("vicuna_v1", "vicuna", "one"): [
        # 29871 is the "▁" of "USER: " and, behind the image, of the new text "\nQ1", as in LLaVA.
        ([1, *SYS, *USER, 29871, IMG, IMG, 29871, 13, 29984, 29896, *ASSISTANT], False),
        ([319, 29896, 2], True),  # ▁A 1 </s>
    ],
    ("vicuna_v1", "vicuna", "three"): [
        ([1, *SYS, *USER, 29871, IMG, IMG, 29871, 13, 29984, 29896, *ASSISTANT], False),
        ([319, 29896, 2], True),
        ([*USER, 660, 29906, *ASSISTANT], False),  # ▁US ER : ▁Q 2 ▁A SS IST ANT :
        ([319, 29906, 2], True),
        ([*USER, 660, 29941, *ASSISTANT], False),
        ([319, 29941, 2], True),
    ],
    ("vicuna_v1", "vicuna", "text"): [
        ([1, *SYS, *USER, 660, 29896, *ASSISTANT], False),
        ([319, 29896, 2], True),
    ],
    ("vicuna_v1", "llama", "three"): [  # no "▁" behind <image> and </s>: 11889 is USER
        ([1, *SYS, *USER, 29871, IMG, IMG, 13, 29984, 29896, *ASSISTANT], False),
        ([319, 29896, 2], True),
        ([11889, 29901, 660, 29906, *ASSISTANT], False),
        ([319, 29906, 2], True),
        ([11889, 29901, 660, 29941, *ASSISTANT], False),
        ([319, 29941, 2], True),
    ],
    ("mistral_instruct", "vicuna", "one"): [
        ([1, *INST, 29871, IMG, IMG, 29871, 13, 29984, 29896, *END_INST], False),
        ([319, 29896, 29871, 2], True),  # ▁A 1 ▁ </s>
    ],
    ("mistral_instruct", "vicuna", "three"): [
        ([1, *INST, 29871, IMG, IMG, 29871, 13, 29984, 29896, *END_INST], False),
        ([319, 29896, 29871, 2], True),
        ([*INST, 660, 29906, *END_INST], False),
        ([319, 29906, 29871, 2], True),
        ([*INST, 660, 29941, *END_INST], False),
        ([319, 29941, 29871, 2], True),
    ],
    ("mistral_instruct", "vicuna", "text"): [
        ([1, *INST, 660, 29896, *END_INST], False),
        ([319, 29896, 29871, 2], True),
    ],
    ("mistral_official", "vicuna", "three"): [
        (
            [1, *INST, 29871, IMG, IMG, 29871, 13, 29984, 29896, 29961, 29914, 25580, 29962],
            False,
        ),  # [ / INST ]
        ([319, 29896, 2], True),
        ([*INST, 660, 29906, 29961, 29914, 25580, 29962], False),
        ([319, 29906, 2], True),
        ([*INST, 660, 29941, 29961, 29914, 25580, 29962], False),
        ([319, 29941, 2], True),
    ],
    # Phi-3's tokens swallow the newlines of the template, so answers start with "▁A" and no 13 is left.
    ("phi3_instruct", "phi3", "one"): [
        ([1, *PHI3_SYS, 32010, IMG, IMG, 29871, 13, 29984, 29896, 32007, 32001], False),
        ([319, 29896, 32007], True),
    ],
    ("phi3_instruct", "phi3", "three"): [
        ([1, *PHI3_SYS, 32010, IMG, IMG, 29871, 13, 29984, 29896, 32007, 32001], False),
        ([319, 29896, 32007], True),
        ([32010, 660, 29906, 32007, 32001], False),
        ([319, 29906, 32007], True),
        ([32010, 660, 29941, 32007, 32001], False),
        ([319, 29941, 32007], True),
    ],
    ("phi3_instruct", "phi3_keeping_newlines", "one"): [
        ([1, 32006, 29871, 13, 3492, *PHI3_SYS[2:], 29871, 13], False),  # ▁ \n You ▁are ... <|end|> ▁ \n
        ([32010, 29871, 13, IMG, IMG, 29871, 13, 29984, 29896, 32007, 29871, 13], False),
        ([32001, 29871, 13], False),
        ([29909, 29896, 32007], True),  # A 1 <|end|>
    ],
    ("phi3", "phi3", "text"): [
        ([1, 32010, 660, 29896, 32007, 32001], False),
        ([319, 29896, 32007], True),
    ],
    ("phi3", "phi3_keeping_newlines", "text"): [
        ([1, 32010, 29871, 13, 29984, 29896, 32007, 29871, 13, 32001, 29871, 13], False),
        ([29909, 29896, 32007], True),
        ([29871, 13], False),
    ],
    # 464 user, 468 model, 108 \n, 416 Q, 400 A, 384.. digits.
    ("plain", "gemma", "one"): [
        ([2, IMG, IMG], False),
        ([400, 384, 108], True),
    ],
    ("gemma_instruct", "gemma", "one"): [
        ([2, 106, 464, 108, IMG, IMG, 108, 416, 384, 107, 108, 106, 468, 108], False),
        ([400, 384, 107], True),
        ([108], False),
    ],
    ("gemma_instruct", "gemma", "three"): [
        ([2, 106, 464, 108, IMG, IMG, 108, 416, 384, 107, 108, 106, 468, 108], False),
        ([400, 384, 107], True),
        ([108, 106, 464, 108, 416, 385, 107, 108, 106, 468, 108], False),
        ([400, 385, 107], True),
        ([108, 106, 464, 108, 416, 386, 107, 108, 106, 468, 108], False),
        ([400, 386, 107], True),
        ([108], False),
    ],
    ("gemma_instruct", "gemma", "text"): [
        ([2, 106, 464, 108, 416, 384, 107, 108, 106, 468, 108], False),
        ([400, 384, 107], True),
        ([108], False),
    ],
    # 1 <|im_start|>, 2 <|im_end|>, 261 user, 269 assistant, 201 \n, 51 Q, 35 A, 19.. digits; no BOS.
    ("plain", "smollm", "one"): [
        ([IMG, IMG], False),
        ([35, 19, 201], True),
    ],
    ("chatml", "smollm", "one"): [
        ([1, 261, 201, IMG, IMG, 201, 51, 19, 2, 201, 1, 269, 201], False),
        ([35, 19, 2], True),
        ([201], False),
    ],
    ("chatml", "smollm", "three"): [
        ([1, 261, 201, IMG, IMG, 201, 51, 19, 2, 201, 1, 269, 201], False),
        ([35, 19, 2], True),
        ([201, 1, 261, 201, 51, 20, 2, 201, 1, 269, 201], False),
        ([35, 20, 2], True),
        ([201, 1, 261, 201, 51, 21, 2, 201, 1, 269, 201], False),
        ([35, 21, 2], True),
        ([201], False),
    ],
    ("chatml", "smollm", "text"): [
        ([1, 261, 201, 51, 19, 2, 201, 1, 269, 201], False),
        ([35, 19, 2], True),
        ([201], False),
    ],
}


@pytest.mark.parametrize(("template", "name", "turns"), GOLDEN)
def test_ids_and_labels_are_the_golden_ones(template: str, name: str, turns: str) -> None:
    tokenizer = tokenizer_of(name)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    spans = [([image if i == IMG else i for i in ids], loss) for ids, loss in GOLDEN[template, name, turns]]
    conversation = {"one": ONE, "three": THREE, "text": TEXT}[turns]
    encoded = encode(template, tokenizer, conversation, image_token_id=image, tokens_per_image=2)
    assert encoded.input_ids == [i for ids, _ in spans for i in ids]
    assert encoded.labels == [i if loss else IGNORE_INDEX for ids, loss in spans for i in ids]
    assert encoded.truncated == 0


def test_gemma_vicuna_ends_with_eos_and_loss() -> None:
    encoded = encode("gemma_vicuna", tokenizer_of("gemma"), ONE, image_token_id=7, tokens_per_image=2)
    # 7 7 \n Q 1 ▁A S S I S T A N T : | ▁A 1 <eos>
    tail = [7, 7, 108, 416, 384, 469, 418, 418, 408, 418, 419, 400, 413, 419, 393, 469, 384, 1]
    assert encoded.input_ids[:3] == [2, 400, 110]  # <bos> A ▁
    assert encoded.input_ids[-18:] == tail
    assert encoded.labels == [IGNORE_INDEX] * (len(encoded.input_ids) - 3) + [469, 384, 1]


def test_strings_are_those_of_the_original_code() -> None:
    two = THREE[:4]
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions."
    )
    strings = {
        "plain": "<image>A1\n",
        "vicuna_v1": f"{system} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
        "mistral_instruct": "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST] A2 </s>",
        "mistral_official": "[INST] <image>\nQ1[/INST] A1</s>[INST] Q2[/INST] A2</s>",
        "phi3_instruct": "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n<image>\nQ1<|end|>\n"
        "<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n<|assistant|>\nA2<|end|>",
        "phi3": "<|user|>\n<image>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n<|assistant|>\n"
        "A2<|end|>\n",
        "gemma_instruct": "<start_of_turn>user\n<image>\nQ1<end_of_turn>\n<start_of_turn>model\n"
        "A1<end_of_turn>\n<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\nA2<end_of_turn>\n",
        "gemma_vicuna": f"{system} USER: <image>\nQ1 ASSISTANT: A1<eos>USER: Q2 ASSISTANT: A2<eos>",
        "chatml": "<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
    }
    # The others follow the models' own templates: test_chat_templates.
    for template, string in strings.items():
        assert render(template, ONE if template == "plain" else two) == string
        assert render(TEMPLATES[template], ONE if template == "plain" else two) == string


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("plain", "<image>"),
        ("vicuna_v1", "Q1 ASSISTANT:"),
        ("mistral_instruct", "Q1 [/INST]"),
        ("mistral_official", "Q1[/INST]"),
        ("phi3_instruct", "Q1<|end|>\n<|assistant|>\n"),
        ("phi3", "Q1<|end|>\n<|assistant|>\n"),
        ("gemma_instruct", "Q1<end_of_turn>\n<start_of_turn>model\n"),
        ("gemma_vicuna", "Q1 ASSISTANT:"),
        ("chatml", "Q1<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_the_prompt_ends_with_the_assistant_header(template: str, end: str) -> None:
    prompt = render(template, ONE[:1], add_generation_prompt=True)
    assert prompt.endswith(end)
    assert render(template, ONE).startswith(prompt)


# -------------------------------------------------------------------------------------------- promises

TEXTS = [
    "plain words",
    " one leading space",
    "   three leading spaces and trailing  ",
    "double  spaces   and\ttabs\t",
    "\nnewline first",
    "\n\n\nnewlines first and last\n\n",
    " \n mixed \r\n white \u3000 space \u00a0",
    "line\n\nline\n  indented\n\n\n\nline",
    "你好，世界。图片里有什么？",
    "emoji 👩‍👩‍👧 🇩🇪 é é ñ",
    "عربى עברית हिन्दी ไทย 한국어",
    "0123456789 3.14 1,000 -5 10%",
    "A",
    ".",
    ": starts like a header",
    "]",
    "USER: Q ASSISTANT: A",
    "[INST] Q [/INST]",
    "<|user|",
    "{} {0} {text} %s \\n \\",
    "▁ already ▁▁there",
    "<0x0A>",
    "\x1f a separator, which only Python calls white space",
    "\x00\x7f\ufffd\u200b",
    "x" * 300,
]


def conversation_of(template: str, text: str) -> list[Turn]:
    if template == "plain":
        return [("user", f"{IMAGE}\n{text}"), ("assistant", text)]
    first: list[Turn] = [("user", f"{IMAGE}\n{text}"), ("assistant", text)]
    return [*first, ("user", text), ("assistant", text), ("user", ""), ("assistant", text)]


def assert_promises(template: str, name: str, turns: list[Turn]) -> None:
    """Concatenated ids, decoded loss tokens and prompts, against the tokenizer and the turns."""
    tokenizer = tokenizer_of(name)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    settings = {"image_token_id": image, "tokens_per_image": 1}
    encoded = encode(template, tokenizer, turns, **settings)
    whole = tokenizer(render(template, turns)).input_ids
    assert encoded.input_ids == whole

    assert_learned(template, tokenizer, turns, encoded.labels)

    for count in range(1, len(turns), 2):
        prompt = encode_prompt(template, tokenizer, turns[:count], **settings)
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.labels[len(prompt) - 1] == IGNORE_INDEX
        assert encoded.labels[len(prompt)] != IGNORE_INDEX, "the answer starts where the prompt ends"


def assert_learned(
    template: str, tokenizer: PreTrainedTokenizerFast, turns: list[Turn], labels: list[int]
) -> None:
    """Every run of labels is one answer and its end."""
    row = TEMPLATES[template]
    runs = [list(run) for loss, run in groupby(labels, lambda label: label != IGNORE_INDEX) if loss]
    assert len(runs) == len(turns) // 2
    # Behind another word, because sentencepiece decoders drop a space at the start of what they are given.
    word = tokenizer("x", add_special_tokens=False).input_ids
    for run, (_, answer) in zip(runs, turns[1::2], strict=True):
        # What white space is, tokenizers and Python see alike, but for \x1c to \x1f.
        text = re.sub(r"\A([^\S\x1c-\x1f])+", "", answer) if row.user.endswith("\n") else answer
        learned = (row.answer.format(text) + row.end).replace("▁", " ")  # one to sentencepiece
        # The second form: the tokenizer put its prefix in front of an answer that follows a special token.
        assert tokenizer.decode(word + run).replace("▁", " ") in {"x" + learned, "x " + learned}
        assert not row.end or run[-1] == tokenizer.convert_tokens_to_ids(row.end)


@every_pair
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_promises_hold_for_nasty_texts(template: str, name: str, text: str) -> None:
    if name == "mistral3" and "[INST]" in text:
        pytest.skip("text here and a token of the whole string: test_special_strings_in_data_stay_text")
    assert_promises(template, name, conversation_of(template, text))


no_marks = st.text(st.characters(exclude_characters="<\ufdd0", exclude_categories=["Cs"]), max_size=20)


@every_pair
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(no_marks.filter(str.strip), min_size=3, max_size=3))
def test_promises_hold_for_any_text(template: str, name: str, texts: list[str]) -> None:
    turns: list[Turn] = [("user", IMAGE + texts[0]), ("assistant", texts[1])]
    if template != "plain":
        turns += [("user", texts[1]), ("assistant", texts[2])]
    assert_promises(template, name, turns)


@every_pair
def test_special_strings_in_data_stay_text(template: str, name: str) -> None:
    tokenizer = tokenizer_of(name)
    image = {"vicuna": "<unk>", "gemma": "<unused0>"}.get(name)  # rows that an image may borrow
    marks = [
        "</s>",
        "<eos>",
        "<|end|>",
        "<|im_end|>",
        "<end_of_turn>",
        "\ufdd0",
        *tokenizer.all_special_tokens,
    ]
    text = "a" + "b".join([*marks, *TEMPLATES[template].special(), *([image] if image else [])]) + "c"
    settings = {"image_token_id": tokenizer.convert_tokens_to_ids(image or IMAGE), "tokens_per_image": 3}
    encoded = encode(template, tokenizer, conversation_of(template, text), **settings)
    innocent = encode(template, tokenizer, conversation_of(template, "x"), **settings)
    reserved = {settings["image_token_id"], *tokenizer.convert_tokens_to_ids(marks)}
    for ids, expected in ((encoded.input_ids, innocent.input_ids), (encoded.labels, innocent.labels)):
        assert [i for i in ids if i in reserved] == [i for i in expected if i in reserved]
    seen = text.replace("\ufdd0", "\ufffd")
    assert_learned(template, tokenizer, conversation_of(template, seen), encoded.labels)


def test_image_placeholder_in_an_answer_is_text() -> None:
    turns: list[Turn] = [("user", "<image>\nHTML?"), ("assistant", "Write <image> here.")]
    for tokenizer in (vicuna(), tokenizer_of("vicuna")):
        ids = encode("vicuna_v1", tokenizer, turns, image_token_id=32000, tokens_per_image=4).input_ids
        assert ids.count(32000) == 4
        assert tokenizer.decode(ids).count("Write <image> here.") == 1


def test_two_images_are_two_blocks() -> None:
    turns: list[Turn] = [("user", "<image>\n<image>\nQ"), ("assistant", "A")]
    ids = encode(
        "vicuna_v1", tokenizer_of("vicuna"), turns, image_token_id=32000, tokens_per_image=2
    ).input_ids
    assert ids[32:41] == [1001, 29901, 29871, 32000, 32000, 29871, 13, 32000, 32000]


@every_pair
def test_bos_comes_once_or_not_at_all(template: str, name: str) -> None:
    tokenizer = tokenizer_of(name)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    ids = encode(template, tokenizer, ONE, image_token_id=image, tokens_per_image=1).input_ids
    if name == "smollm":  # its BOS is <|im_start|>, which the tokenizer does not put in front
        assert ids[0] == (1 if template == "chatml" else image)
        assert ids.count(1) == (2 if template == "chatml" else 0)
    else:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_gemma_gets_bos_from_a_tokenizer_that_adds_none() -> None:
    tokenizer = gemma()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert tokenizer("x").input_ids[0] != 2
    for template in ("gemma_instruct", "gemma_vicuna"):
        assert encode(template, tokenizer, TEXT, image_token_id=7, tokens_per_image=1).input_ids[0] == 2


def test_segments_name_what_they_are() -> None:
    assert [(s.text, s.supervised, s.kind) for s in segments("chatml", ONE)] == [
        ("<|im_start|>", False, "special"),
        ("user\n", False, "text"),
        ("<image>", False, "image"),
        ("\nQ1", False, "text"),
        ("<|im_end|>", False, "special"),
        ("\n", False, "text"),
        ("<|im_start|>", False, "special"),
        ("assistant\n", False, "text"),
        ("A1", True, "text"),
        ("<|im_end|>", True, "special"),
        ("\n", False, "text"),
    ]


def test_earlier_calls_leave_no_truncation_behind() -> None:
    tokenizer = vicuna()
    tokenizer("many words to be cut", truncation=True, max_length=3)
    encoded = encode("vicuna_v1", tokenizer, ONE, image_token_id=32000, tokens_per_image=2)
    assert encoded == encode(
        "vicuna_v1", tokenizer_of("vicuna"), ONE, image_token_id=32000, tokens_per_image=2
    )


def test_tokens_added_after_the_first_call_are_seen() -> None:
    tokenizer = smollm()
    settings = {"image_token_id": IMG, "tokens_per_image": 1}
    with pytest.raises(ValueError, match="needs '</s>' as one special token"):
        encode("vicuna_v1", tokenizer, TEXT, **settings)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</s>"]})
    added = tokenizer.convert_tokens_to_ids("</s>")
    assert encode("vicuna_v1", tokenizer, TEXT, **settings).labels[-1] == added


def test_eos_in_data_is_text_even_where_it_is_an_ordinary_added_token() -> None:
    backend = smollm().backend_tokenizer
    backend.add_tokens(["<stop>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<stop>")
    turns: list[Turn] = [("user", "Q"), ("assistant", "a <stop> b")]
    ids = encode("chatml", tokenizer, turns, image_token_id=IMG, tokens_per_image=1).input_ids
    assert tokenizer.eos_token_id not in ids


# ------------------------------------------------------------------------------------------ truncation


def test_truncation_cuts_text_from_the_right_and_counts() -> None:
    tokenizer = tokenizer_of("vicuna")
    full = encode("vicuna_v1", tokenizer, THREE, image_token_id=32000, tokens_per_image=2)
    length = len(full.input_ids)
    for cut in (0, 1, 2, 14):
        short = encode(
            "vicuna_v1", tokenizer, THREE, image_token_id=32000, tokens_per_image=2, max_length=length - cut
        )
        assert short.input_ids == full.input_ids[: length - cut]
        assert short.labels == full.labels[: length - cut]
        assert short.truncated == cut
    longer = encode(
        "vicuna_v1", tokenizer, THREE, image_token_id=32000, tokens_per_image=2, max_length=length + 1
    )
    assert longer == full


def test_truncation_never_cuts_an_image() -> None:
    settings = {"image_token_id": IMG, "tokens_per_image": 4}
    tokenizer = tokenizer_of("smollm")  # 3 ids, 4 of the image, 10 of the prompt's rest, then the answer
    turns: list[Turn] = [("user", "<image>\nQ1"), ("assistant", "A1")]
    assert encode("chatml", tokenizer, turns, **settings, max_length=16).labels[-1] == 35
    for short in (3, 4, 6):
        with pytest.raises(
            ValueError, match=rf"max_length {short} cuts an image block, which ends at token 7"
        ):
            encode("chatml", tokenizer, turns, **settings, max_length=short)
    for short in (7, 15):
        with pytest.raises(ValueError, match="supervises nothing: its first answer starts after max_length"):
            encode("chatml", tokenizer, turns, **settings, max_length=short)


def test_an_image_behind_the_cut_is_an_error_too() -> None:
    turns: list[Turn] = [*TEXT, ("user", "<image>\nQ2"), ("assistant", "A2")]
    with pytest.raises(ValueError, match="cuts an image block"):
        encode("chatml", tokenizer_of("smollm"), turns, image_token_id=IMG, tokens_per_image=4, max_length=14)


# --------------------------------------------------------------------------------- tokenizer questions


@pytest.mark.parametrize(("template", "name"), dict(PAIRS).items())
def test_the_self_test_passes(template: str, name: str) -> None:
    check_tokenizer(template, tokenizer_of(name))


def test_the_self_test_names_a_missing_special_token() -> None:
    message = (
        r"template 'phi3_instruct' needs '<\|system\|>' as one special token, which this tokenizer lacks: "
        "choose the template of this LLM's family"
    )
    with pytest.raises(ValueError, match=message):
        check_tokenizer("phi3_instruct", tokenizer_of("vicuna"))


def test_the_self_test_finds_other_ids_of_the_whole_string() -> None:
    def change(specification: dict[str, Any]) -> None:
        for token in specification["added_tokens"]:
            token["normalized"] = (
                True  # then "</s>" is not found behind a word: a known fault of converted files
            )

    with pytest.raises(ValueError, match=r"do not belong together: .* by segments but .* as a whole; choose"):
        check_tokenizer("vicuna_v1", vicuna(change))


def test_the_self_test_finds_answers_that_do_not_come_back() -> None:
    tokenizer = smollm()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match=r"'Two cats, on a red sofa.' decodes to 'two cats, on a red sofa.'"):
        check_tokenizer("chatml", tokenizer)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        pass

    with pytest.raises(ValueError, match="Slow is not a fast tokenizer"):
        check_tokenizer("vicuna_v1", Slow())


def test_a_text_that_becomes_the_image_token_is_refused() -> None:
    turns: list[Turn] = [("user", "Q"), ("assistant", "A")]
    with pytest.raises(ValueError, match="the text 'A' holds a special or image token of this tokenizer"):
        encode("chatml", tokenizer_of("smollm"), turns, image_token_id=35, tokens_per_image=1)


def test_an_answer_that_the_tokenizer_joins_with_its_header_is_refused() -> None:
    backend = Tokenizer(models.BPE({"</s>": 0, ":": 1, "Ġ": 2, "a": 3, ":Ġ": 4}, [(":", "Ġ")]))
    backend.normalizer = normalizers.Replace(" ", "Ġ")
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    turns: list[Turn] = [("user", "Q"), ("assistant", "a")]
    with pytest.raises(ValueError, match="joins the start of ' a' with the header before it"):
        encode("vicuna_v1", tokenizer, turns, image_token_id=9, tokens_per_image=1)


def test_the_template_follows_from_the_special_tokens() -> None:
    chosen = {name: choose_template(tokenizer_of(name)) for name in MAKERS}
    assert chosen == {
        "vicuna": "vicuna_v1",
        "llama": "vicuna_v1",
        "phi3": "phi3_instruct",
        "phi3_keeping_newlines": "phi3_instruct",
        "gemma": "gemma_instruct",
        "smollm": "chatml",
        "mistral3": "mistral_v3",
    }
    assert choose_template(tokenizer_of("vicuna"), "mistral_instruct") == "mistral_instruct"
    assert choose_template(tokenizer_of("smollm"), "mistral_instruct") == "chatml"


@pytest.mark.parametrize(
    ("template", "name", "ids"),
    [
        ("plain", "vicuna", [13, 2]),
        ("plain", "gemma", [108, 1]),
        ("vicuna_v1", "vicuna", [2]),
        ("mistral_instruct", "vicuna", [2]),
        ("mistral_official", "vicuna", [2]),
        ("phi3_instruct", "phi3", [32007, 32000, 32001]),
        ("phi3", "phi3", [32007, 32000, 32001]),
        ("gemma_instruct", "gemma", [107, 1]),
        ("gemma_vicuna", "gemma", [1]),
        ("chatml", "smollm", [2]),
    ],
)
def test_stop_ids(template: str, name: str, ids: list[int]) -> None:
    assert stop_ids(template, tokenizer_of(name)) == ids


# ------------------------------------------------------------------------------------------- bad turns


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "the conversation has no user turn"),
        ([("user", "Q")], "the conversation ends with 'user', but it must end with 'assistant'"),
        ([("assistant", "A")], "turn 0 is from 'assistant' where 'user' is due: turns must alternate"),
        ([("user", "Q"), ("user", "Q")], "turn 1 is from 'user' where 'assistant' is due"),
        ([("user", "Q"), ("gpt", "A")], "turn 1 is from 'gpt' where 'assistant' is due"),
        ([("user", "Q"), ("assistant", " \n")], "the answer in turn 1 is empty: there is nothing to learn"),
        ([("user", "\ud83d"), ("assistant", "A")], "turn 0 holds half a character"),
    ],
)
def test_what_is_no_conversation_is_refused(turns: list[Turn], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode("vicuna_v1", tokenizer_of("vicuna"), turns, image_token_id=32000, tokens_per_image=1)


def test_a_prompt_must_end_with_the_user() -> None:
    with pytest.raises(ValueError, match="ends with 'assistant', but it must end with 'user'"):
        encode_prompt("vicuna_v1", tokenizer_of("vicuna"), ONE, image_token_id=32000, tokens_per_image=1)


@pytest.mark.parametrize(
    ("turns", "count"), [(TEXT, "0 images and 2 turns"), (THREE, "1 images and 6 turns")]
)
def test_plain_takes_one_image_and_one_caption(turns: list[Turn], count: str) -> None:
    with pytest.raises(ValueError, match=f"'plain' is for one image and its caption, but here are {count}"):
        render("plain", turns)


def test_plain_drops_what_the_human_said() -> None:
    turns: list[Turn] = [("user", "Describe it.\n<image>"), ("assistant", "a caption")]
    assert render("plain", turns) == "<image>a caption\n"


def test_long_texts_are_not_kept_in_memory() -> None:
    def encoded(number: int) -> None:
        turns: list[Turn] = [("user", "Q"), ("assistant", f"{number} " + "words " * 400)]
        encode("vicuna_v1", tokenizer_of("vicuna"), turns, image_token_id=32000, tokens_per_image=1)

    encoded(0)
    tracemalloc.start()
    for number in range(1, 101):
        encoded(number)
    assert tracemalloc.get_traced_memory()[0] < 50_000  # 100 of 400 tokens would be 3.5 MB
    tracemalloc.stop()


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no template 'llava'; there are plain, vicuna_v1, "):
        render("llava", ONE)
